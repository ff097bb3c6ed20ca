"""The simplex of mixtures, with floors and caps per domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array
from src.nanollama.config import ConfigError

from .options import SpaceConfig

TOLERANCE = 1e-6


@dataclass(frozen=True)
class MixtureSpace:
    """``{w in R^K: sum(w) = 1, floor <= w <= cap}``, or, for a discrete problem, only the mixtures in ``choices`` (n, K)."""

    domains: tuple[str, ...]
    floor: tuple[float, ...]
    cap: tuple[float, ...]
    choices: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    def from_config(cls, options: SpaceConfig, choices: Sequence[Sequence[float]] | None = None) -> MixtureSpace:
        """Build from the options; a :class:`ConfigError` says which bound excludes every mixture."""
        domains = options.domains
        if len(domains) < 2 or len(set(domains)) != len(domains):
            raise ConfigError(f"space.domains: at least two different names are needed, got {list(domains)}")
        for key, bounds in (("floors", options.floors), ("caps", options.caps)):
            unknown = sorted(set(bounds) - set(domains))
            if unknown:
                raise ConfigError(f"space.{key}: no domain is called {unknown[0]!r}; the domains are {list(domains)}")
        floor = tuple(float(options.floors.get(name, 0.0)) for name in domains)
        cap = tuple(float(options.caps.get(name, 1.0)) for name in domains)
        for name, low, high in zip(domains, floor, cap, strict=True):
            if low > high:
                raise ConfigError(f"space: the floor of {name!r} ({low}) is above its cap ({high})")
        if sum(floor) > 1 + TOLERANCE:
            raise ConfigError(f"space.floors sum to {sum(floor):g}, above 1: no mixture is left; lower one of them")
        if sum(cap) < 1 - TOLERANCE:
            raise ConfigError(f"space.caps sum to {sum(cap):g}, below 1: no mixture is left; raise one of them")
        space = cls(domains, floor, cap)
        if choices is None:
            return space
        for row in choices:
            space.validate(row)
        return cls(domains, floor, cap, tuple(tuple(row) for row in choices))  # as given: a table is looked up by these very numbers

    @property
    def dim(self) -> int:
        """Number of domains K."""
        return len(self.domains)

    def check_stored(self, names: Iterable[str]) -> None:
        """Raise ConfigError unless stored trials (columns ``w.<domain>``) mix these very domains: a corpus may have changed since."""
        stored = {name.removeprefix("w.") for name in names if name.startswith("w.")}
        if stored != set(self.domains):
            raise ConfigError(
                f"this study mixes the domains {sorted(stored)}, and now there are {sorted(self.domains)}; "
                "bring back the old ones, or take another run_dir for a study of the new ones"
            )

    def validate(self, weights: Sequence[float]) -> Array:
        """Return the mixture as an array that sums to 1 exactly in floating point, or say what is wrong with it."""
        w = np.asarray(weights, dtype=float)
        if w.shape != (self.dim,) or not np.all(np.isfinite(w)):
            raise ConfigError(f"weights: {self.dim} numbers are needed, one per domain {list(self.domains)}, got {list(weights)}")
        if abs(w.sum() - 1) > TOLERANCE:
            raise ConfigError(f"weights must sum to 1, got {w.sum():.8g} from {w.tolist()}; divide by the sum")
        outside = (w < np.array(self.floor) - TOLERANCE) | (w > np.array(self.cap) + TOLERANCE)
        if outside.any():
            i = int(np.argmax(outside))
            raise ConfigError(f"weights: {self.domains[i]!r} is {w[i]:.6g}, allowed is {self.floor[i]:g} to {self.cap[i]:g}")
        w = np.clip(w, 0.0, None)
        return w / w.sum()

    def project(self, points: Array) -> Array:
        """Euclidean projection of (n, K) points onto the space (bisection on the shift that makes the clipped sum 1)."""
        points = np.atleast_2d(points)
        low, high = np.array(self.floor), np.array(self.cap)
        left = (low - points).min(axis=1) - 1.0
        right = (high - points).max(axis=1) + 1.0
        for _ in range(60):
            shift = (left + right) / 2
            over = np.clip(points + shift[:, None], low, high).sum(axis=1) > 1
            right, left = np.where(over, shift, right), np.where(over, left, shift)
        w = np.clip(points + ((left + right) / 2)[:, None], low, high)
        return w / w.sum(axis=1, keepdims=True)

    def corners(self) -> Array:
        """(K, K): row i has as much of domain i as is allowed, the rest shared evenly; without caps the unit vectors."""
        return self._snap(self.project(np.eye(self.dim) * 1e3))

    def centroid(self) -> Array:
        """(K,): the mixture nearest to uniform."""
        return self._snap(self.project(np.full((1, self.dim), 1 / self.dim)))[0]

    def sample(self, n: int, rng: np.random.Generator, concentration: float = 1.0) -> Array:
        """Draw (n, K) mixtures: Dirichlet above the floors where no cap binds, else uniform on the polytope.

        The capped case is a Gibbs sampler that moves mass between random pairs of domains, each move uniform over what the
        bounds allow; its stationary law is uniform whatever the bounds.
        """
        if self.choices is not None:
            return np.array(self.choices)[rng.integers(len(self.choices), size=n)]
        floor, cap = np.array(self.floor), np.array(self.cap)
        free = 1 - floor.sum()
        if np.all(cap >= floor + free - TOLERANCE):
            return floor + free * rng.dirichlet(np.full(self.dim, concentration), size=n)
        if concentration != 1.0:
            return self.project(rng.dirichlet(np.full(self.dim, concentration), size=n))
        w = np.tile(self.centroid(), (n, 1))
        rows = np.arange(n)
        for _ in range(12 * self.dim):
            i = rng.integers(self.dim, size=n)
            j = (i + rng.integers(1, self.dim, size=n)) % self.dim
            total = w[rows, i] + w[rows, j]
            low = np.maximum(floor[i], total - cap[j])
            high = np.minimum(cap[i], total - floor[j])
            w[rows, i] = low + rng.random(n) * np.maximum(high - low, 0)
            w[rows, j] = total - w[rows, i]
        return w

    def transfers(self, weights: Array, sizes: Sequence[float]) -> Array:
        """Every mixture reached by moving ``size`` from one domain to another (or as much of it as the bounds allow)."""
        if self.choices is not None:
            return np.array(self.choices)
        moved = []
        for size in sizes:
            room_out = np.minimum(weights - np.array(self.floor), size)
            room_in = np.minimum(np.array(self.cap) - weights, size)
            for i in range(self.dim):
                for j in range(self.dim):
                    amount = min(room_out[i], room_in[j])
                    if i != j and amount > 1e-9:
                        w = weights.copy()
                        w[i] -= amount
                        w[j] += amount
                        moved.append(w)
        return np.array(moved).reshape(-1, self.dim)

    def _snap(self, points: Array) -> Array:
        """The nearest choice of a discrete problem; the points themselves otherwise."""
        if self.choices is None:
            return points
        choices = np.array(self.choices)
        nearest = ((points[:, None, :] - choices) ** 2).sum(axis=2).argmin(axis=1)
        return choices[nearest]
