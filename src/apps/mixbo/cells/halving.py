"""The runs of a comparison: which settings each cell tries, for how long, and which go on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.nanollama.checkpoint.find import find_checkpoint
from src.nanollama.config import ConfigError, Interrupted, quoted, read_result
from src.nanollama.config.folder import slug

from .axis import Axis, Value, override, parse_space
from .config import CellsConfig

Setting = Mapping[str, Value]
Cell = tuple[Value, ...]

BASE = ("optim.schedule=constant", "checkpoint.keep=1")  # a run is then a prefix of every longer one, and can be continued


@dataclass(frozen=True)
class Trial:
    """A setting in a cell."""

    cell: Cell
    number: int
    setting: Setting = field(hash=False, compare=False)  # told by the number

    def name(self, suffix: object) -> str:
        """Of a run folder: the cell, the trial, and which run of it."""
        return slug("-".join([*map(str, self.cell), str(self.number), str(suffix)]))


def settings(cfg: CellsConfig, axes: Mapping[str, Axis]) -> list[Setting]:
    """What every cell tries: the same for all, so that no cell is luckier in its draws."""
    free = [axis for key, axis in axes.items() if key not in cfg.cells]
    if cfg.strategy == "grid" or not free:
        points = list(itertools.product(*(axis.values for axis in free)))
        return [dict(zip([axis.key for axis in free], point, strict=True)) for point in points]
    draws = [[np.random.default_rng([cfg.seed, number, i]) for i in range(len(free))] for number in range(cfg.trials)]
    return [{axis.key: axis.sample(rng) for axis, rng in zip(free, row, strict=True)} for row in draws]


def trials(cfg: CellsConfig) -> list[Trial]:
    """Every trial of the comparison, cell by cell."""
    axes = parse_space(cfg.space)
    cells = itertools.product(*(axes[key].values for key in cfg.cells))
    return [Trial(cell, number, setting) for cell in cells for number, setting in enumerate(settings(cfg, axes))]


def rungs(cfg: CellsConfig) -> list[int]:
    """Training steps at which a cell's trials are ranked, the last of them ``steps``."""
    found = [cfg.steps]
    while cfg.halving.min_steps and found[0] // cfg.halving.eta >= cfg.halving.min_steps:
        found.insert(0, found[0] // cfg.halving.eta)
    return found


def promoted(losses: Mapping[Trial, float], eta: int) -> list[Trial]:
    """The best 1 / eta of each cell, at least one; none that failed."""
    kept: list[Trial] = []
    for _, group in itertools.groupby(losses, key=lambda trial: trial.cell):
        ranked = sorted(group, key=losses.__getitem__)
        kept += [trial for trial in ranked[: math.ceil(len(ranked) / eta)] if math.isfinite(losses[trial])]
    return kept


class Runs:
    """Carries out trainings in a folder: what is there already is not trained again."""

    def __init__(self, cfg: CellsConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        wandb = cfg.metrics.wandb
        more = [f"metrics.tensorboard={str(cfg.metrics.tensorboard).lower()}"]
        if wandb.active:
            more += ["metrics.wandb.active=true", f"metrics.wandb.project={quoted(wandb.project)}"]
            more += [f"metrics.wandb.group={quoted(wandb.group or folder.name)}"]
        self.common = [*BASE, *cfg.overrides, *more]

    def run(self, jobs: Mapping[Path, Sequence[str]]) -> dict[Path, dict[str, Any]]:
        """Run folder -> ``result.json``. Raises Interrupted when stopped; the same command goes on."""
        from src.nanollama.launcher.sweep import run_jobs

        pool = self.cfg.pool
        known = {folder: result for folder in jobs if (result := read_result(folder)) and result["status"] == "nan"}  # would diverge again
        todo = {folder: overrides for folder, overrides in jobs.items() if folder not in known}
        results = known | (run_jobs(self.cfg.script, todo, pool.slots, pool.timeout_s, pool.retries) if todo else {})
        if len(results) < len(jobs) or any(result["status"] in ("interrupted", "requeue") for result in results.values()):
            raise Interrupted("stopped; the same command continues")
        return results

    def rung(self, chosen: Sequence[Trial], steps: int, before: int | None) -> dict[Trial, dict[str, Any]]:
        """Train every chosen trial to ``steps``, from its checkpoint at ``before``."""
        jobs = {}
        for trial in chosen:
            more = [f"train.steps={steps}", f"train.seed={self.cfg.seed}"]
            if before:
                more.append(f"checkpoint.init_from={quoted(find_checkpoint(self.folder / 'trials' / trial.name(before)))}")
            jobs[self.folder / "trials" / trial.name(steps)] = self.overrides(trial, more)
        results = self.run(jobs)
        return dict(zip(chosen, (results[folder] for folder in jobs), strict=True))

    def final(self, best: Sequence[Trial]) -> dict[Trial, list[dict[str, Any]]]:
        """Train each best setting from the start with seeds that no choice has seen."""
        jobs = {}
        for trial, i in itertools.product(best, range(1, self.cfg.seeds + 1)):
            more = [f"train.steps={self.cfg.steps}", f"train.seed={self.cfg.seed + i}"]
            jobs[self.folder / "final" / trial.name(f"seed{self.cfg.seed + i}")] = self.overrides(trial, more)
        results = self.run(jobs) if jobs else {}
        return {trial: [results[folder] for folder in jobs if folder.name.startswith(trial.name("seed"))] for trial in best}

    def overrides(self, trial: Trial, more: Sequence[str]) -> list[str]:
        """The command line of one run."""
        cell = [override(key, value) for key, value in zip(self.cfg.cells, trial.cell, strict=True)]
        return [*self.common, *cell, *(override(key, value) for key, value in trial.setting.items()), *more]


def loss_of(result: Mapping[str, Any]) -> float:
    """What trials are ranked by; infinite for one that failed."""
    return float(result.get("final/test_loss", math.inf)) if result["status"] == "ok" else math.inf


def check_cells(cfg: CellsConfig) -> None:
    """Compose one run of every cell, so that a shape that cannot be is named before anything is trained."""
    from src.nanollama.config import compose
    from src.nanollama.config.main import entry_of

    runs, impossible, seen = Runs(cfg, Path(cfg.run_dir or ".")), [], set()
    for trial in trials(cfg):
        if trial.cell in seen:
            continue
        seen.add(trial.cell)
        try:
            compose(entry_of(cfg.script), runs.overrides(trial, []))
        except ConfigError as error:
            impossible.append(f"{' '.join(map(str, trial.cell))}: {error}")
    if impossible:
        raise ConfigError(f"{len(impossible)} of {len(seen)} cells cannot be run:\n  " + "\n  ".join(impossible))
