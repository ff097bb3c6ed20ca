r"""A scaling law plus a mixture term whose exact minimiser at the target, and whose correlation across fidelities, are set by hand.

.. math:: y(w, N, D) = E + A N^{-a} + B D^{-b} + g\,[r\,f_1(w) + \sqrt{1 - r^2}\,f_2(w)]

``f1 >= 0`` vanishes at the optimum only. ``f2`` is another bowl less its projection on ``f1``; both have unit sd under the uniform
law on the simplex, so ``r(N, D)`` *is* the Pearson correlation of a fidelity with the target, where ``r = 1``. Negative values
make cheap fidelities misleading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array
from src.nanollama.config import ConfigError

from ..options import SimulatorConfig
from ..problem import Fidelities, Metric
from ..space import MixtureSpace
from . import noisy_curve

SCALING = {"E": 1.7, "A": 400.0, "a": 0.34, "B": 410.0, "b": 0.28}  # Hoffmann et al. 2022, approach 3
TOKENS_PER_STEP = 2**19
DEFAULT_SIZES = {"20M": 2e7, "60M": 6e7, "150M": 1.5e8, "400M": 4e8, "1B": 1e9}
DEFAULT_STEPS = (1000, 2000, 4000, 8000, 16000)
SAMPLE = 20_000  # mixtures behind the standardisation and the projection: errors below 1 %


@dataclass(frozen=True)
class Wells:
    """``min_k d_k + sum_i c_ki (w_i^gamma - z_ki^gamma)^2``: zero at the first centre, positive elsewhere when the other d_k > 0."""

    centres: Array  # (wells, K), already raised to gamma
    curvature: Array  # (wells, K)
    depth: Array  # (wells,)
    gamma: float

    def __call__(self, w: Array) -> Array:
        """(n,) values of (n, K) mixtures."""
        gaps = w[:, None, :] ** self.gamma - self.centres
        return (self.depth + (self.curvature * gaps**2).sum(axis=2)).min(axis=1)


class Simulator:
    """The parametric form; built from options, a space and a fidelity grid, the same for the same seed."""

    def __init__(self, options: SimulatorConfig, space: MixtureSpace, fidelities: Fidelities | None = None) -> None:
        self.options = options
        self.domains = space.domains
        self.fidelities = fidelities or Fidelities(tuple(DEFAULT_SIZES), tuple(DEFAULT_SIZES.values()), DEFAULT_STEPS)
        names = ("loss",) if options.outputs == 1 else tuple(f"loss_{i}" for i in range(options.outputs))
        if options.accuracy:
            if options.outputs > 1:
                raise ConfigError("simulator.accuracy needs simulator.outputs=1: the best mean of accuracies has no closed form")
            names = ("accuracy",)
        self.metric = Metric(names, (1 / len(names),) * len(names), maximise=options.accuracy)
        self.flops_per_step = tuple(6 * n * TOKENS_PER_STEP for n in self.fidelities.parameters)
        rng = np.random.default_rng((options.seed, 17))
        self.optimum = self._optimum(space, rng)
        sample = rng.dirichlet(np.ones(space.dim), size=SAMPLE)
        gamma = options.gamma
        centres = np.vstack([self.optimum[None], rng.dirichlet(np.ones(space.dim), size=options.wells - 1)])
        depth = np.concatenate([[0.0], rng.uniform(0.02, 0.1, size=options.wells - 1)])
        self._bowl = Wells(centres**gamma, rng.uniform(0.5, 2.0, size=(options.wells, space.dim)), depth, gamma)
        other = rng.dirichlet(np.full(space.dim, 0.5), size=1)
        self._other = Wells(other**gamma, rng.uniform(0.5, 2.0, size=(1, space.dim)), np.zeros(1), gamma)
        f1, f2 = self._bowl(sample), self._other(sample)
        self._slope = float(np.cov(f1, f2)[0, 1] / np.var(f1, ddof=1))
        residual = f2 - self._slope * f1
        self._sd1, self._mean2, self._sd2 = float(np.std(f1)), float(residual.mean()), float(np.std(residual))
        # Per-domain losses differ from their mean by bowls that sum to zero, so the mean keeps its exact optimum.
        self._parts = Wells(
            (0.8 * np.eye(space.dim)[np.arange(options.outputs) % space.dim] + 0.2 / space.dim) ** gamma,
            np.ones((options.outputs, space.dim)),
            np.zeros(options.outputs),
            gamma,
        )
        self._check_monotone(sample[:500])

    def correlation(self, size: int, step: float) -> float:
        """Pearson correlation of a fidelity with the target under the uniform law on the simplex."""
        s, t = self.fidelities.coordinates(size, step)
        r = 1 - (1 - self.options.r_size) * (1 - float(s)) - (1 - self.options.r_step) * (1 - float(t))
        return float(np.clip(r, -1.0, 1.0))

    def values(self, weights: Array, model_size: str, step: int) -> Array:
        """(n, outputs) noise-free values of (n, K) mixtures."""
        weights = np.atleast_2d(weights)
        size = self.fidelities.index(model_size)
        loss = self._law(size, step) + self.options.amplitude * self._mixture_term(weights, size, step)
        if self.options.accuracy:
            return self._accuracy(loss)[:, None]
        if self.options.outputs == 1:
            return loss[:, None]
        gaps = weights[:, None, :] ** self.options.gamma - self._parts.centres
        parts = (self._parts.curvature * gaps**2).sum(axis=2)
        return loss[:, None] + self.options.amplitude / self._sd1 * (parts - parts.mean(axis=1, keepdims=True))

    def regret(self, weights: Sequence[float] | Array) -> float:
        """Noise-free objective at the target minus its exact minimum."""
        size, step = self.fidelities.target
        both = np.vstack([np.asarray(weights, dtype=float), self.optimum])
        objective = self.metric.objective(self.values(both, self.fidelities.sizes[size], step))
        return float(objective[0] - objective[1])

    def observe(self, weights: Sequence[float], model_size: str, steps: Sequence[int], run: int) -> list[tuple[int, tuple[float, ...]]]:
        """The learning curve that run number ``run`` logs at ``steps``."""
        return noisy_curve(self, weights, model_size, steps, (self.options.seed, run), self.options.noise, self.options.run_noise)

    def _optimum(self, space: MixtureSpace, rng: np.random.Generator) -> Array:
        drawn = space.sample(1, rng)[0]
        if self.options.optimum is None:
            return drawn
        try:
            return space.validate(self.options.optimum)
        except ConfigError as error:
            raise ConfigError(f"simulator.optimum: {error}") from error

    def _law(self, size: int, step: float) -> float:
        k = SCALING
        tokens = step * TOKENS_PER_STEP
        return float(k["E"] + k["A"] * self.fidelities.parameters[size] ** -k["a"] + k["B"] * tokens ** -k["b"])

    def _mixture_term(self, weights: Array, size: int, step: float) -> Array:
        r = self.correlation(size, step)
        f1 = self._bowl(weights)
        f2 = (self._other(weights) - self._slope * f1 - self._mean2) / self._sd2
        return r * f1 / self._sd1 + np.sqrt(1 - r**2) * f2

    def _accuracy(self, loss: Array) -> Array:
        """Chance, plus a sigmoid that is flat for losses well above the target's: small fidelities tell nothing."""
        size, step = self.fidelities.target
        middle = self._law(size, step) + 4 * self.options.amplitude
        return 0.25 + 0.5 / (1 + np.exp((loss - middle) / (2 * self.options.amplitude)))

    def _check_monotone(self, sample: Array) -> None:
        grid = np.array(
            [[self.metric.objective(self.values(sample, name, step)) for step in self.fidelities.steps] for name in self.fidelities.sizes]
        )
        if np.any(np.diff(grid, axis=0) > 0) or np.any(np.diff(grid, axis=1) > 0):
            raise ConfigError(
                f"simulator.amplitude={self.options.amplitude:g} is so large that for some mixtures a larger or longer run is worse than "
                "a smaller or shorter one; lower the amplitude, raise r_size and r_step, or space the fidelities further apart"
            )
