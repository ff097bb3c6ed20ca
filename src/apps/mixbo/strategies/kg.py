"""Knowledge gradient per cost over mixtures, sizes and steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..problem import Problem
from ..records import Record, Suggestion
from .choose import choose
from .envelope import gain_of_minimum
from .grid import Grid, build

Array = NDArray[np.float64]


def knowledge_gradient(grid: Grid) -> Array:
    """(C, F): how much the lowest posterior mean *at the target* is expected to fall if the candidate's last value were known.

    Frazier, Powell and Dayanik 2009, over the target mixtures of the grid. An observation that tells nothing about the target is
    worth nothing, whatever its own value.
    """
    slopes = grid.surrogate.covariance(grid.basis, grid.targets)
    sd = np.sqrt(grid.surrogate.variance(grid.basis) + grid.surrogate.noise_variance)
    return gain_of_minimum(grid.targets.mean, slopes / sd[:, None]).reshape(grid.shape)


def kg(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion:
    """For every size the gain over all steps, divided by cost; the best step of each, then the best of all."""
    grid = build(problem, records, rng)
    return choose(grid, knowledge_gradient(grid) / grid.charged_cf)
