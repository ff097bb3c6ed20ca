"""What a simulated study cannot know while it runs: the noise-free value at the target, and the best there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.arrays import Array

from .descent import descend
from .objectives import Objective
from .objectives.simulator import Simulator
from .problem import Problem

SAMPLE = 20_000  # mixtures from which the search for an optimum starts
STARTS = 8
STEPS = tuple(0.2 / 2**k for k in range(15))  # mass moved by the search, down to 1e-5


class Truth:
    """Noise-free values of an objective at the target, and its optimum there.

    ``exact``: the optimum is known in closed form (parametric simulator) or by enumeration (table); otherwise it is the best of a
    dense sample after a local search, so a regret may come out slightly too small.
    """

    def __init__(self, problem: Problem, objective: Objective) -> None:
        self.problem, self.objective = problem, objective
        choices = problem.space.choices
        self.exact = choices is not None or isinstance(objective, Simulator)
        if isinstance(objective, Simulator):
            self.optimum = objective.optimum
        elif choices is not None:
            size, step = problem.fidelities.target
            there = np.array([w for w in choices if problem.available(w, problem.fidelities.sizes[size], step)])
            self.optimum = there[int(np.argmin(self._objective(there)))]
        else:
            self.optimum = self._search()
        self.best = float(self._objective(self.optimum[None])[0])

    def value(self, weights: Sequence[float]) -> float | None:
        """Noise-free value at the target in the metric's own units; None where a table has none."""
        found = self._of(weights)
        return None if found is None else self.problem.metric.own_units(found)

    def regret(self, weights: Sequence[float]) -> float | None:
        """How much worse than the optimum, never negative; None where a table has no value."""
        found = self._of(weights)
        return None if found is None else max(0.0, found - self.best)

    def _of(self, weights: Sequence[float]) -> float | None:
        size, step = self.problem.fidelities.target
        if not self.problem.available(weights, self.problem.fidelities.sizes[size], step):
            return None
        return float(self._objective(np.asarray(weights, dtype=float)[None])[0])

    def _objective(self, weights: Array) -> Array:
        size, step = self.problem.fidelities.target
        return self.problem.metric.objective(self.objective.values(weights, self.problem.fidelities.sizes[size], step))

    def _search(self) -> Array:
        space, rng = self.problem.space, np.random.default_rng(0)
        pool = np.vstack([space.corners(), *(space.sample(SAMPLE // 4, rng, c) for c in (0.1, 0.3, 1.0, 3.0))])
        ends = [
            descend(self.problem.space, self._objective, pool[i], 1000, STEPS, 1e-12) for i in np.argsort(self._objective(pool))[:STARTS]
        ]
        return ends[int(np.argmin(self._objective(np.array(ends))))]
