"""Muon for matrices (Jordan et al. 2024; scaled as by Liu et al. 2025, arXiv:2502.16982), without waiting for the device.

``torch.optim.Muon`` computes the same update (the tests hold us to it) but reads its learning rate on the host and cannot leave out a
step that the device found to be non-finite, so it would stall every step and cannot be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic with the steepest slope at 0 that keeps singular values near 1
ITERATIONS = 5
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """w <- (1 - lr * weight_decay) w - 0.2 sqrt(max(rows, columns)) lr * orthogonal(nesterov momentum of the gradient).

    The scale gives updates the root mean square of AdamW's, so that both take the same learning rate. ``found_inf`` (0-d tensor, set by
    the caller as for torch's fused optimisers) other than 0 leaves parameters and momentum as they were.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[nn.Parameter], lr: Tensor, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, weight: Tensor, lr: Tensor, weight_decay: float, momentum: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean, grad = state["momentum"], weight.grad
        assert grad is not None
        if self.found_inf is not None:
            skip = self.found_inf > 0
            grad = torch.where(skip, mean, grad)  # leaves the mean as it is
            lr = torch.where(skip, 0.0, lr)
        mean.lerp_(grad, 1 - momentum)
        update = orthogonal(grad.lerp(mean, momentum))
        weight.mul_(1 - lr * weight_decay)
        weight.sub_(update.to(weight.dtype) * (0.2 * math.sqrt(max(weight.shape)) * lr))


def orthogonal(matrix: Tensor) -> Tensor:
    """Near U V^T of the singular value decomposition U S V^T, by Newton-Schulz iteration in bfloat16; same shape."""
    if isinstance(matrix, DTensor):  # gathered once, and not for every product of the iteration
        whole = orthogonal(matrix.bfloat16().full_tensor())  # type: ignore[attr-defined]
        return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
