"""Compiled passes over fp32 rows for ``cpu``. Imported on first use: numba takes long to import, and seconds to compile (then cached).

Every kernel works on the rows [start, stop) of contiguous arrays, writes into its outputs, and lets other threads run meanwhile. The
arithmetic stays in fp32; dividing as numpy does (no exception at zero) is what lets the loops become vector instructions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

F = np.float32
LOG2_E, LN2_HIGH, LN2_LOW = F(1.44269504), F(0.693359375), F(-2.12194440e-4)  # high has 10 bits, so that k * high is exact
ROUND = F(1.5 * 2**23)  # adding and subtracting it rounds to an integer
BLOCK = 128  # rows summed into one weight gradient, so that the order of sums does not hang on how threads share the rows
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
COMPILE: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


def over_rows(kernel: Callable[..., None], rows: int, *args: Tensor | float) -> None:
    """``kernel(*args, start, stop)`` on as many threads as torch uses; tensors are handed over as views, without their gradients."""
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in args]
    workers = min(torch.get_num_threads(), rows)
    bounds = [rows * i // workers for i in range(workers + 1)]
    tasks = [partial(kernel, *arrays, *bounds[i : i + 2]) for i in range(workers)]
    openmp = _openmp() if workers > 1 else None
    if workers == 1:
        tasks[0]()
    elif openmp is not None:
        _team(openmp, tasks)
    else:
        others = [_pool(os.getpid(), workers - 1).submit(task) for task in tasks[1:]]
        tasks[0]()
        for other in others:
            other.result()


def _team(openmp: ctypes.CDLL, tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks on torch's own threads: between its operators they go on asking for work, and would keep others from the cores."""
    left, errors = iter(tasks), []

    def work(_: int | None) -> None:
        for task in left:  # however many threads there are in the end
            try:
                task()
            except BaseException as error:  # an exception cannot pass through C
                errors.append(error)

    openmp.GOMP_parallel(WORK(work), None, len(tasks), 0)
    if errors:
        raise errors[0]


@cache
def _openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP that torch brought and uses, where it does."""
    found = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    return ctypes.CDLL(str(found[0])) if found else None


@cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Own threads where torch's cannot be had; one pool a process, because threads do not survive a fork."""
    return ThreadPoolExecutor(workers, thread_name_prefix="rows")


@njit(inline="always")
def exp(x):  # type: ignore[no-untyped-def]
    """e^x to 2e-7 of itself from -87 to 87, above as at 87, below zero: 2^k e^r with k = round(x / log 2), e^r by Cephes' polynomial."""
    z = F(87.0) if x > F(87.0) else x  # in this order, what is no number stays none
    z = F(-88.0) if z < F(-88.0) else z  # here 2^k has become zero
    shifted = F(z * LOG2_E + ROUND)
    k = shifted - ROUND
    r = (z - k * LN2_HIGH) - k * LN2_LOW
    p = F(1.9875691500e-4) * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    power = np.int32((shifted.view(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)  # k stands in the last bits of shifted
    return power * (p * r * r + r + F(1.0))


@njit(inline="always")
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^-x)."""
    return F(1.0) / (F(1.0) + exp(-x))


@njit(**COMPILE, fastmath={"contract"})
def swiglu(gate_up, out, start, stop):  # type: ignore[no-untyped-def]
    """(N, 2 F) -> (N, F)."""
    width = out.shape[1]
    for i in range(start, stop):
        gate, up, y = gate_up[i, :width], gate_up[i, width:], out[i]
        for j in range(width):
            y[j] = gate[j] * sigmoid(gate[j]) * up[j]


@njit(**COMPILE, fastmath={"contract"})
def swiglu_backward(gate_up, grad, out, again, start, stop):  # type: ignore[no-untyped-def]
    """(N, 2 F) and (N, F) -> (N, 2 F), and the (N, F) of ``swiglu`` again; silu' = s + silu (1 - s) with s the sigmoid."""
    width = grad.shape[1]
    for i in range(start, stop):
        gate, up, dy, d_gate, d_up, y = gate_up[i, :width], gate_up[i, width:], grad[i], out[i, :width], out[i, width:], again[i]
        for j in range(width):
            s = sigmoid(gate[j])
            silu = gate[j] * s
            y[j] = silu * up[j]
            d_up[j] = dy[j] * silu
            d_gate[j] = dy[j] * up[j] * (s + silu * (F(1.0) - s))


@njit(**COMPILE, fastmath={"contract", "reassoc"})
def rms_norm(x, weight, eps, out, inverse, start, stop):  # type: ignore[no-untyped-def]
    """(N, D), (D,) -> (N, D) and the (N,) factors 1 / rms."""
    dim = x.shape[1]
    for i in range(start, stop):
        row, y = x[i], out[i]
        square = F(0.0)
        for j in range(dim):
            square += row[j] * row[j]
        r = F(1.0) / np.sqrt(square / F(dim) + F(eps))
        inverse[i] = r
        for j in range(dim):
            y[j] = row[j] * r * weight[j]


@njit(**COMPILE, fastmath={"contract", "reassoc"})
def rms_norm_backward(x, weight, inverse, grad, out, weight_grads, start, stop):  # type: ignore[no-untyped-def]
    """Rows of block b, one after the other, into ``out`` (N, D) and, summed, into ``weight_grads[b]``; counts blocks, not rows."""
    rows, dim = x.shape
    for block in range(start, stop):
        dw = weight_grads[block]
        dw[:] = F(0.0)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
            row, dy, dx, r = x[i], grad[i], out[i], inverse[i]
            along = F(0.0)
            for j in range(dim):
                along += row[j] * dy[j] * weight[j]
            along *= r * r * r / F(dim)
            for j in range(dim):
                dw[j] += row[j] * r * dy[j]
                dx[j] = r * weight[j] * dy[j] - along * row[j]


@njit(**COMPILE, fastmath={"contract"})
def turn(x, first, cos, sin, heads, out, out_first, start, stop):  # type: ignore[no-untyped-def]
    """Turn ``heads`` heads of D features, from column ``first`` of ``x`` to column ``out_first`` of ``out``; row i stands at i modulo T."""
    length, half = cos.shape
    for i in range(start, stop):
        c, s = cos[i % length], sin[i % length]
        for head in range(heads):
            a, b = first + 2 * half * head, out_first + 2 * half * head
            left, right = x[i, a : a + half], x[i, a + half : a + 2 * half]
            left_out, right_out = out[i, b : b + half], out[i, b + half : b + 2 * half]
            for j in range(half):
                left_out[j] = left[j] * c[j] - right[j] * s[j]
                right_out[j] = right[j] * c[j] + left[j] * s[j]
