"""Layers as a CPU runs them fastest: autograd functions that make few passes over memory, forward and backward.

The plain formulas are the reference in the tests, and what a GPU runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import rotate

FUSE_FROM = 2**15  # numbers in a tensor; below, calls cost more than memory, and the compiler is not worth loading
FFN_ROWS = 512  # rows of a feed-forward layer at a time: their hidden features stay in cache between the products


def compilable(x: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether compiled passes take ``x``, and it is large enough to be worth them."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in dtypes and x.is_contiguous()
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
    """Queries, keys and values of a ``fusible`` qkv, the first two turned; arguments as of ``fused_attention.plain_attend``.

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


def split_heads(qkv: Tensor, heads: int, kv_heads: int, qk_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views (B, H, T, D_qk), (B, K, T, D_qk), (B, K, T, D_v)."""
    sizes = [heads * qk_dim, kv_heads * qk_dim, qkv.shape[-1] - (heads + kv_heads) * qk_dim]
    q, k, v = qkv.split(sizes, dim=-1)
    return tuple(x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads)))  # type: ignore[return-value]
