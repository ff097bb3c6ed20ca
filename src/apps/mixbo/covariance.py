"""Covariance matrices put together from small factors, in one compiled pass forward and one backward.

Observations repeat their mixture at every checkpoint and a grid repeats mixtures and fidelities, so a covariance of n rows is made of
few different numbers. Differentiating the indexing in PyTorch would cost many passes over (n, n) matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from src.nanollama.arrays import Array, Ints

Where = tuple[Ints, Ints, Ints]  # of each row: which mixture, which fidelity, which run or -1


@njit(cache=True)
def _gather(
    mixture: Array, fidelity: Array, shared: Array, offset: Array, rows: Where, columns: Where
) -> Array:  # pragma: no cover (compiled)
    (m1, f1, r1), (m2, f2, r2) = rows, columns
    terms, outputs = mixture.shape[:2]
    total = np.empty((outputs, len(m1), len(m2)))
    for o in range(outputs):
        for i in range(len(m1)):
            for j in range(len(m2)):
                value = shared[o, f1[i], f2[j]]
                for k in range(terms):
                    value += mixture[k, o, m1[i], m2[j]] * fidelity[k, o, f1[i], f2[j]]
                if r1[i] >= 0 and r1[i] == r2[j]:
                    value += offset[o, f1[i], f2[j]]
                total[o, i, j] = value
    return total


@njit(cache=True)
def _scatter(
    slope: Array, mixture: Array, fidelity: Array, rows: Where, columns: Where
) -> tuple[Array, Array, Array, Array]:  # pragma: no cover (compiled)
    (m1, f1, r1), (m2, f2, r2) = rows, columns
    terms, outputs = mixture.shape[:2]
    to_mixture, to_fidelity = np.zeros(mixture.shape), np.zeros(fidelity.shape)
    to_shared, to_offset = np.zeros(fidelity.shape[1:]), np.zeros(fidelity.shape[1:])
    for o in range(outputs):
        for i in range(len(m1)):
            a, c = m1[i], f1[i]
            for j in range(len(m2)):
                b, d, g = m2[j], f2[j], slope[o, i, j]
                to_shared[o, c, d] += g
                for k in range(terms):
                    to_mixture[k, o, a, b] += g * fidelity[k, o, c, d]
                    to_fidelity[k, o, c, d] += g * mixture[k, o, a, b]
                if r1[i] >= 0 and r1[i] == r2[j]:
                    to_offset[o, c, d] += g
    return to_mixture, to_fidelity, to_shared, to_offset


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixture: Tensor, fidelity: Tensor, shared: Tensor, offset: Tensor, rows: Where, columns: Where) -> Tensor:
        ctx.where = rows, columns
        ctx.save_for_backward(mixture, fidelity)
        return torch.from_numpy(_gather(_array(mixture), _array(fidelity), _array(shared), _array(offset), rows, columns))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        mixture, fidelity = ctx.saved_tensors
        parts = _scatter(_array(slopes[0]), _array(mixture), _array(fidelity), *ctx.where)
        return *(torch.from_numpy(part) for part in parts), None, None


def assemble(mixture: Tensor, fidelity: Tensor, shared: Tensor, offset: Tensor, rows: Where, columns: Where) -> Tensor:
    """(outputs, n, q): ``shared[f, f'] + sum_k mixture_k[m, m'] fidelity_k[f, f'] + [same run] offset[f, f']``, differentiable.

    ``mixture`` (terms, outputs, U, U'), ``fidelity`` (terms, outputs, V, V'), ``shared`` and ``offset`` (outputs, V, V').
    """
    found: Tensor = _Assemble.apply(mixture, fidelity, shared, offset, rows, columns)  # type: ignore[no-untyped-call]
    return found


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy())
