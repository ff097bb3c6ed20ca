"""Risk-averse knowledge gradient per cost over mixtures, sizes and steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.arrays import Array, Mask

from ..baseline import caution
from ..cost import unlocked
from ..problem import Problem
from ..protocol import Done
from ..records import Record, Suggestion
from ..surrogate import Basis
from .choose import choose
from .ei import improvement
from .envelope import gain_of_minimum
from .grid import Grid, build


def knowledge_gradient(grid: Grid, basis: Basis, paired_f: Mask | None = None) -> Array:
    """(C, fidelities): how much better the *answer* is expected to be if the last value of a candidate were known.

    Frazier, Powell and Dayanik 2009, over the target mixtures of the grid, but of the bound that the answer is chosen by: the lowest
    of mean + ``caution`` sds. So a trial is worth what it moves the means, and what it makes sure: near the end of a search a full
    run of the best mixture is worth most by the latter, of which the plain gradient knows nothing. An observation that tells nothing
    about the target is worth nothing, whatever its own value. ``basis``: what is observed of the candidates, values or differences
    from the baseline; a new run comes with an offset of its own, and so does the baseline's where both are new (``paired_f``).
    """
    surrogate, targets = grid.surrogate, grid.targets
    observed = surrogate.variance_of_run(basis) + surrogate.noise_variance
    if paired_f is not None:
        observed += np.tile(paired_f, len(grid.mixtures)) * (surrogate.run_variance + surrogate.noise_variance)
    slopes = surrogate.covariance(basis, targets) / np.sqrt(observed)[:, None]
    sds = caution(grid.problem, surrogate, grid.records)
    before = surrogate.variance(targets)
    bounds = targets.mean + sds * np.sqrt(np.maximum(before - slopes**2, 0.0))
    gains = (targets.mean + sds * np.sqrt(before)).min() - bounds.min(axis=1) + gain_of_minimum(bounds, slopes)
    return np.maximum(gains, 0.0).reshape(len(grid.mixtures), -1)


def kg(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """For every size the gain over all steps, divided by cost; the best step of each, then the best of all.

    At a size where nothing ran one trial tells little, since the level is unknown: the gain of a *pair* with the baseline, by the
    price of both, is what makes a new size worth opening. Full runs that are due go by expected improvement, the baseline's first.
    """
    grid = build(problem, records, rng)
    if grid.full_run_due and unlocked(problem, records)[-1]:
        value = np.broadcast_to(improvement(grid)[:, None], grid.shape)
        return choose(grid, grid.with_baseline(value, -np.inf), log=True)
    paired = knowledge_gradient(grid, grid.basis, grid.baseline_f > 0) / grid.price(grid.added_cf + grid.baseline_f)
    alone = np.zeros(grid.shape)
    there = (grid.baseline_f > 0) & ~grid.is_target  # the first full run is the baseline's: the answer rests on comparing with it
    if there.any():
        run = grid.basis.inputs.run.reshape(grid.shape)[:, there].ravel()
        values = grid.surrogate.grid(grid.mixtures, grid.sizes[there], grid.steps[there], runs=run)
        alone[:, there] = knowledge_gradient(grid, values) / grid.price(grid.added_cf[:, there])
    return choose(grid, grid.with_baseline(paired, alone))
