"""Median and quartiles over seeds, and costs to reach a threshold, with runs that never did as lower bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array

Steps = Sequence[tuple[float, float]]  # (cost, value from there on), costs increasing

POINTS = 600  # of one line that are drawn


def grid(curves: Sequence[Steps]) -> Array:
    """Every cost at which a curve changes (evenly thinned, with the first and the last)."""
    costs = np.unique([cost for curve in curves for cost, _ in curve])
    return costs[np.unique(np.linspace(0, len(costs) - 1, POINTS).astype(int))]


def shared(curves: Sequence[Steps]) -> Array:
    """``grid`` from where the last curve begins to where the first one ends: beyond, one study would be judged by what it never spent."""
    if not curves:
        return np.empty(0)
    costs = grid(curves)
    return costs[(costs >= max(curve[0][0] for curve in curves)) & (costs <= min(curve[-1][0] for curve in curves))]


def at(curve: Steps, costs: Array) -> Array:
    """Value of a step function at each cost: NaN before it begins, the last value after it ends (a stopped study keeps its answer)."""
    x, y = (np.array(column, dtype=float) for column in zip(*curve, strict=True))
    index = np.searchsorted(x, costs * (1 + 1e-12), side="right") - 1
    return np.where(index >= 0, y[np.maximum(index, 0)], np.nan)


def quartiles(curves: Sequence[Steps], costs: Array) -> tuple[Array, Array, Array]:
    """25 %, 50 % and 75 % over curves at each cost; NaN where a curve has not begun."""
    values = np.array([at(curve, costs) for curve in curves])
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    return low, middle, high


@dataclass(frozen=True)
class Reached:
    """Median cost over runs to get to a threshold; ``bound``: so few got there that this is only a lower bound."""

    cost: float
    bound: bool
    reached: int
    runs: int

    def __str__(self) -> str:
        return f"{'> ' if self.bound else ''}{self.cost:.3g}"


def cost_to_stay(curve: Steps, threshold: float) -> float | None:
    """Cost from which on the curve is never above the threshold again; None if it ends above."""
    since = None
    for cost, value in curve:
        if value > threshold:
            since = None
        elif since is None:
            since = cost
    return since


def median_cost(curves: Sequence[Steps], thresholds: Sequence[float]) -> Reached:
    """Median of ``cost_to_stay`` with one threshold a curve (the upper one of two middle values).

    A run that did not get there counts as dearer than all that did; where it is the median itself, the cost that such runs have
    spent is a lower bound.
    """
    found = [cost_to_stay(curve, threshold) for curve, threshold in zip(curves, thresholds, strict=True)]
    costs = sorted(cost for cost in found if cost is not None)
    middle = len(found) // 2
    if middle < len(costs):
        return Reached(costs[middle], False, len(costs), len(found))
    ends = [curve[-1][0] for curve, cost in zip(curves, found, strict=True) if cost is None]
    return Reached(min(ends), True, len(costs), len(found))
