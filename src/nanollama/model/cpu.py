"""Layers as a CPU runs them fastest: autograd functions that make few passes over memory, forward and backward.

The plain formulas are the reference in the tests, and what a GPU runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import rotate, turn

FUSE_FROM = 2**15  # numbers in a tensor; below, calls cost more than memory, and the compiler is not worth loading
FFN_ROWS = 512  # rows of a feed-forward layer at a time: their hidden features stay in cache between the products
QUERY_ROWS = 64  # rows of the score matrix at a time: what lies in the future of a whole chunk is never computed


def compilable(x: Tensor) -> bool:
    """Whether compiled passes take ``x``, and it is large enough to be worth them."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    return plain and x.numel() >= FUSE_FROM


def fusible(x: Tensor) -> bool:
    """``compilable`` by us rather than by torch.compile, which fuses these passes with what surrounds them; else the plain formulas do."""
    return compilable(x) and not torch.compiler.is_compiling()


def _kernels() -> ModuleType:
    from . import cpu_native

    return cpu_native


def _differentiable(plain: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward pass by autograd, for who wants to differentiate it once more."""
    wanted = [x for x in inputs if x.requires_grad]
    grads = iter(torch.autograd.grad(plain(*inputs), wanted, grad, create_graph=True))
    return tuple(next(grads) if x.requires_grad else None for x in inputs)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``F.rms_norm`` over the last dimension, of a ``fusible`` x."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """y = r x w with r = (mean x^2 + eps)^(-1/2), hence dx = r w dy - r^3 x <x, w dy> / D and dw = sum of r x dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        y, r = torch.empty_like(rows), x.new_empty(len(rows))
        _kernels().over_rows(_kernels().rms_norm, len(rows), rows, weight, eps, y, r)
        ctx.save_for_backward(x, weight, r)
        ctx.eps = eps
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable(lambda x, w: F.rms_norm(x, w.shape, w, ctx.eps), (x, weight), grads[0]), None
        native, rows = _kernels(), x.view(-1, x.shape[-1])
        blocks = -(-len(rows) // native.BLOCK)
        dx, dw = torch.empty_like(rows), x.new_empty(blocks, x.shape[-1])
        native.over_rows(native.rms_norm_backward, blocks, rows, weight, r, grads[0].contiguous().view(rows.shape), dx, dw)
        return dx.view(x.shape), dw.sum(0), None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of a ``fusible`` (..., 2 F), gate first."""
    return _SwiGLU.apply(gate_up)


def plain_swiglu(gate_up: Tensor) -> Tensor:
    """``swiglu`` of any tensor."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Keeps only its input; one pass computes the sigmoid again and writes both halves of the gradient."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        rows = gate_up.view(-1, gate_up.shape[-1])
        y = rows.new_empty(len(rows), rows.shape[1] // 2)
        _kernels().over_rows(_kernels().swiglu, len(rows), rows, y)
        return y.view(*gate_up.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(plain_swiglu, (gate_up,), grads[0])
        rows = gate_up.view(-1, gate_up.shape[-1])
        out, grad = torch.empty_like(rows), grads[0].contiguous().view(len(rows), -1)
        _kernels().over_rows(_kernels().swiglu_backward, len(rows), rows, grad, out, torch.empty_like(grad))
        return (out.view(gate_up.shape),)


def feed_forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """``plain_feed_forward`` of a ``fusible`` x.

    Some rows at a time, so that of all that lies between the products only ``gate_up``'s, which the backward pass needs, goes to memory.
    """
    return _FeedForward.apply(x, gate_up, down)


def plain_feed_forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """down(swiglu(gate_up(x))): (..., D), (2 F, D), (D_out, F) -> (..., D_out)."""
    return F.linear(plain_swiglu(F.linear(x, gate_up)), down)


class _FeedForward(torch.autograd.Function):
    """Keeps the input and the hidden features before the gate; the products for the weights' gradients add up over parts of the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        native, rows = _kernels(), x.view(-1, x.shape[-1])
        before, y, after = (
            rows.new_empty(len(rows), len(gate_up)),
            rows.new_empty(len(rows), len(down)),
            rows.new_empty(FFN_ROWS, down.shape[1]),
        )
        for part, z, out in zip(*(t.split(FFN_ROWS) for t in (rows, before, y)), strict=True):
            torch.mm(part, gate_up.t(), out=z)
            native.over_rows(native.swiglu, len(part), z, after)
            torch.mm(after[: len(part)], down.t(), out=out)
        ctx.save_for_backward(x, gate_up, down, before)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up, down, before = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(plain_feed_forward, (x, gate_up, down), grads[0])
        native, rows, dy = _kernels(), x.view(-1, x.shape[-1]), grads[0].contiguous().view(len(before), -1)
        dx, d_gate_up, d_down = torch.empty_like(rows), torch.zeros_like(gate_up), torch.zeros_like(down)
        after, d_after, d_before = (rows.new_empty(FFN_ROWS, n) for n in (down.shape[1], down.shape[1], len(gate_up)))
        for part, z, grad, out in zip(*(t.split(FFN_ROWS) for t in (rows, before, dy, dx)), strict=True):
            n = len(part)
            torch.mm(grad, down, out=d_after[:n])
            native.over_rows(native.swiglu_backward, n, z, d_after, d_before, after)
            torch.mm(d_before[:n], gate_up, out=out)
            d_down.addmm_(grad.t(), after[:n])
            d_gate_up.addmm_(d_before[:n].t(), part)
        return dx.view(x.shape), d_gate_up, d_down


def split_and_turn(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, qk_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a ``fusible`` qkv, the first two turned; arguments as of ``attention``.

    Returns:
        (B, H, T, D_qk), (B, K, T, D_qk) and (B, K, T, D_v)
    """
    return _SplitAndTurn.apply(qkv, cos, sin, heads, kv_heads, qk_dim)


class _SplitAndTurn(torch.autograd.Function):
    """The gradient is the rotation by the opposite angle, written where the fused projection wants it."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, *sizes: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.sizes = heads, kv_heads, qk_dim = sizes
        rows, turned = qkv.view(-1, qkv.shape[-1]), (heads + kv_heads) * qk_dim
        out = torch.empty_like(rows)
        _kernels().over_rows(_kernels().turn, len(rows), rows, 0, cos, sin, heads + kv_heads, out, 0)
        out[:, turned:] = rows[:, turned:]
        return split_heads(out.view(qkv.shape), heads, kv_heads, qk_dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (cos, sin), (heads, kv_heads, _) = ctx.saved_tensors, ctx.sizes
        dq, dk, dv = (x.transpose(1, 2).flatten(2) for x in grads)
        if torch.is_grad_enabled():
            dq, dk = (rotate(x, cos, -sin).transpose(1, 2).flatten(2) for x in grads[:2])
            return torch.cat([dq, dk, dv], dim=-1), *[None] * 5
        out = cos.new_empty(*dq.shape[:2], dq.shape[2] + dk.shape[2] + dv.shape[2])
        native, rows, start = _kernels(), out.view(-1, out.shape[2]), 0
        for x, count in ((dq, heads), (dk, kv_heads)):
            native.over_rows(native.turn, len(rows), x.contiguous().view(len(rows), -1), 0, cos, -sin, count, rows, start)
            start += x.shape[2]
        out[..., start:] = dv
        return out, *[None] * 5


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


def split_heads(qkv: Tensor, heads: int, kv_heads: int, qk_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views (B, H, T, D_qk), (B, K, T, D_qk), (B, K, T, D_v)."""
    sizes = [heads * qk_dim, kv_heads * qk_dim, qkv.shape[-1] - (heads + kv_heads) * qk_dim]
    q, k, v = qkv.split(sizes, dim=-1)
    return tuple(x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    """N = B * K groups of G = H / K query heads that share keys and values; the scale 1 / sqrt(D) rides on the rotation of q."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, qk_dim: int) -> Tensor:
        batch, length, group, n, scale = qkv.shape[0], qkv.shape[1], heads // kv_heads, qkv.shape[0] * kv_heads, qk_dim**-0.5
        q, k, v = split_heads(qkv, heads, kv_heads, qk_dim)
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
        q_out, k_out, v_out = split_heads(dqkv, heads, kv_heads, qk_dim)
        turn(dq.view(q_out.shape), cos * scale, sin * -scale, out=q_out)
        turn(dk.view(k_out.shape), cos, -sin, out=k_out)
        v_out.copy_(dv.view(v_out.shape))
        return dqkv, None, None, None, None, None
