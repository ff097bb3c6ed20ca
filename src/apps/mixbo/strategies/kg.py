"""Knowledge gradient per cost over mixtures, sizes and steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..cost import charged
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
    """For every size the gain over all steps, divided by cost; the best step of each, then the best of all.

    Once the surrogate is sure which mixture is best, no observation changes its mind and every gain is about nothing. Where a full
    run's worth of the best trials would gain less than the noise floor, a full run is due instead.
    """
    grid = build(problem, records, rng)
    gain = knowledge_gradient(grid)
    worth = (gain / charged(problem, grid.added_cf))[grid.allowed_cf]
    return choose(grid, gain / grid.charged_cf, idle=bool(len(worth) and worth.max() < problem.surrogate.noise_floor))
