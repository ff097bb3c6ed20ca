"""Power laws of the excess loss, E(x) = c + a x^-b, with intervals, or the word that the points do not determine them.

The exact floor is already taken off, so ``c`` is no free constant of nature: it is what more of ``x`` alone cannot remove (too few steps,
too small a model). The fit minimises relative squared errors. Given (b, c) the best ``a`` is in closed form, so the two-dimensional
profile is evaluated on a grid, and intervals are its level sets (Bates and Watts 1988, section 6.1): no starting point, no local minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

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
    basis = (x / scale) ** -EXPONENTS[:, None] / y  # (b, n)
    rest = 1 - PLATEAUS[:, None] * y.min() / y  # (c, n)
    a = basis @ rest.T / (basis**2).sum(axis=1, keepdims=True)  # (b, c), positive since both factors are
    residuals = ((rest**2).sum(axis=1) - a**2 * (basis**2).sum(axis=1, keepdims=True)).clip(min=0)
    best = np.unravel_index(residuals.argmin(), residuals.shape)
    freedom = max(1, len(x) - 3)
    noise = max(residuals[best] / freedom, 0.0 if se is None else float(np.mean((np.asarray(se) / y) ** 2)))
    inside = residuals <= residuals[best] + t.ppf((1 + LEVEL) / 2, freedom) ** 2 * noise
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    b_interval = float(EXPONENTS[rows[0]]), float(EXPONENTS[rows[-1]])
    c_interval = float(PLATEAUS[columns[0]] * y.min()), float(PLATEAUS[columns[-1]] * y.min())
    exponent = float(EXPONENTS[best[0]])
    problem = ""
    if distinct < LEAST_POINTS:
        problem = f"{distinct} different x, at least {LEAST_POINTS} are needed"
    elif x.max() / x.min() < LEAST_SPAN:
        problem = f"x spans a factor of {x.max() / x.min():.2g}, at least {LEAST_SPAN:g} is needed"
    elif rows[0] == 0 or rows[-1] == len(EXPONENTS) - 1:
        problem = f"the points allow exponents from {b_interval[0]:.2g} to {b_interval[1]:.2g}, an end of the range searched"
    amplitude = float(a[best] * scale**exponent)
    return PowerLaw(amplitude, exponent, float(PLATEAUS[best[1]] * y.min()), b_interval, c_interval, problem)
