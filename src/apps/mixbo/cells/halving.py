"""The runs of a comparison: how long trials go, which go on, and their trainings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.nanollama.checkpoint.find import find_checkpoint
from src.nanollama.config import ConfigError, Interrupted, quoted, read_result

from ..jobs import Launch, open_pool
from .axis import override
from .config import CellsConfig
from .propose import propose
from .trial import Trial

BASE = ("optim.schedule=constant", "checkpoint.keep=1")  # a run is then a prefix of every longer one, and can be continued


def rungs(cfg: CellsConfig) -> list[int]:
    """Training steps at which a cell's trials are ranked, the last of them ``steps``."""
    found = [cfg.steps]
    while cfg.halving.min_steps and found[0] // cfg.halving.eta >= cfg.halving.min_steps:
        found.insert(0, found[0] // cfg.halving.eta)
    return found


def promoted(losses: Mapping[Trial, float], eta: int) -> list[Trial]:
    """The best 1 / eta of each cell, at least one; none that failed."""
    kept: list[Trial] = []
    for cell in dict.fromkeys(trial.cell for trial in losses):
        ranked = sorted((trial for trial in losses if trial.cell == cell), key=losses.__getitem__)
        kept += [trial for trial in ranked[: math.ceil(len(ranked) / eta)] if math.isfinite(losses[trial])]
    return kept


class Runs:
    """Carries out trainings in a folder: what is there already is not trained again."""

    def __init__(self, cfg: CellsConfig, folder: Path, launch: Launch | None = None) -> None:
        self.cfg, self.folder, self.launch = cfg, folder, launch
        wandb = cfg.metrics.wandb
        more = [f"metrics.tensorboard={str(cfg.metrics.tensorboard).lower()}"]
        if wandb.active:
            more += ["metrics.wandb.active=true", f"metrics.wandb.project={quoted(wandb.project)}"]
            more += [f"metrics.wandb.group={quoted(wandb.group or folder.name)}"]
        self.common = [*BASE, *cfg.overrides, *more]

    def run(self, jobs: Mapping[Path, Sequence[str]]) -> dict[Path, dict[str, Any]]:
        """Run folder -> ``result.json``. Raises Interrupted when stopped; the same command goes on."""
        known = {folder: result for folder in jobs if (result := read_result(folder)) and result["status"] == "nan"}  # would diverge again
        todo = {folder: overrides for folder, overrides in jobs.items() if folder not in known}
        results = known | (self._train(todo) if todo else {})
        if len(results) < len(jobs) or any(result["status"] in ("interrupted", "requeue") for result in results.values()):
            raise Interrupted("stopped; the same command continues")
        return results

    def _train(self, jobs: Mapping[Path, Sequence[str]]) -> dict[Path, dict[str, Any]]:
        from src.nanollama.launcher.sweep import run_jobs

        pool, elsewhere = self.cfg.pool, None
        if self.launch or pool.launcher == "sbatch":
            elsewhere = open_pool(pool, self.cfg.cluster, self.folder, self.launch)
        return run_jobs(self.cfg.script, jobs, pool.slots, pool.timeout_s, pool.retries, elsewhere)

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

    runs, impossible, cells = Runs(cfg, Path(cfg.run_dir or ".")), [], propose(cfg, range(1), {})
    names = [trial.name("") for trial in cells]
    if twice := next((trial for trial in cells if names.count(trial.name("")) > 1), None):
        raise ConfigError(f"cells: two share the folder of {' '.join(map(str, twice.cell))}; give each value once, in letters and digits")
    for trial in cells:
        try:
            compose(entry_of(cfg.script), runs.overrides(trial, []))
        except ConfigError as error:
            impossible.append(f"{' '.join(map(str, trial.cell))}: {error}")
    if impossible:
        raise ConfigError(f"{len(impossible)} of {len(cells)} cells cannot be run:\n  " + "\n  ".join(impossible))
