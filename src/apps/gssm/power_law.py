"""Power laws of the excess loss, E(x) = c + a x^-b, with intervals, or the word that the points do not determine them.

The exact floor is already taken off, so ``c`` is no free constant of nature: it is what more of ``x`` alone cannot remove (too few steps,
too small a model). The fit minimises relative squared errors. Given b it is linear in a and c, so the profile over b is in closed form;
intervals are its level sets (Bates and Watts 1988, section 6.1), with ends solved for between the points of a grid of exponents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array

EXPONENTS = np.geomspace(0.02, 5.0, 300)
INSIDE = 200  # exponents of an interval whose plateaus are looked at
LEVEL = 0.95
ROUNDING = 1e-20  # squared relative error that means nothing, however well the points lie on a law
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
    profile = Profile(x / scale, y)
    b, least = profile.minimum()
    a, c = profile.best(b)
    freedom = max(1, len(x) - 3)
    noise = max(least / freedom, ROUNDING, 0.0 if se is None else float(np.mean((np.asarray(se) / y) ** 2)))
    level = least + t.ppf((1 + LEVEL) / 2, freedom) ** 2 * noise
    b_interval = profile.interval(b, level)
    c_interval = profile.plateaus(b, b_interval, level)
    problem = ""
    if distinct < LEAST_POINTS:
        problem = f"{distinct} different x, at least {LEAST_POINTS} are needed"
    elif x.max() / x.min() < LEAST_SPAN:
        problem = f"x spans a factor of {x.max() / x.min():.2g}, at least {LEAST_SPAN:g} is needed"
    elif b_interval[0] <= EXPONENTS[0] or b_interval[1] >= EXPONENTS[-1]:
        problem = f"the points allow exponents from {b_interval[0]:.2g} to {b_interval[1]:.2g}, an end of the range searched"
    return PowerLaw(a * scale**b, b, c, b_interval, c_interval, problem)


class Profile:
    """Sum of squared relative errors of laws through ``x`` and ``y``, both (n,), with the best a, c >= 0 for each exponent, (k,)."""

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.y = x, y

    def squares(self, b: Array) -> Array:
        """The sums of squares, (k,)."""
        return self._fit(b)[2]

    def best(self, b: float) -> tuple[float, float]:
        """a and c of one exponent."""
        a, c, _ = self._fit(np.array([b]))
        return float(a[0]), float(c[0])

    def minimum(self) -> tuple[float, float]:
        """The best exponent, and the sum of squares there."""
        from scipy.optimize import minimize_scalar

        at = int(self.squares(EXPONENTS).argmin())
        ends = EXPONENTS[max(at - 1, 0)], EXPONENTS[min(at + 1, len(EXPONENTS) - 1)]
        found = minimize_scalar(self._one, bounds=ends, method="bounded", options={"xatol": 1e-9})
        b = min(float(found.x), float(EXPONENTS[at]), key=self._one)
        return b, self._one(b)

    def interval(self, b: float, level: float) -> tuple[float, float]:
        """The least and the largest exponent whose sum of squares is at most ``level``, as that of ``b`` is."""
        inside = np.append(EXPONENTS[self.squares(EXPONENTS) <= level], b)
        low, high = float(inside.min()), float(inside.max())
        return self._end(low, EXPONENTS[low > EXPONENTS][-1:], level), self._end(high, EXPONENTS[high < EXPONENTS][:1], level)

    def plateaus(self, b: float, interval: tuple[float, float], level: float) -> tuple[float, float]:
        """The least and the largest plateau that an exponent of ``interval`` can have with a sum of squares of at most ``level``."""
        _, plateau, rest = self._without_power(np.append(np.geomspace(*interval, INSIDE), b))
        curvature = (plateau**2).sum(axis=1)
        best = (rest * plateau).sum(axis=1) / curvature
        spread = np.sqrt(((level - (rest**2).sum(axis=1)) / curvature + best**2).clip(min=0))
        return max(0.0, float((best - spread).min())), max(0.0, float((best + spread).max()))

    def _fit(self, b: Array) -> tuple[Array, Array, Array]:
        """a, c and the sum of squares for each exponent."""
        power, plateau, rest = self._without_power(b)
        curvature = (plateau**2).sum(axis=1)
        c = ((rest * plateau).sum(axis=1) / curvature).clip(min=0)
        a = (power * (1 - c[:, None] / self.y)).sum(axis=1) / (power**2).sum(axis=1)
        c = np.where(a < 0, (1 / self.y).sum() / (1 / self.y**2).sum(), c)  # a loss that rises with x: its best law is a constant
        a = a.clip(min=0)
        return a, c, ((1 - a[:, None] * power - c[:, None] / self.y) ** 2).sum(axis=1)

    def _without_power(self, b: Array) -> tuple[Array, Array, Array]:
        """x^-b / y, and what it cannot explain of 1 / y and of 1, each (k, n)."""
        power = self.x ** -b[:, None] / self.y
        along = power / (power**2).sum(axis=1, keepdims=True)
        plateau, rest = (target - (power * target).sum(axis=1, keepdims=True) * along for target in (1 / self.y, np.ones_like(self.y)))
        return power, plateau, rest

    def _end(self, inside: float, beyond: Array, level: float) -> float:
        """Where the sum of squares passes ``level`` between ``inside`` and the grid's next exponent, of which there may be none."""
        from scipy.optimize import brentq

        return float(brentq(lambda b: self._one(b) - level, inside, beyond[0])) if len(beyond) else inside

    def _one(self, b: float) -> float:
        return float(self.squares(np.array([b]))[0])
