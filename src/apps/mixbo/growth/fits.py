"""Curves through what a growth has measured: loss against parameters, and how shapes' ratios change with size. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array

Interval = tuple[float, float]

ALPHAS = np.geomspace(0.02, 2.0, 400)  # 1.2 % apart
DRAWS = 300  # bootstrap
DECADE = 10.0  # ratio of parameters below which an exponent cannot be told
WIDE = 0.3  # half width of an interval (of alpha: as a share of it) from which on the exponent is not told either
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
    """``ratio ~ params^slope`` with a 90 % interval; ``doubt``: why it is not identifiable, or empty."""

    name: str
    slope: float
    interval: Interval
    first: float
    last: float
    doubt: str = ""


def power_law(params: Sequence[float], losses: Sequence[float], errors: Sequence[float], seed: int = 0) -> PowerLaw | None:
    """Variable projection: alpha on a grid, floor and scale by weighted least squares with both >= 0; None for fewer than three sizes.

    Intervals are from a bootstrap of the residuals, scaled for the three constants they were fitted with. Errors that are not positive
    weigh like the mean of the others.
    """
    n, y = np.asarray(params, dtype=float), np.asarray(losses, dtype=float)
    if len(np.unique(n)) < 3:
        return None
    x, weights = n / n.min(), _weights(np.asarray(errors, dtype=float))
    (floor, scale, alpha) = (float(values[0]) for values in _fit(x, y[None], weights))
    curve = floor + scale * x**-alpha
    left = (y - curve) * np.sqrt(weights) * math.sqrt(len(n) / max(1, len(n) - 3))
    drawn = np.random.default_rng(seed).choice(left, size=(DRAWS, len(n))) / np.sqrt(weights)
    floors, _, alphas = _fit(x, curve + drawn, weights)
    span = float(n.max() / n.min())
    doubt = _doubt(len(n), span, alpha, _interval(alphas))
    return PowerLaw(floor, scale * n.min() ** alpha, alpha, _interval(floors), _interval(alphas), len(n), span, doubt)


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
    span = float(np.exp(np.ptp(x)))
    doubt = _narrow(len(x), span) or (f"the exponent could be anything from {rise - half:.2g} to {rise + half:.2g}" if half > WIDE else "")
    return Slope(name, rise, (rise - half, rise + half), float(ratios[0]), float(ratios[-1]), doubt)


def _weights(errors: Array) -> Array:
    known = np.isfinite(errors) & (errors > 0)
    if not known.any():
        return np.ones_like(errors)
    filled = np.where(known, errors, errors[known].mean())
    return np.maximum(filled, 1e-12) ** -2


def _fit(x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    """(draws,) floor, scale and alpha of the least weighted squares for each row of ``y`` (draws, points)."""
    x_a = x[None, :] ** -ALPHAS[:, None]  # (alphas, points)
    total = weights.sum()
    mean_x, mean_y = x_a @ weights / total, y @ weights / total
    centred = x_a - mean_x[:, None]
    products = (y - mean_y[:, None]) * weights @ centred.T  # (draws, alphas)
    scale = np.maximum(products / (centred**2 @ weights), 0.0)
    floor = mean_y[:, None] - scale * mean_x
    through_zero = (y * weights) @ x_a.T / (x_a**2 @ weights)
    scale, floor = np.where(floor < 0, through_zero, scale), np.maximum(floor, 0.0)
    left = y[:, None, :] - floor[..., None] - scale[..., None] * x_a
    best = np.argmin(left**2 @ weights, axis=1)
    rows = np.arange(len(y))
    return floor[rows, best], scale[rows, best], ALPHAS[best]


def _interval(values: Array) -> Interval:
    low, high = np.percentile(values, (5, 95))
    return float(low), float(high)


def _doubt(points: int, span: float, alpha: float, alphas: Interval) -> str:
    """Why the exponent cannot be told from these points; empty if it can."""
    if _narrow(points, span):
        return _narrow(points, span)
    if (alphas[1] - alphas[0]) / 2 > WIDE * alpha:
        return f"alpha could be anything from {alphas[0]:.2g} to {alphas[1]:.2g}"
    return ""


def _narrow(points: int, span: float) -> str:
    if points < FEWEST:
        return f"{points} points, {FEWEST} are needed"
    return f"parameters span a factor of {span:.2g}, {DECADE:g} is needed" if span < DECADE else ""
