"""Strategies that draw: uniformly on the simplex, or from the posterior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..design import full_run
from ..problem import Problem
from ..protocol import Done
from ..records import Record, Suggestion, same
from .choose import choose
from .grid import build

JITTER = 1e-6  # of the largest variance: mixtures that lie close together would have no factor


def random(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """A mixture drawn uniformly (of a table, one of those left), trained in full at the largest size.

    Does not obey the start-small rules.
    """
    size, steps = problem.fidelities.target
    if problem.space.choices is None:
        return full_run(problem, problem.space.sample(1, rng)[0], size)
    name = problem.fidelities.sizes[size]
    bought = [record.weights for record in records if (record.model_size, record.steps) == (name, steps)]
    rows = [w for w in problem.space.choices if problem.available(w, name, steps) and not any(same(w, other) for other in bought)]
    if not rows:
        return Done("every mixture that the table has at the target was tried")
    return full_run(problem, np.array(rows[rng.integers(len(rows))]), size)


def thompson(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """The minimiser of one posterior draw at the target, at the fidelity that explains most of its variance per cost."""
    grid = build(problem, records, rng)
    covariance = grid.surrogate.covariance(grid.there, grid.there)
    # By Cholesky, whose factor rounding hardly moves: eigenvectors of near-equal eigenvalues turn freely, and another processor drew
    # another mixture.
    factor = np.linalg.cholesky(covariance + JITTER * covariance.diagonal().max() * np.eye(len(covariance)))
    draw = grid.there.mean + factor @ rng.standard_normal(len(covariance))
    rank = np.argsort(np.argsort(draw))[:, None]  # 0: the minimiser; the others only where it may not be run
    value = grid.rho_cf() ** 2 / grid.price(grid.added_cf + grid.baseline_f) * 1e-6 ** np.minimum(rank, 20)
    return choose(grid, grid.with_baseline(value, 0.0))
