"""Causal self-attention with grouped queries, and the kernels it can run on.

Shapes: B sequences, T query positions, S key positions, H query heads, K key/value heads (H = K * G), D features of a head.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from .layers import Linear
from .rope import rotate
from .sizing import required

CHUNK = 64  # query rows at a time: about half of the score matrix is never computed


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
        self.core = AttentionCore()
        self.out = Linear(self.nb_heads * self.v_dim, cfg.emb_dim)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q = rotate(_heads(q, self.qk_dim), at.cos, at.sin)
        k = rotate(_heads(k, self.qk_dim), at.cos, at.sin)
        y = self.core(q, k, _heads(v, self.v_dim), at.mask)
        return self.out(y.transpose(1, 2).flatten(2))


def _heads(x: Tensor, dim: int) -> Tensor:
    """(B, T, H * D) -> (B, H, T, D)"""
    return x.unflatten(-1, (-1, dim)).transpose(1, 2)


class AttentionCore(nn.Module):
    """softmax(q k^T / sqrt(D)) v. A module of its own, so that a probe can watch queries and keys from outside."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """
        Args:
            q, k, v: (B, H, T, D_qk), (B, K, S, D_qk), (B, K, S, D_v).
            mask: as in ``Positions``.

        Returns:
            (B, H, T, D_v)
        """
        if mask is None and chunked_is_faster(q.device.type, q.shape[2], q.dtype):
            return chunked_attention(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])


def chunked_is_faster(device: str, length: int, dtype: torch.dtype) -> bool:
    """The rule measured by ``benchmarks/attention.py``; both ways give the same numbers up to rounding."""
    if device != "cpu":
        return False
    return length <= (1024 if dtype == torch.bfloat16 else 512)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as matrix products over chunks of query rows; shapes as in ``AttentionCore.forward``, T = S.

    On a CPU the products run at the speed of GEMM, which the fused kernel is far from in bf16. Stores the probabilities for the
    backward pass: B * H * T^2 / 2 numbers, which is why it is for short sequences.
    """
    return _ChunkedAttention.apply(q, k, v)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, dim = q.shape
        group, rows = heads // k.shape[1], batch * k.shape[1]
        queries = q.reshape(rows, group, length, dim)
        keys, values = k.reshape(rows, length, dim), v.reshape(rows, length, -1)
        future = q.new_full((CHUNK, CHUNK), -math.inf).triu(1)
        out = q.new_empty(rows, group, length, values.shape[-1])
        weights = []
        for start in range(0, length, CHUNK):
            stop = min(start + CHUNK, length)
            size = stop - start
            scores = torch.bmm(queries[:, :, start:stop].reshape(rows, group * size, dim) * dim**-0.5, keys[:, :stop].transpose(1, 2))
            scores.view(rows, group, size, stop)[..., start:] += future[:size, :size]
            p = scores.softmax(-1, dtype=scores.dtype)
            out[:, :, start:stop] = torch.bmm(p, values[:, :stop]).view(rows, group, size, -1)
            weights.append(p)
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.shapes = q.shape, k.shape, v.shape
        return out.view(batch, heads, length, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, *weights = ctx.saved_tensors
        rows, group, length, dim = queries.shape
        grad = grads[0].reshape(rows, group, length, -1)
        dq, dk, dv = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for p, start in zip(weights, range(0, length, CHUNK), strict=True):
            size, stop = p.shape[1] // group, p.shape[2]
            dy = grad[:, :, start:stop].reshape(rows, group * size, -1)
            q = queries[:, :, start:stop].reshape(rows, group * size, dim) * dim**-0.5
            dv[:, :stop] += torch.bmm(p.transpose(1, 2), dy)
            dp = torch.bmm(dy, values[:, :stop].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, :, start:stop] = (torch.bmm(ds, keys[:, :stop]) * dim**-0.5).view(rows, group, size, dim)
            dk[:, :stop] += torch.bmm(ds.transpose(1, 2), q)
        shape_q, shape_k, shape_v = ctx.shapes
        return dq.view(shape_q), dk.view(shape_k), dv.view(shape_v)
