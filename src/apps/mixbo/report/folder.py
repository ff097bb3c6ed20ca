"""What the report is made of: a sweep's folder, finished, running, interrupted or just begun, with the problem it poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.nanollama.arrays import Array

from ..config import SweepConfig
from ..folder import optional, read_answer, read_config, read_history, read_table
from ..problem import Problem
from ..records import Record, finished, spent
from ..surrogate import Surrogate, condition
from ..truth import Truth


@dataclass(frozen=True)
class Trial:
    """One row of ``trials.csv``: the record, its value in the metric's own units, and why it was asked for."""

    record: Record
    status: str
    value: float | None
    acquisition: float | None
    predicted_mean: float | None  # objective (minimised)
    predicted_sd: float | None
    rho: float | None


@dataclass(frozen=True)
class Sweep:
    """What the sections of the report are made of. ``answer`` is ``best.json``, ``history`` the rows of ``progress.jsonl``."""

    folder: Path
    cfg: SweepConfig
    problem: Problem
    truth: Truth | None
    trials: Sequence[Trial]
    history: Sequence[Mapping[str, Any]] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, cfg: SweepConfig, problem: Problem, truth: Truth | None) -> Sweep:
        """The folder's tables, with the problem they belong to."""
        return cls(folder, cfg, problem, truth, read_trials(folder, problem), read_history(folder), read_answer(folder))

    @property
    def name(self) -> str:
        """Strategy, for headings."""
        return self.cfg.strategy.name

    @property
    def records(self) -> list[Record]:
        """Every trial, by number."""
        return [trial.record for trial in self.trials]

    @property
    def target(self) -> str:
        """``1B at step 16000``."""
        size, step = self.problem.fidelities.target
        return f"{self.problem.fidelities.sizes[size]} at step {step}"

    @property
    def metric(self) -> str:
        """Name of the objective, for axes."""
        outputs = self.problem.metric.outputs
        if len(outputs) == 1:
            return outputs[0].replace("_", " ")
        weights = self.problem.metric.weights
        kind = "mean" if len(set(weights)) == 1 and abs(sum(weights) - 1) < 1e-9 else "weighted sum"
        return f"{kind} of the losses" if set(outputs) == set(self.problem.space.domains) else f"{kind} of {len(outputs)} outputs"

    @property
    def spent(self) -> float:
        """Full runs of the largest model charged so far."""
        return spent(self.records) / self.problem.full_run

    @cached_property
    def surrogate(self) -> Surrogate | None:
        """The posterior given everything; None before there is a result."""
        return condition(self.problem, self.records) if finished(self.records) else None

    @cached_property
    def best(self) -> Array:
        """The recommended mixture; the centroid before there is one."""
        weights = self.answer.get("weights")
        return self.problem.space.centroid() if weights is None else np.array([weights[d] for d in self.problem.space.domains])

    def own(self, objective: float) -> float:
        """A minimised objective in the metric's own units."""
        return self.problem.metric.own_units(objective)


def load(folder: Path) -> Sweep:
    """A sweep from its folder alone. Raises ConfigError if there is none, or its objective cannot be set up any more."""
    from ..build import build
    from ..runners import SimulatedRunner

    cfg = read_config(folder)
    problem, runner = build(cfg, folder / "trials")
    runner.close()
    truth = Truth(problem, runner.objective) if isinstance(runner, SimulatedRunner) else None
    return Sweep.read(folder, cfg, problem, truth)


def read_trials(folder: Path, problem: Problem) -> list[Trial]:
    """``trials.csv`` and ``curves.csv``; empty before the first trial."""
    curves: dict[int, list[tuple[int, tuple[float, ...]]]] = {}
    for row in read_table(folder / "curves.csv"):
        values = tuple(float(row[output]) for output in problem.metric.outputs)
        curves.setdefault(int(row["trial"]), []).append((int(row["step"]), values))
    return [_trial(problem, row, tuple(curves.get(int(row["trial"]), ()))) for row in read_table(folder / "trials.csv")]


def _trial(problem: Problem, row: Mapping[str, str], curve: tuple[tuple[int, tuple[float, ...]], ...]) -> Trial:
    problem.space.check_stored(row)
    status = row["status"]
    parent, charged = row.get("continues"), optional(row.get("charged_flops"))
    record = Record(
        number=int(row["trial"]),
        weights=tuple(float(row[f"w.{domain}"]) for domain in problem.space.domains),
        model_size=row["model_size"],
        steps=int(row["steps"]),
        status="running" if status == "running" else "ok" if status == "ok" and curve else "failed",
        curve=curve,
        flops=(optional(row.get("flops")) or 0.0) if charged is None else charged,
        parent=int(parent) if parent else None,
    )
    numbers = (optional(row.get(key)) for key in ("value", "acquisition", "predicted_mean", "predicted_sd", "rho"))
    return Trial(record, status, *numbers)
