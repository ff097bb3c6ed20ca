"""What a difference between two shapes is worth, given what the same seeds make of others. Pure.

Losses are taken as ``shape + seed + residual``: a seed (initial weights, order of the data) shifts all shapes alike, so paired
differences keep only the residuals, whose variance is pooled over every shape of a cohort (two-way analysis of variance without
replication; Fisher 1925).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POWER_80 = 0.8416  # normal quantile: an effect that is seen four times in five


@dataclass(frozen=True)
class Noise:
    """Sum of squared residuals and its degrees of freedom."""

    squares: float = 0.0
    freedom: int = 0

    def __add__(self, other: Noise) -> Noise:
        return Noise(self.squares + other.squares, self.freedom + other.freedom)

    @property
    def sigma(self) -> float | None:
        """Standard deviation of a residual in nats; None: not known yet."""
        return math.sqrt(self.squares / self.freedom) if self.freedom else None

    def error(self, seeds: int) -> float:
        """Standard error of a paired difference over ``seeds`` seeds; infinite before anything is known."""
        return math.inf if self.sigma is None or not seeds else self.sigma * math.sqrt(2 / seeds)

    def quantile(self, z: float) -> float:
        """What Student's t with these degrees of freedom has in place of ``z`` standard deviations of a normal."""
        from scipy.special import ndtr, stdtrit

        return float(stdtrit(self.freedom, ndtr(z))) if self.freedom else math.inf

    def detectable(self, seeds: int, z: float) -> float:
        """The smallest gain that ``seeds`` seeds show with a probability of 80 %, nats."""
        return (self.quantile(z) + POWER_80) * self.error(seeds)

    def seeds_for(self, gain: float, z: float) -> int | None:
        """Seeds that show ``gain`` with a probability of 80 %; None where no number does."""
        if self.sigma is None or gain <= 0:
            return None
        return math.ceil(2 * ((self.quantile(z) + POWER_80) * self.sigma / gain) ** 2)


NO_NOISE = Noise()  # nothing is known yet


def residuals(losses: Sequence[Sequence[float]]) -> Noise:
    """The noise in a complete table of (shapes, seeds) losses."""
    table = np.asarray(losses, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        return NO_NOISE
    left = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return Noise(float((left**2).sum()), (table.shape[0] - 1) * (table.shape[1] - 1))
