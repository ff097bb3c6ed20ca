"""From records to the arrays that a surrogate is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .problem import Problem
from .records import Record, Run, runs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observations:
    """Rows ``[w, s, t, run]`` (n, K + 3), values (n, outputs) as measured, and rows still to be measured (p, K + 3)."""

    x: Array
    y: Array
    pending: Array


def rows(problem: Problem, weights: Array, size: NDArray[np.int64] | int, steps: Array | float, run: Array | float = -1.0) -> Array:
    """Inputs of the surrogate for (n, K) mixtures; ``size`` is an index; run -1 stands for the mean over training seeds."""
    weights = np.atleast_2d(weights)
    s, t = _coordinates(problem, size, steps)
    columns = [np.broadcast_to(column, len(weights)).astype(float)[:, None] for column in (s, t, np.asarray(run))]
    return np.hstack([weights, *columns])


def observations(problem: Problem, records: Sequence[Record], thinning: tuple[int, float]) -> Observations:
    """Thinned learning curves of finished trials, what running ones have shown so far, and what they will still show.

    ``thinning``: at most how many checkpoints per run, and the ratio between their steps.
    """
    x, y, pending = [], [], []
    most, ratio = thinning
    for run in runs(records):
        size, identity = problem.fidelities.index(run.model_size), run.numbers[0]
        weights = np.array(run.weights)
        kept = _thin([step for step, _ in run.curve], most, ratio)
        values = dict(run.curve)
        for step in kept:
            x.append(rows(problem, weights, size, step, identity))
            y.append(values[step])
        if run.running:
            for step in _still_to_come(problem, run):
                pending.append(rows(problem, weights, size, step, identity))
    if problem.surrogate.failed == "penalise":
        for row, value in _penalties(problem, records):
            x.append(row)
            y.append(value)
    width, outputs = problem.space.dim + 3, len(problem.metric.outputs)
    return Observations(
        x=np.vstack(x) if x else np.empty((0, width)),
        y=np.array(y, dtype=float).reshape(-1, outputs),
        pending=np.vstack(pending) if pending else np.empty((0, width)),
    )


def _coordinates(problem: Problem, size: NDArray[np.int64] | int, steps: Array | float) -> tuple[Array, Array]:
    if problem.surrogate.kernel != "flops":
        return problem.fidelities.coordinates(size, steps)
    logs = np.log(np.asarray(problem.flops_per_step)[np.asarray(size)] * np.asarray(steps, dtype=float))
    low, high = np.log(problem.flops_per_step[0] * problem.fidelities.steps[0]), np.log(problem.full_run)
    return (logs - low) / max(high - low, 1e-9), np.ones_like(logs)


def _thin(steps: Sequence[int], most: int, ratio: float) -> list[int]:
    """The steps nearest to last, last / ratio, last / ratio^2, ...: curves change evenly in log step."""
    wanted = [steps[-1] / ratio**k for k in range(most)] if steps else []
    logs = np.log(np.asarray(steps, dtype=float))
    return sorted({steps[int(np.argmin(np.abs(logs - np.log(w))))] for w in wanted if w >= steps[0] / ratio**0.5})


def _still_to_come(problem: Problem, run: Run) -> list[int]:
    seen = run.curve[-1][0] if run.curve else 0
    return [step for step in (*problem.fidelities.steps, run.ends) if seen < step <= run.ends][-2:]


def _penalties(problem: Problem, records: Sequence[Record]) -> list[tuple[Array, tuple[float, ...]]]:
    """Each failed trial as the worst value any trial showed at that size and step (or at all, where none did)."""
    seen: list[tuple[tuple[str, int], tuple[float, ...]]] = [
        ((record.model_size, step), values) for record in records if record.status != "failed" for step, values in record.curve
    ]
    found = []
    for record in records:
        if record.status == "failed" and seen:
            near = [values for key, values in seen if key == (record.model_size, record.steps)] or [values for _, values in seen]
            worst = max(near, key=lambda values: float(problem.metric.objective(values)))
            row = rows(problem, np.array(record.weights), problem.fidelities.index(record.model_size), record.steps, record.number)
            found.append((row, worst))
    return found
