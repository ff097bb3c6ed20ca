"""The settings that a cell tries: all at once (random, grid), or in waves that learn from the ones before (TPE)."""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .axis import Axis, parse_space
from .config import CellsConfig
from .trial import Cell, Setting, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Losses = Mapping[Trial, float]


def waves(cfg: CellsConfig) -> list[range]:
    """Numbers of the trials that every cell starts together. TPE: the first half at random, then as few as keep the slots busy."""
    cells, tried = len(all_cells(cfg)), len(settings(cfg))
    if cfg.strategy != "tpe":
        return [range(tried)]
    first, width = -(-tried // 2), max(1, cfg.pool.slots // cells)
    return [range(first), *(range(low, min(low + width, tried)) for low in range(first, tried, width))]


def propose(cfg: CellsConfig, numbers: range, losses: Losses) -> list[Trial]:
    """The trials of a wave, cell by cell; ``losses`` of those before it."""
    drawn = settings(cfg)
    found = []
    for cell in all_cells(cfg):
        past = {trial: loss for trial, loss in losses.items() if trial.cell == cell}
        learned = cfg.strategy == "tpe" and any(map(math.isfinite, past.values()))
        found += [Trial(cell, n, _tpe(cfg, cell, n, past) if learned else drawn[n]) for n in numbers]
    return found


def all_cells(cfg: CellsConfig) -> list[Cell]:
    """Every combination of the values of the cells' keys."""
    axes = parse_space(cfg.space)
    return list(itertools.product(*(axes[key].values for key in cfg.cells)))


def settings(cfg: CellsConfig) -> list[Setting]:
    """A grid or random draws: the same for all cells, so that none is luckier than the others."""
    free = free_axes(cfg)
    if cfg.strategy == "grid" or not free:
        points = itertools.product(*(axis.values for axis in free))
        return [dict(zip([axis.key for axis in free], point, strict=True)) for point in points]
    draws = [[np.random.default_rng([cfg.seed, number, i]) for i in range(len(free))] for number in range(cfg.trials)]
    return [{axis.key: axis.sample(rng) for axis, rng in zip(free, row, strict=True)} for row in draws]


def free_axes(cfg: CellsConfig) -> list[Axis]:
    """What is tuned in each cell."""
    return [axis for key, axis in parse_space(cfg.space).items() if key not in cfg.cells]


def _tpe(cfg: CellsConfig, cell: Cell, number: int, past: Losses) -> Setting:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011) given a cell's finished trials; a function of its arguments."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = free_axes(cfg)
    shapes = {axis.key: _distribution(axis) for axis in axes}
    seed = zlib.crc32(f"{cfg.seed} {cell} {number}".encode())
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=1))
    for trial, loss in past.items():
        if math.isfinite(loss):
            # Values are told by their position, so that a list may be one.
            place = {axis.key: axis.values.index(trial.setting[axis.key]) if axis.values else trial.setting[axis.key] for axis in axes}
            study.add_trial(optuna.trial.create_trial(params=place, distributions=shapes, value=loss))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = study.ask(shapes).params
    return {axis.key: axis.values[asked[axis.key]] if axis.values else asked[axis.key] for axis in axes}


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.values:
        return CategoricalDistribution(range(len(axis.values)))
    return IntDistribution(int(axis.low), int(axis.high)) if axis.integer else FloatDistribution(axis.low, axis.high, log=axis.log)
