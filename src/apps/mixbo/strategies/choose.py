"""From the value of every candidate to the next trial, by the rules of the study."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from src.nanollama.arrays import Array, Mask

from ..cost import allowance, unlocked
from ..observations import rows
from ..protocol import Done
from ..records import Suggestion
from .grid import Grid


def choose(grid: Grid, value_cf: Array, start_small: bool = True, log: bool = False) -> Suggestion | Done:
    """The allowed candidate of the greatest value (gain by cost, or its ``log``), by the start-small rules unless they are switched off.

    ``Done`` when nothing is left that was not tried.
    """
    for score_cf, mask in _wishes(grid, value_cf, start_small, log):
        if mask.any():
            return _suggestion(grid, value_cf, _best(score_cf, mask))
    if grid.allowed_cf.any():  # the rules leave nothing, as when a small table is used up: the cheapest there is
        return _suggestion(grid, value_cf, _best(-grid.added_cf, grid.allowed_cf))
    return Done("no trial is left that was not tried: widen the fidelity grid or the table")


def _wishes(grid: Grid, value_cf: Array, start_small: bool, log: bool) -> Iterator[tuple[Array, Mask]]:
    """What is wanted most first: a score, and the candidates among which it decides.

    If the greatest value lies at a size that is still locked, the largest unlocked size is looked at instead: the rule delays large
    runs, and a search that would rather stay small must not keep them locked for ever.
    """
    problem, records = grid.problem, grid.records
    if not start_small:
        yield value_cf, grid.allowed_cf
        return
    open_sizes = unlocked(problem, records)
    eligible = grid.allowed_cf & open_sizes[grid.sizes] & (grid.added_cf <= allowance(problem, records) * (1 + 1e-9))
    wanted = grid.allowed_cf & _restriction(grid)
    if wanted.any():
        largest = int(np.cumprod(open_sizes).sum()) - 1
        aim = _best(value_cf, wanted)
        if grid.sizes[aim[1]] > largest:
            yield _net_gain(grid, value_cf, float(value_cf[aim]), log), eligible & (grid.sizes == largest)
        else:
            yield value_cf, eligible & wanted
    yield value_cf, eligible


def _net_gain(grid: Grid, value_cf: Array, aim: float, log: bool) -> Array:
    """(C, F): gain of a trial less what its cost would bring if spent at the rate of the ``aim`` it delays, in units of that rate.

    A trial that only has to come before another is paid for by the other's delay: by gain per cost alone it would be a full run.
    """
    with np.errstate(over="ignore"):
        rate = np.exp(value_cf - max(aim, np.finfo(float).min)) if log else value_cf / max(aim, np.finfo(float).tiny)
    return grid.price(grid.added_cf) * (rate - 1.0)


def _restriction(grid: Grid) -> Mask:
    """(F,): the size that is held fixed, or the target when a full run of it is due, or everything."""
    problem = grid.problem
    if problem.strategy.model_size is not None:
        return grid.sizes == problem.fidelities.index(problem.strategy.model_size)
    if grid.full_run_due:
        return grid.is_target
    return np.ones(len(grid.sizes), dtype=bool)


def _best(value_cf: Array, mask: Mask) -> tuple[int, int]:
    c, f = np.unravel_index(int(np.argmax(np.where(mask, value_cf, -np.inf))), value_cf.shape)
    return int(c), int(f)


def _suggestion(grid: Grid, value_cf: Array, at: tuple[int, int]) -> Suggestion:
    c, f = at
    problem, row = grid.problem, c * grid.shape[1] + f
    one, there = grid.basis[row : row + 1], grid.there[c : c + 1]
    variance = float(grid.surrogate.variance(one)[0])
    covariance = float(grid.surrogate.paired_covariance(one, there, np.zeros(1, dtype=np.int64))[0])
    parent, run = int(grid.parent_cf[c, f]), float(one.inputs.run[0])
    itself = grid.surrogate.basis(rows(problem, grid.mixtures[c : c + 1], int(grid.sizes[f]), float(grid.steps[f]), run))
    return Suggestion(
        weights=tuple(grid.mixtures[c].tolist()),
        model_size=problem.fidelities.sizes[int(grid.sizes[f])],
        steps=int(grid.steps[f]),
        continues=None if parent < 0 else parent,
        acquisition=float(value_cf[c, f]),
        predicted_mean=float(itself.mean[0]),
        predicted_sd=float(grid.surrogate.variance_of_run(itself)[0]) ** 0.5,
        rho=float(np.clip(covariance / (variance * grid.surrogate.variance(there)[0]) ** 0.5, -1, 1)),
        flops=float(grid.added_cf[c, f]),
    )
