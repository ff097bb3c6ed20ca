"""Knowledge gradient per cost over mixtures, sizes and steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..problem import Problem
from ..records import Record, Suggestion
from ..surrogate import Basis
from .choose import choose
from .envelope import gain_of_minimum
from .grid import Grid, build

Array = NDArray[np.float64]


def knowledge_gradient(grid: Grid, basis: Basis) -> Array:
    """(C, fidelities): how much the lowest posterior mean *at the target* is expected to fall if the last value of a candidate were known.

    Frazier, Powell and Dayanik 2009, over the target mixtures of the grid. An observation that tells nothing about the target is
    worth nothing, whatever its own value. ``basis``: what is observed of the candidates, values or differences from the baseline.
    """
    slopes = grid.surrogate.covariance(basis, grid.targets)
    sd = np.sqrt(grid.surrogate.variance(basis) + grid.surrogate.noise_variance)
    return gain_of_minimum(grid.targets.mean, slopes / sd[:, None]).reshape(len(grid.mixtures), -1)


def kg(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion:
    """For every size the gain over all steps, divided by cost; the best step of each, then the best of all.

    At a size where nothing ran one trial tells little, since the level is unknown: the gain of a *pair* with the baseline, by the
    price of both, is what makes a new size worth opening.
    """
    grid = build(problem, records, rng)
    paired = knowledge_gradient(grid, grid.basis) / grid.price(grid.added_cf + grid.baseline_f)
    alone = np.zeros(grid.shape)
    there = (grid.baseline_f > 0) & ~grid.is_target  # the first full run is the baseline's: the answer rests on comparing with it
    if there.any():
        values = grid.surrogate.grid(grid.mixtures, grid.sizes[there], grid.steps[there])
        alone[:, there] = knowledge_gradient(grid, values) / grid.price(grid.added_cf[:, there])
    value = grid.with_baseline(paired, alone)
    return choose(grid, value, idle=bool(value[grid.allowed_cf].max(initial=0.0) < problem.surrogate.noise_floor))
