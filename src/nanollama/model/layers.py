"""The small layers: linear map, RMS normalisation, gated feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast would make of ``x`` in a matrix product."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def watched(module: nn.Module) -> bool:
    """Whether hooks expect to be called when ``module`` is."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


class Linear(nn.Linear):
    """A bias-free linear map whose weight is left to ``Transformer.init_weights``, without drawing from the global generator."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if cpu.fusible(x) and self.weight.dtype == x.dtype:
            return cpu.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)  # autocast leaves half precision behind


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020, arXiv:2002.05202); gate and up are one matrix, in this order."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * hidden)
        self.down = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        plain = compute_dtype(x) == x.dtype == self.down.weight.dtype
        if cpu.fusible(x) and plain and not watched(self.gate_up) and not watched(self.down):
            return cpu.feed_forward(x, self.gate_up.weight, self.down.weight)
        gate_up = self.gate_up(x)
        return self.down(cpu.swiglu(gate_up) if cpu.fusible(gate_up) else cpu.plain_swiglu(gate_up))
