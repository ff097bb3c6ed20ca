"""Strategies that draw: uniformly on the simplex, or from the posterior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..design import draw, full_run
from ..problem import Problem
from ..protocol import Done
from ..records import Record, Suggestion
from .choose import choose
from .grid import build

JITTER = 1e-6  # of the largest variance: mixtures that lie close together would have no factor


def random(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """A mixture drawn uniformly (of a table, one of those left), trained in full at the largest size.

    Does not obey the start-small rules.
    """
    size, steps = problem.fidelities.target
    drawn = draw(problem, records, rng, size, steps)
    return full_run(problem, drawn, size) if drawn is not None else Done("every mixture that the table has at the target was tried")


def thompson(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """The minimiser of one posterior draw at the target, at the fidelity that explains most of its variance per cost."""
    grid = build(problem, records, rng)
    covariance = grid.surrogate.covariance(grid.there, grid.there)
    # By Cholesky, whose factor rounding hardly moves: eigenvectors of near-equal eigenvalues turn freely, and another processor drew
    # another mixture.
    jitter = JITTER * grid.surrogate.variance(grid.there).max()  # above 0 also where the baseline is the only mixture there is
    factor = np.linalg.cholesky(covariance + jitter * np.eye(len(covariance)))
    draw = grid.there.mean + factor @ rng.standard_normal(len(covariance))
    rank = np.argsort(np.argsort(draw))[:, None]  # 0: the minimiser; the others only where it may not be run
    value = grid.rho_cf() ** 2 / grid.price(grid.added_cf + grid.baseline_f) * 1e-6 ** np.minimum(rank, 20)
    return choose(grid, grid.with_baseline(value, 0.0))
