"""What the steps of a run add up to, kept on the device: adding never waits for it, reading does."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed import Ranks


class Tally:
    """Sums over steps, 0-d tensors.

    ``loss`` and ``steps``: this rank's losses and their number since the last log line, finite steps only. ``skipped``: steps left out
    because their gradient was not finite, in all; ``in_a_row``: of these, the ones since the last finite step.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss: Tensor, finite: Tensor) -> None:
        """Count one step; ``finite`` is a 0-d bool."""
        self.loss += torch.where(finite, loss, 0.0)
        self.steps += finite
        self.skipped += ~finite
        self.in_a_row.add_(1).mul_(~finite)

    def average(self, ranks: Ranks) -> None:
        """Make the losses those of all ranks, so that all log and store one and the same number."""
        ranks.sum(self.loss).div_(ranks.world)

    def start_interval(self) -> None:
        """Forget the losses."""
        self.loss.zero_()
        self.steps.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return vars(self).copy()
