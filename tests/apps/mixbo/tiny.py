"""Sweeps of real but tiny trainings, and their parts without a terminal."""

import csv
import sys
from pathlib import Path

from src.apps.mixbo.build import build, suggesting
from src.apps.mixbo.config import SWEEP, identity
from src.apps.mixbo.controller import Controller, Limits
from src.apps.mixbo.study import Study
from src.apps.mixbo.suggest import first_flops
from src.nanollama.config import compose


def prepare(tmp_path: Path, *argv: str):
    """(controller, study, problem) of a command line, without its terminal output."""
    cfg = compose(SWEEP, [*argv, f"run_dir={tmp_path}"])
    problem, runner = build(cfg, tmp_path / "trials")
    study = Study("study", cfg.storage or Study.sqlite(tmp_path), problem, identity(cfg))
    limits = Limits.of(cfg.budget, first_flops(problem, cfg.seed), problem.full_run)
    return Controller(suggesting(problem, cfg.seed), study, runner, limits, lambda records: None), study, problem


def tiny(corpus: Path, *more: str, training: tuple[str, ...] = ()) -> list[str]:
    """Words of a sweep's command line; ``training``: further overrides of every trial."""
    overrides = [
        f"data.corpus={corpus / 'texts'}",
        f"data.cache={corpus / 'cache'}",
        "data.seq_len=16",
        "data.batch_size=4",
        "eval.sequences=4",
        *training,
    ]
    quoted = ",".join(f"'{o}'" for o in overrides)
    return [
        f"training.overrides=[{quoted}]", "fidelity.model_size=[pico,nano]", "fidelity.steps=[8,16]", "pool.slots=1",
        "training.checkpoints=1", "metrics.tensorboard=false", *more,
    ]  # fmt: skip


def command(*argv: str) -> list[str]:
    """The process of a sweep."""
    return [sys.executable, "-m", "src.apps.mixbo.sweep", *argv]


def rows(folder: Path) -> list[tuple]:
    """What ``trials.csv`` says, without times."""
    columns = ("trial", "status", "w.count", "w.alpha", "model_size", "steps", "continues", "value")
    with (folder / "trials.csv").open() as file:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(file)]
