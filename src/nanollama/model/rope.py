"""Rotary position embeddings (Su et al., 2021, arXiv:2104.09864), half-split: feature i turns with feature i + D/2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotation(positions: Tensor, inv_freq: Tensor, magnitude: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle.

    Args:
        positions: (T,), or (B, T) where rows stand at different places.
        inv_freq: (D/2,) from ``rope_scaling.inverse_frequencies``.
        magnitude: from ``rope_scaling.magnitude``.

    Returns:
        two tensors, (T, D/2) or (B, 1, T, D/2), computed in fp32 and rounded to ``dtype``; the 1 stands for the heads.
    """
    angles = positions[..., None].float() * inv_freq.float()
    if positions.dim() == 2:
        angles = angles[:, None]
    return (magnitude * angles.cos()).to(dtype), (magnitude * angles.sin()).to(dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, H, T, D) by the angles of ``rotation``, into a new tensor; not seen by autograd.

    In memory the heads of a token lie side by side: attention kernels give their result the layout of the queries, and so neither it
    nor a gradient is copied on the way to and from the projections.
    """
    first, second = x.chunk(2, dim=-1)
    if torch.compiler.is_compiling():  # fuses the plain formula, and cannot trace out= into a part of a tensor
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.cat([half.transpose(1, 2) for half in turned], dim=-1).transpose(1, 2)
    out = torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``turn`` for autograd."""
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """Autograd would keep six intermediates and launch twice the kernels; the gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, -sin), None, None
