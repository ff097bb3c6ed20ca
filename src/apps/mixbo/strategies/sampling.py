"""Strategies that draw: uniformly on the simplex, or from the posterior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..design import full_run
from ..problem import Problem
from ..records import Record, Suggestion
from .choose import choose
from .grid import build


def random(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion:
    """A mixture drawn uniformly, trained in full at the largest size. Does not obey the start-small rules."""
    for _ in range(1000):
        w = problem.space.sample(1, rng)[0]
        if problem.available(w.tolist(), problem.fidelities.sizes[-1], problem.fidelities.steps[-1]):
            break
    return full_run(problem, w, problem.fidelities.target[0])


def thompson(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion:
    """The minimiser of one posterior draw at the target, at the fidelity that explains most of its variance per cost."""
    grid = build(problem, records, rng)
    covariance = grid.surrogate.covariance(grid.there, grid.there)
    draw = rng.multivariate_normal(grid.there.mean, covariance, method="eigh", check_valid="ignore")
    rank = np.argsort(np.argsort(draw))[:, None]  # 0: the minimiser; the others only where it may not be run
    value = grid.rho_cf() ** 2 / grid.price(grid.added_cf + grid.baseline_f) * 1e-6 ** np.minimum(rank, 20)
    return choose(grid, grid.with_baseline(value, 0.0))
