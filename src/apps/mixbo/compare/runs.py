"""The sweeps to compare: found, read, named by what sets them apart, and checked to be of one problem."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.nanollama.config import ConfigError
from src.nanollama.config.compose import as_dict, flatten

from ..build import build
from ..config import SweepConfig
from ..folder import is_sweep, optional, read_config, read_history, read_table
from ..problem import Problem
from ..runners import SimulatedRunner
from ..truth import Truth

PROBLEM = ("objective", "space", "fidelity", "simulator", "table", "training", "cost.overhead")
ASIDE = ("name", "run_dir", "seed", "budget", "pool", "storage", "metrics", "cluster", "strategy.name", *PROBLEM)


@dataclass(frozen=True)
class SweepRun:
    """One sweep. ``label``: its strategy, with the settings that set it apart. ``history``: a row after every ended trial."""

    folder: Path
    cfg: SweepConfig
    label: str
    history: Sequence[Mapping[str, Any]]
    trials: Sequence[Mapping[str, str]]
    problem: Problem
    uniform_regret: float | None  # of the mixture nearest to uniform, where the truth is known

    @property
    def answers(self) -> list[Mapping[str, Any]]:
        """The rows in which there is an answer."""
        return [row for row in self.history if row["predicted"] is not None]

    @property
    def spent(self) -> float:
        """Full runs of the largest model."""
        return float(self.history[-1]["spent_full_runs"])

    @property
    def seed(self) -> tuple[int, int]:
        """What two strategies share when they are compared pairwise: the seeds of the sweep and of the simulator."""
        return self.cfg.seed, self.cfg.simulator.seed

    def measured(self) -> list[tuple[float, float]]:
        """(cost, best value measured at the target so far), in the metric's own units."""
        size, step = self.problem.fidelities.target
        target = self.problem.fidelities.sizes[size], str(step)
        values = {int(row["trial"]): optional(row["value"]) for row in self.trials if (row["model_size"], row["steps"]) == target}
        found: list[tuple[float, float]] = []
        for row in self.history:
            value = values.get(row["trial"])
            if value is not None:
                best = max if self.problem.metric.maximise else min
                found.append((row["spent_full_runs"], best([value, *(v for _, v in found[-1:])])))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Tidy: one row an ended trial, with the answer after it."""
        by_trial = {int(row["trial"]): row for row in self.trials}
        tidy = []
        for row in self.history:
            trial = by_trial.get(row["trial"], {})
            why = {key: optional(trial.get(key)) for key in ("value", "acquisition", "rho", "predicted_mean", "predicted_sd")}
            tidy.append(
                {"strategy": self.label, "seed": self.cfg.seed, "run": str(self.folder)}
                | {key: row[key] for key in ("trial", "trials", "spent_flops", "spent_full_runs")}
                | {"best_" + key: row[key] for key in ("predicted", "low", "high", "true_value", "regret")}
                | {"model_size": trial.get("model_size"), "steps": trial.get("steps"), **why}
            )
        return tidy


def find_sweeps(paths: Sequence[str]) -> list[SweepRun]:
    """Every sweep among the paths and below them (the jobs of a multirun), each once. Raises ConfigError if they do not belong together."""
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        found = list(_below(path.expanduser().resolve()))
        if not found:
            raise ConfigError(f"{path}: no sweep in this folder or below it; name run folders of src.apps.mixbo.sweep")
        folders.update(dict.fromkeys(found))
    known: dict[str, tuple[Problem, float | None]] = {}
    runs = [_read(folder, known) for folder in folders]
    begun = [run for run in runs if run.answers]
    if not begun:
        raise ConfigError("none of these sweeps has a result yet")
    check_same_problem(begun)
    return [replace(run, label=label) for run, label in zip(begun, labels(begun), strict=True)]


def _read(folder: Path, known: dict[str, tuple[Problem, float | None]]) -> SweepRun:
    """One sweep; its problem is set up once for all that share it (``known``)."""
    cfg = read_config(folder)
    key = json.dumps({key: value for key, value in flatten(as_dict(cfg)).items() if key.startswith(PROBLEM)}, sort_keys=True)
    if key not in known:
        problem, runner = build(cfg, folder / "trials")
        runner.close()
        truth = Truth(problem, runner.objective) if isinstance(runner, SimulatedRunner) else None
        known[key] = problem, truth.regret(problem.space.centroid().tolist()) if truth else None
    return SweepRun(folder, cfg, "", read_history(folder), read_table(folder / "trials.csv"), *known[key])


def check_same_problem(runs: Sequence[SweepRun]) -> None:
    """Different problems cannot be compared; a simulator may differ in its seed where regrets are known."""
    regrets = all(run.answers[-1].get("regret") is not None for run in runs)
    first, *others = (flatten(as_dict(run.cfg)) for run in runs)
    for run, values in zip(runs[1:], others, strict=True):
        for key in sorted(first.keys() | values.keys()):
            if (key == "simulator.seed" and regrets) or not key.startswith(PROBLEM):
                continue
            if first.get(key) != values.get(key):
                raise ConfigError(
                    f"{run.folder} solves another problem than {runs[0].folder}: {key} is {values.get(key)} instead of {first.get(key)}; "
                    "compare sweeps of one problem"
                )


def labels(runs: Sequence[SweepRun]) -> list[str]:
    """Name of the strategy, with every other setting in which a run differs from most."""
    flats = [flatten(as_dict(run.cfg)) for run in runs]
    usual = {key: Counter(str(f.get(key)) for f in flats).most_common(1)[0][0] for f in flats for key in f}
    named = []
    for run, values in zip(runs, flats, strict=True):
        odd = [f"{key}={values[key]}" for key in values if not key.startswith(ASIDE) and str(values[key]) != usual[key]]
        named.append(", ".join([run.cfg.strategy.name, *(text.partition(".")[2] or text for text in odd)]))
    return named


def _below(path: Path) -> Iterator[Path]:
    if is_sweep(path):
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir(), key=lambda p: (0, int(p.name), "") if p.name.isdecimal() else (1, 0, p.name)):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _below(child)
