"""Causal self-attention with grouped queries, and the kernels it runs on.

Shapes: B sequences, T query positions, S key positions, H query heads, K key/value heads (H = K * G), D features of a head.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..config.schema import ModelConfig
from . import cpu, fused_attention
from .layers import Linear
from .rope import rotate
from .sizing import required
from .state import Context, KVCache

NATIVE_FOR = (torch.float32, torch.bfloat16, torch.float16)
NATIVE_UP_TO = 4096  # tokens; a strip of the score matrix of longer sequences leaves the cache


class Heads(nn.Module):
    """Project to queries, keys and values with one matrix, turn, attend: (B, T, emb_dim) -> (B, T, H * D_v), head by head."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.nb_heads, self.kv_heads = cfg.nb_heads, required(cfg.nb_kv_heads)
        self.qk_dim, self.v_dim = required(cfg.qk_head_dim), required(cfg.v_head_dim)
        self.sizes = [self.nb_heads * self.qk_dim, self.kv_heads * self.qk_dim, self.kv_heads * self.v_dim]
        self.qkv = Linear(cfg.emb_dim, sum(self.sizes))

    def forward(self, x: Tensor, at: Context, cache: KVCache | None = None) -> Tensor:
        """With a cache, keys and values are written to it at ``at.positions``."""
        qkv = self.qkv(x)
        if cache is None and at.mask is None and fastest(qkv) == "native":
            return fused_attention.attend(qkv, at.cos, at.sin, self.nb_heads, self.kv_heads)
        q, k, v = self.heads(qkv, at)
        if cache is not None:
            k, v = cache.write(k, v, at)
        if isinstance(at.mask, BlockMask):
            flex = flex_attention if torch.compiler.is_compiling() else _flex()
            y = flex(q, k, v, block_mask=at.mask, enable_gqa=self.nb_heads != self.kv_heads)
        else:
            grouped = self.nb_heads != self.kv_heads
            if grouped and not shares_heads(q, v):
                k, v = (x.repeat_interleave(self.nb_heads // self.kv_heads, dim=1) for x in (k, v))
                grouped = False
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=at.mask, is_causal=at.mask is None, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)

    def heads(self, qkv: Tensor, at: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries (B, H, T, D_qk), turned keys (B, K, T, D_qk) and values (B, K, T, D_v)."""
        if cpu.fusible(qkv) and at.cos.dim() == 2:
            return cpu.split_and_turn(qkv, at.cos, at.sin, self.nb_heads, self.kv_heads, self.qk_dim)
        turned, v = qkv.split([sum(self.sizes[:2]), self.sizes[2]], dim=-1)
        turned = rotate(turned.unflatten(-1, (-1, self.qk_dim)).transpose(1, 2), at.cos, at.sin)
        q, k = turned.split([self.nb_heads, self.kv_heads], dim=1)
        return q, k, v.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> KVCache:
        """An empty cache for ``batch`` sequences of at most ``capacity`` tokens, with the dtype and device of ``like``."""
        shape = (batch, self.kv_heads, capacity)
        return KVCache(like.new_zeros(*shape, self.qk_dim), like.new_zeros(*shape, self.v_dim))


class Attention(Heads):
    """Attention heads and the matrix that brings what they found back to (B, T, emb_dim)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.out = Linear(self.nb_heads * self.v_dim, cfg.emb_dim)

    def forward(self, x: Tensor, at: Context, cache: KVCache | None = None) -> Tensor:
        return self.out(super().forward(x, at, cache))


def fastest(qkv: Tensor) -> str:
    """Which kernel attends to the past of plain (B, T, ...) sequences, as ``benchmarks/attention.py`` measured: "native"
    (``fused_attention``, in fp32 whatever comes in) or "sdpa"."""
    return "native" if cpu.compilable(qkv, NATIVE_FOR) and qkv.shape[1] <= NATIVE_UP_TO else "sdpa"


def shares_heads(q: Tensor, v: Tensor) -> bool:
    """Whether SDPA's fused kernels let query heads share keys and values. In torch 2.13 the only one on a GPU that takes fp32, or values
    of another size than queries, does not: the whole score matrix would be built, and keys and values repeated all the same."""
    return q.device.type != "cuda" or (q.dtype != torch.float32 and q.shape[-1] == v.shape[-1])


@cache
def _flex():  # type: ignore[no-untyped-def]
    """FlexAttention fuses only when compiled; uncompiled it builds the whole score matrix."""
    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention
