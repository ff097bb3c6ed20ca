"""Loss scaling for fp16, whose gradients would otherwise vanish below 6e-8 (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

import torch
from torch import Tensor

START = 65536.0
INTERVAL = 2000  # finite steps before the scale doubles


class LossScale:
    """Halves after a step whose gradient overflowed, doubles after ``INTERVAL`` finite ones in a row.

    The rule of ``torch.amp.GradScaler``, with the decision taken from the gradient norm over all ranks instead of rank by rank, so that
    shards agree, and with no host synchronisation whatever the optimiser. For fp32 and bf16 the scale is 1 and stays so.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.active = precision == "fp16"
        self.value = torch.tensor(START if self.active else 1.0, device=device)
        self.streak = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, finite: Tensor) -> None:
        """Adapt to the step just taken; ``finite`` is a 0-d bool on the device."""
        if not self.active:
            return
        self.streak.add_(1).mul_(finite)
        grown = self.streak == INTERVAL
        self.value.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5))
        self.streak.mul_(~grown)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"value": self.value, "streak": self.streak} if self.active else {}
