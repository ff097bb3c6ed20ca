"""TensorBoard and Weights & Biases for a sweep: the best prediction and its cost after every trial, and a table of the trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.nanollama.config.schema import MetricsConfig
from src.nanollama.metrics.sinks import TensorBoard, Wandb

from .problem import Problem
from .records import Record

Row = Mapping[str, Any]
SCALARS = ("predicted", "low", "high", "regret", "true_value", "spent_flops", "spent_full_runs")


class SweepTensorBoard:
    """Scalars ``<quantity>/by_trial`` over the number of ended trials and ``<quantity>/by_cost`` over thousandths of a full run of the
    largest model (a step is an integer, and FLOPs overflow it); the trials under HParams."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._scalars = folder, TensorBoard(folder, config)

    def write(self, row: Row, scalars: Mapping[str, float], trial: Mapping[str, Any], outcome: Mapping[str, float]) -> None:
        """``row`` of ``progress.jsonl``; the ended ``trial`` as hyper-parameters with its ``outcome``."""
        self._scalars.write({"step": row["trials"], "split": "by_trial", **scalars})
        self._scalars.write({"step": round(1000 * row["spent_full_runs"]), "split": "by_cost", **scalars})
        if outcome:
            point = TensorBoard(self._folder / "trials" / str(row["trial"]), trial)
            point.finish(outcome)
            point.close()

    def close(self) -> None:
        self._scalars.close()


class SweepWandb:
    """The same as one run; ``WANDB_MODE`` is respected, offline without it."""

    def __init__(self, run_dir: Path, cfg: MetricsConfig, config: Mapping[str, Any]) -> None:
        self._run = Wandb(run_dir, cfg, config)

    def write(self, row: Row, scalars: Mapping[str, float], trial: Mapping[str, Any], outcome: Mapping[str, float]) -> None:
        """As for TensorBoard; a sweep's charts may take ``spent_full_runs/sweep`` as their horizontal axis."""
        self._run.write({"step": row["trials"], "split": "sweep", **scalars})
        self._run.write({"step": row["trials"], "split": "trial", **trial, **outcome})

    def close(self) -> None:
        self._run.close()


class SweepSinks:
    """Every sink that ``metrics`` asks for."""

    def __init__(self, run_dir: Path, cfg: MetricsConfig, config: Mapping[str, Any]) -> None:
        self._sinks: list[SweepTensorBoard | SweepWandb] = []
        if cfg.tensorboard:
            self._sinks.append(SweepTensorBoard(run_dir / "tb", config))
        if cfg.wandb.active:
            self._sinks.append(SweepWandb(run_dir, cfg, config))

    def write(self, row: Row, scalars: Mapping[str, float], trial: Mapping[str, Any], outcome: Mapping[str, float]) -> None:
        """State of the sweep after a trial (``row``: ``trial``, ``trials`` and ``spent_full_runs``), the trial, and what came of it."""
        for sink in self._sinks:
            sink.write(row, scalars, trial, outcome)

    def close(self) -> None:
        """Flush and let go of the files."""
        for sink in self._sinks:
            sink.close()


def mixture_trial(
    problem: Problem, row: Row, record: Record, acquisition: float | None
) -> tuple[Row, dict[str, float], Row, dict[str, float]]:
    """What the sinks take of one line of ``progress.jsonl`` and the trial behind it."""
    metric = problem.metric
    scalars = {key: float(row[key]) for key in SCALARS if row.get(key) is not None}
    if acquisition is not None:
        scalars["acquisition"] = acquisition
    trial: dict[str, Any] = {f"w.{d}": w for d, w in zip(problem.space.domains, record.weights, strict=True)}
    trial |= {"model_size": record.model_size, "steps": record.steps}
    outcome: dict[str, float] = {}
    if record.status == "ok" and record.curve:
        outcome = {"objective": float(metric.own_units(float(metric.objective(record.curve[-1][1])))), "flops": record.flops}
    return row, scalars, trial, outcome
