"""Expected improvement: at the target only, naively per FLOP, and per cost weighted by what a fidelity says about the target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.arrays import Array

from ..design import anchors_at_target, full_run, next_of_design
from ..problem import Problem
from ..protocol import Done
from ..records import Record, Suggestion
from .choose import choose
from .grid import Grid, build
from .improvement import log_ei


def improvement(grid: Grid) -> Array:
    """(C,): log expected improvement of each mixture over the baseline at the target."""
    return log_ei(grid.there.mean, np.sqrt(grid.surrogate.variance(grid.there)), 0.0)


def ei(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """Expected improvement with full runs of the largest model only, corners and centroid first: the single-fidelity baseline.

    Does not obey the start-small rules.
    """
    first = next_of_design(anchors_at_target(problem), problem, records)
    if first is not None:
        return full_run(problem, first[0], problem.fidelities.target[0])
    grid = build(problem, records, rng, only_target=True)
    return choose(grid, improvement(grid)[:, None], start_small=False, log=True)


def ei_per_flop(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """Plain EI of each candidate's own value over the best predicted anywhere, divided by cost.

    Kept to show why it fails: a small model's loss improves on nothing, so it buys the largest size that
    the rules allow, and learns from no cheap run.
    """
    grid = build(problem, records, rng)
    here = grid.surrogate.grid(grid.mixtures, grid.sizes, grid.steps)
    value = log_ei(here.mean, np.sqrt(grid.surrogate.variance(here)), float(here.mean.min())).reshape(grid.shape)
    return choose(grid, value - np.log(grid.price(grid.added_cf)), log=True)


def ei_cost(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """EI at the target, times the correlation of the proposed fidelity with the target, per cost.

    Without the correlation the value would not depend on the fidelity but through its cost, and the cheapest would always win.
    """
    grid = build(problem, records, rng)
    rho = np.maximum(np.abs(grid.rho_cf()), 1e-12)
    value = improvement(grid)[:, None] + np.log(rho) - np.log(grid.price(grid.added_cf + grid.baseline_f))
    return choose(grid, grid.with_baseline(value, -np.inf), log=True)
