"""Power laws of the excess loss, E(x) = c + a x^-b, with intervals, or the word that the points do not determine them.

The exact floor is already taken off, so ``c`` is no free constant of nature: it is what more of ``x`` alone cannot remove (too few steps,
too small a model). The fit minimises relative squared errors. Given (b, c) the best ``a`` is in closed form, so the two-dimensional
profile is evaluated on a grid; intervals are its level sets (Bates and Watts 1988, section 6.1), the best grid point is then polished.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array

EXPONENTS = np.geomspace(0.02, 5.0, 300)
PLATEAUS = np.linspace(0.0, 0.999, 250)  # in units of the smallest excess
LEVEL = 0.95
LEAST_SPAN = 4.0  # factor between the smallest and the largest x
LEAST_POINTS = 4  # one more than there are parameters


@dataclass(frozen=True)
class PowerLaw:
    """The fitted law, 95 % intervals of exponent and plateau, and why the exponent is not identifiable, if it is not."""

    a: float
    b: float
    c: float
    b_interval: tuple[float, float]
    c_interval: tuple[float, float]
    problem: str = ""

    def __call__(self, x: Array) -> Array:
        return self.c + self.a * np.asarray(x, float) ** -self.b

    def __str__(self) -> str:
        if self.problem:
            return f"not identifiable: {self.problem}"
        (low, high), (least, most) = self.b_interval, self.c_interval
        return f"exponent {self.b:.3g} [{low:.3g}, {high:.3g}], plateau {self.c:.3g} [{least:.3g}, {most:.3g}]"


def fit(x: Array, y: Array, se: Array | None = None) -> PowerLaw | None:
    """Fit positive ``y`` over positive ``x``, both (n,); ``se`` are standard errors of y. None for fewer than two different x.

    The noise is taken to be relative, of the size of the residuals or of ``se``, whichever is larger.
    """
    from scipy.stats import t

    x, y = np.asarray(x, float), np.asarray(y, float)
    if (x <= 0).any() or (y <= 0).any():
        raise ValueError("a power law needs positive x and positive excess losses")
    distinct = len(np.unique(x))
    if distinct < 2:
        return None
    scale = np.exp(np.log(x).mean())  # keeps a away from overflow
    residuals, amplitudes = _profile(x / scale, y)
    row, column = np.unravel_index(residuals.argmin(), residuals.shape)
    a, b, c, least = _polish(x / scale, y, amplitudes[row, column], EXPONENTS[row], PLATEAUS[column] * y.min())
    freedom = max(1, len(x) - 3)
    noise = max(least / freedom, 0.0 if se is None else float(np.mean((np.asarray(se) / y) ** 2)))
    inside = residuals <= least + t.ppf((1 + LEVEL) / 2, freedom) ** 2 * noise
    inside[row, column] = True  # the grid has no point as good as the best one
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    b_interval = min(b, float(EXPONENTS[rows[0]])), max(b, float(EXPONENTS[rows[-1]]))
    c_interval = min(c, float(PLATEAUS[columns[0]] * y.min())), max(c, float(PLATEAUS[columns[-1]] * y.min()))
    problem = ""
    if distinct < LEAST_POINTS:
        problem = f"{distinct} different x, at least {LEAST_POINTS} are needed"
    elif x.max() / x.min() < LEAST_SPAN:
        problem = f"x spans a factor of {x.max() / x.min():.2g}, at least {LEAST_SPAN:g} is needed"
    elif rows[0] == 0 or rows[-1] == len(EXPONENTS) - 1:
        problem = f"the points allow exponents from {b_interval[0]:.2g} to {b_interval[1]:.2g}, an end of the range searched"
    return PowerLaw(a * scale**b, b, c, b_interval, c_interval, problem)


def _profile(x: Array, y: Array) -> tuple[Array, Array]:
    """Sum of squared relative errors, and the ``a`` that minimises it, for every exponent (rows) and plateau (columns) of the grid."""
    basis = x ** -EXPONENTS[:, None] / y  # (b, n)
    rest = 1 - PLATEAUS[:, None] * y.min() / y  # (c, n)
    squares = (basis**2).sum(axis=1, keepdims=True)
    a = basis @ rest.T / squares  # positive, since both factors are
    return ((rest**2).sum(axis=1) - a**2 * squares).clip(min=0), a


def _polish(x: Array, y: Array, a: float, b: float, c: float) -> tuple[float, float, float, float]:
    """The minimum near a grid point: a, b, c and the sum of squared relative errors there."""
    from scipy.optimize import least_squares

    bounds = ([-np.inf, EXPONENTS[0], 0.0], [np.inf, EXPONENTS[-1], y.min()])
    start = [np.log(a), np.clip(b, EXPONENTS[0] * 1.001, EXPONENTS[-1] * 0.999), max(c, 1e-6 * y.min())]
    found = least_squares(lambda p: (p[2] + np.exp(p[0]) * x ** -p[1]) / y - 1, start, bounds=bounds, x_scale="jac", xtol=1e-12, ftol=1e-12)
    plateau = 0.0 if found.x[2] < 1e-6 * y.min() else float(found.x[2])  # the solver stays inside its bounds
    return float(np.exp(found.x[0])), float(found.x[1]), plateau, float(2 * found.cost)
