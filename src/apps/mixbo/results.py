"""What a sweep leaves for others: ``trials.csv`` (a row a trial), ``curves.csv`` (a row an observation), ``best.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.nanollama.config import write_csv, write_json

from .problem import Problem
from .recommend import Recommendation
from .records import Record, spent
from .study import Study


def write_tables(folder: Path, problem: Problem, study: Study) -> None:
    """Both tables, each replaced as a whole."""
    write_csv(folder / "trials.csv", study.details())
    write_csv(folder / "curves.csv", observations(problem, study.records()))


def observations(problem: Problem, records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per (trial, step): mixture, size, every output, and the objective in the metric's own units."""
    metric = problem.metric
    return [
        {
            "trial": record.number,
            **{f"w.{d}": w for d, w in zip(problem.space.domains, record.weights, strict=True)},
            "model_size": record.model_size,
            "step": step,
            **dict(zip(metric.outputs, values, strict=True)),
            "objective": float(metric.own_units(float(metric.objective(values)))),
        }
        for record in records
        for step, values in record.curve
    ]


def best(problem: Problem, records: Sequence[Record], answer: Recommendation) -> dict[str, Any]:
    """Contents of ``best.json``."""
    return {
        "weights": dict(zip(problem.space.domains, answer.weights, strict=True)),
        "model_size": answer.model_size,
        "steps": answer.steps,
        "predicted": answer.predicted,
        "interval": list(answer.interval),
        "tested": answer.tested,
        "baseline": dict(zip(problem.space.domains, answer.baseline, strict=True)),
        "gain_over_baseline": answer.gain,
        "spent_flops": spent(records),
        "spent_full_runs": spent(records) / problem.full_run,
        "trials": len(records),
    }


def write_best(folder: Path, values: Mapping[str, Any]) -> None:
    """Replace ``best.json``."""
    write_json(folder / "best.json", values)
