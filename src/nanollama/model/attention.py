"""Causal self-attention with grouped queries, and the kernels it can run on.

Shapes: B sequences, T query positions, S key positions, H query heads, K key/value heads (H = K * G), D features of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from . import cpu
from .layers import Linear
from .rope import rotate
from .sizing import required


class Positions(NamedTuple):
    """What every layer of one forward pass shares."""

    cos: Tensor  # of model.rope.rotation
    sin: Tensor
    mask: Tensor | None = None  # (B or 1, 1, T, S) bool, True where a query sees a key; None: causal, T = S


class Attention(nn.Module):
    """Project to queries, keys and values with one matrix, turn, attend, project back."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.nb_heads, self.kv_heads = cfg.nb_heads, required(cfg.nb_kv_heads)
        self.qk_dim, self.v_dim = required(cfg.qk_head_dim), required(cfg.v_head_dim)
        self.sizes = [self.nb_heads * self.qk_dim, self.kv_heads * self.qk_dim, self.kv_heads * self.v_dim]
        self.qkv = Linear(cfg.emb_dim, sum(self.sizes))
        self.out = Linear(self.nb_heads * self.v_dim, cfg.emb_dim)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        qkv = self.qkv(x)
        if at.mask is None and chunks_are_faster(qkv):
            return self.out(cpu.attention(qkv, at.cos, at.sin, self.nb_heads, self.kv_heads, self.qk_dim))
        q, k, v = self.heads(qkv, at)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=at.mask, is_causal=at.mask is None, enable_gqa=self.nb_heads != self.kv_heads
        )
        return self.out(y.transpose(1, 2).flatten(2))

    def heads(self, qkv: Tensor, at: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries (B, H, T, D_qk), turned keys (B, K, T, D_qk) and values (B, K, T, D_v)."""
        dims = (self.qk_dim, self.qk_dim, self.v_dim)
        q, k, v = (x.unflatten(-1, (-1, dim)).transpose(1, 2) for x, dim in zip(qkv.split(self.sizes, dim=-1), dims, strict=True))
        return rotate(q, at.cos, at.sin), rotate(k, at.cos, at.sin), v


def chunks_are_faster(x: Tensor) -> bool:
    """The rule that ``benchmarks/attention.py`` measured for (B, T, ...) activations; both ways give the same numbers up to rounding."""
    return x.device.type == "cpu" and x.shape[1] <= (1024 if x.dtype == torch.bfloat16 else 512)
