"""Curves through what a growth has measured: loss against parameters, and how shapes' ratios change with size. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

ALPHAS = np.geomspace(0.02, 2.0, 120)
DRAWS = 300  # bootstrap
DECADE = 10.0  # ratio of parameters below which an exponent cannot be told
WIDE = 0.3  # half width of alpha's interval, as a share of alpha, from which on it is not told either
FEWEST = 5  # points for a power law with its three constants, and one to see how well it fits


@dataclass(frozen=True)
class PowerLaw:
    """``loss = floor + scale * params^-alpha`` with 90 % intervals; ``doubt``: why it is not identifiable, or empty."""

    floor: float
    scale: float
    alpha: float
    floors: Interval
    alphas: Interval
    points: int
    span: float  # largest / smallest number of parameters
    doubt: str

    def loss(self, params: Array | float) -> Array | float:
        """Value at a number of parameters."""
        return self.floor + self.scale * np.asarray(params, dtype=float) ** -self.alpha


@dataclass(frozen=True)
class Slope:
    """``ratio ~ params^slope`` with a 90 % interval."""

    name: str
    slope: float
    interval: Interval
    first: float
    last: float


def power_law(params: Sequence[float], losses: Sequence[float], errors: Sequence[float], seed: int = 0) -> PowerLaw | None:
    """Variable projection: alpha on a grid, floor and scale by weighted least squares with both >= 0; None for fewer than three points.

    Intervals are from a bootstrap over points. Errors that are not positive weigh like the mean of the others.
    """
    n, y = np.asarray(params, dtype=float), np.asarray(losses, dtype=float)
    if len(np.unique(n)) < 3:
        return None
    weights = _weights(np.asarray(errors, dtype=float))
    best = _fit(n, y, weights)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        rows = rng.integers(len(n), size=len(n))
        if len(np.unique(n[rows])) >= 3:
            draws.append(_fit(n[rows], y[rows], weights[rows]))
    floors, alphas = (_interval([draw[i] for draw in draws]) for i in (0, 2))
    span = float(n.max() / n.min())
    return PowerLaw(*best, floors, alphas, len(n), span, _doubt(len(n), span, best[2], alphas))


def slope(name: str, params: Sequence[float], ratios: Sequence[float]) -> Slope | None:
    """Least squares of log ratio on log parameters with Student's interval; None where nothing varies or points are too few."""
    x, y = np.log(np.asarray(params, dtype=float)), np.log(np.asarray(ratios, dtype=float))
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy.special import stdtrit

    centred = x - x.mean()
    rise = float(centred @ y / (centred @ centred))
    left = y - y.mean() - rise * centred
    error = math.sqrt(float(left @ left) / (len(x) - 2) / float(centred @ centred))
    half = float(stdtrit(len(x) - 2, 0.95)) * error
    return Slope(name, rise, (rise - half, rise + half), float(ratios[0]), float(ratios[-1]))


def _weights(errors: Array) -> Array:
    known = np.isfinite(errors) & (errors > 0)
    if not known.any():
        return np.ones_like(errors)
    filled = np.where(known, errors, errors[known].mean())
    return np.maximum(filled, 1e-12) ** -2


def _fit(n: Array, y: Array, weights: Array) -> tuple[float, float, float]:
    """(floor, scale, alpha) of the least weighted squares; the grid is refined once around its best."""
    best = min((_project(n, y, weights, alpha) for alpha in ALPHAS), key=lambda found: found[0])
    step = ALPHAS[1] / ALPHAS[0]
    finer = np.geomspace(best[3] / step, best[3] * step, 21)
    best = min((_project(n, y, weights, alpha) for alpha in finer), key=lambda found: found[0])
    return best[1], best[2], best[3]


def _project(n: Array, y: Array, weights: Array, alpha: float) -> tuple[float, float, float, float]:
    """(squares, floor, scale, alpha): the constants in closed form; where one would be negative it is 0."""
    x = n**-alpha
    total = weights.sum()
    mx, my = (weights @ x) / total, (weights @ y) / total
    spread = weights @ (x - mx) ** 2
    scale = max(0.0, float(weights @ ((x - mx) * (y - my)) / spread)) if spread > 0 else 0.0
    floor = my - scale * mx
    if floor < 0:
        floor, scale = 0.0, float(weights @ (x * y) / (weights @ x**2))
    return float(weights @ (y - floor - scale * x) ** 2), float(floor), scale, float(alpha)


def _interval(values: Sequence[float]) -> Interval:
    if not values:
        return -math.inf, math.inf
    low, high = np.percentile(values, (5, 95))
    return float(low), float(high)


def _doubt(points: int, span: float, alpha: float, alphas: Interval) -> str:
    """Why the exponent cannot be told from these points; empty if it can."""
    if points < FEWEST:
        return f"{points} points, {FEWEST} are needed"
    if span < DECADE:
        return f"parameters span a factor of {span:.2g}, {DECADE:g} is needed"
    if (alphas[1] - alphas[0]) / 2 > WIDE * alpha:
        return f"alpha could be anything from {alphas[0]:.2g} to {alphas[1]:.2g}"
    return ""
