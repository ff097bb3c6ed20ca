"""Layers as PyTorch runs them fastest on a CPU: autograd functions whose hand-written gradients make few passes over memory.

The plain formulas are the reference in the tests, and what a GPU runs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .rope import turn

QUERY_ROWS = 64  # rows of the score matrix at a time: what lies in the future of a whole chunk is never computed


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``F.rms_norm`` over the last dimension."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """y = r x w with r = (mean x^2 + eps)^(-1/2), hence dx = r w dy - r^3 x <x, w dy> / D and dw = sum of r x dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = (norm.square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return torch.mul(x, r).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        dy, dim = grads[0], x.shape[-1]
        product = torch.mul(x, dy).view(-1, dim)
        dw = torch.mv(product.t(), r.view(-1))
        along = torch.mv(product, weight).view(r.shape).mul_(r**3).div_(-dim)
        dx = torch.mul(dy, weight).mul_(r).addcmul_(x, along)
        return dx, dw, None


def attention(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, qk_dim: int) -> Tensor:
    """Rotary embedding and causal attention as matrix products over chunks of query rows.

    The products run at the speed of GEMM, which the fused kernel is far from in bf16. Keeps the probabilities for the backward pass:
    B * H * T^2 / 2 numbers, which is why it is for short sequences.

    Args:
        qkv: (B, T, (H + K) * D_qk + K * D_v), queries first, then keys, then values.
        cos, sin: (T, D_qk / 2) of ``rope.rotation``.
        heads, kv_heads, qk_dim: H, K (a divisor of H) and D_qk.

    Returns:
        (B, T, H * D_v)
    """
    return _Attention.apply(qkv, cos, sin, heads, kv_heads, qk_dim)


def _split_heads(qkv: Tensor, heads: int, kv_heads: int, qk_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views (B, H, T, D_qk), (B, K, T, D_qk), (B, K, T, D_v)."""
    sizes = [heads * qk_dim, kv_heads * qk_dim, qkv.shape[-1] - (heads + kv_heads) * qk_dim]
    q, k, v = qkv.split(sizes, dim=-1)
    return tuple(x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    """N = B * K groups of G = H / K query heads that share keys and values; the scale 1 / sqrt(D) rides on the rotation of q."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, qk_dim: int) -> Tensor:
        batch, length, group, n, scale = qkv.shape[0], qkv.shape[1], heads // kv_heads, qkv.shape[0] * kv_heads, qk_dim**-0.5
        q, k, v = _split_heads(qkv, heads, kv_heads, qk_dim)
        q = turn(q, cos * scale, sin * scale).view(n, group, length, qk_dim)
        k, v = turn(k, cos, sin).view(n, length, qk_dim), v.reshape(n, length, -1)
        future = qkv.new_full((QUERY_ROWS, QUERY_ROWS), -math.inf).triu(1)
        out = qkv.new_empty(batch, length, kv_heads, group, v.shape[-1])
        weights = []
        for start in range(0, length, QUERY_ROWS):
            stop = min(start + QUERY_ROWS, length)
            size = stop - start
            scores = torch.bmm(q[:, :, start:stop].reshape(n, group * size, qk_dim), k[:, :stop].transpose(1, 2))
            scores.view(n, group, size, stop)[..., start:] += future[:size, :size]
            p = scores.softmax(-1, dtype=scores.dtype)
            out[:, start:stop] = torch.bmm(p, v[:, :stop]).view(batch, kv_heads, group, size, -1).permute(0, 3, 1, 2, 4)
            weights.append(p)
        ctx.save_for_backward(q, k, v, cos, sin, *weights)
        ctx.sizes = heads, kv_heads, qk_dim
        return out.view(batch, length, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, *weights = ctx.saved_tensors
        heads, kv_heads, qk_dim = ctx.sizes
        (batch, length), (n, group, scale) = grads[0].shape[:2], (q.shape[0], q.shape[1], qk_dim**-0.5)
        dy = grads[0].view(batch, length, kv_heads, group, -1).permute(0, 2, 3, 1, 4).reshape(n, group, length, -1)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for p, start in zip(weights, range(0, length, QUERY_ROWS), strict=True):
            size, stop = p.shape[1] // group, p.shape[2]
            q_part = q[:, :, start:stop].reshape(n, group * size, qk_dim)
            dy_part = dy[:, :, start:stop].reshape(n, group * size, -1)
            dp = torch.bmm(dy_part, v[:, :stop].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, :, start:stop] = torch.bmm(ds, k[:, :stop]).view(n, group, size, qk_dim)
            dk[:, :stop] += torch.bmm(ds.transpose(1, 2), q_part)
            dv[:, :stop] += torch.bmm(p.transpose(1, 2), dy_part)
        dqkv = cos.new_empty(batch, length, (heads + kv_heads) * qk_dim + kv_heads * v.shape[-1])
        q_out, k_out, v_out = _split_heads(dqkv, heads, kv_heads, qk_dim)
        turn(dq.view(q_out.shape), cos * scale, sin * -scale, out=q_out)
        turn(dk.view(k_out.shape), cos, -sin, out=k_out)
        v_out.copy_(dv.view(v_out.shape))
        return dqkv, None, None, None, None, None
