"""From records to the arrays that a surrogate is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from src.nanollama.arrays import Array, Ints

from .problem import Problem
from .records import Record, Run, runs


@dataclass(frozen=True)
class Observations:
    """Rows ``[w, s, t, run]`` (n, K + 3), values (n, outputs) as measured, and rows still to be measured (p, K + 3)."""

    x: Array
    y: Array
    pending: Array


def rows(problem: Problem, weights: Array, size: Ints | int, steps: Array | float, run: Array | float = -1.0) -> Array:
    """Inputs of the surrogate for (n, K) mixtures; ``size`` is an index; run -1 stands for the mean over training seeds."""
    weights = np.atleast_2d(weights)
    s, t = _coordinates(problem, size, steps)
    columns = [np.broadcast_to(column, len(weights)).astype(float)[:, None] for column in (s, t, np.asarray(run))]
    return np.hstack([weights, *columns])


def observations(problem: Problem, records: Sequence[Record], thinning: tuple[int, float]) -> Observations:
    """Thinned learning curves of finished trials, what running ones have shown so far, and what they will still show.

    ``thinning``: at most how many checkpoints per run, and the ratio between their steps.
    """
    seen, y, pending = _Rows(), [], _Rows()
    most, ratio = thinning
    for run in runs(records):
        where = np.array(run.weights), problem.fidelities.index(run.model_size), run.numbers[0]
        values = dict(run.curve)
        for step in _thin([step for step, _ in run.curve], most, ratio):
            seen.add(*where, step)
            y.append(values[step])
        if run.running:
            for step in _still_to_come(problem, run):
                pending.add(*where, step)
    if problem.surrogate.failed == "penalise":
        for record, worst in _penalties(problem, records):
            seen.add(np.array(record.weights), problem.fidelities.index(record.model_size), record.number, record.steps)
            y.append(worst)
    return Observations(
        x=seen.inputs(problem),
        y=np.array(y, dtype=float).reshape(-1, len(problem.metric.outputs)),
        pending=pending.inputs(problem),
    )


@dataclass
class _Rows:
    """Rows of inputs in the making."""

    weights: list[Array] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(self, weights: Array, size: int, run: int, step: int) -> None:
        self.weights.append(weights)
        self.sizes.append(size)
        self.runs.append(run)
        self.steps.append(step)

    def inputs(self, problem: Problem) -> Array:
        if not self.weights:
            return np.empty((0, problem.space.dim + 3))
        return rows(problem, np.array(self.weights), np.array(self.sizes), np.array(self.steps, dtype=float), np.array(self.runs))


def _coordinates(problem: Problem, size: Ints | int, steps: Array | float) -> tuple[Array, Array]:
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
    """The last two checkpoints of a running trial, each once; with a decay its end alone, which is all that it will show."""
    seen = run.curve[-1][0] if run.curve else 0
    coming = [step for step in problem.fidelities.steps if seen < step <= run.ends]
    return coming[-1:] if problem.decay else coming[-2:]


def _penalties(problem: Problem, records: Sequence[Record]) -> list[tuple[Record, tuple[float, ...]]]:
    """Each failed trial with the worst value any trial showed at that size and step (or at all, where none did)."""
    seen: list[tuple[tuple[str, int], tuple[float, ...]]] = [
        ((record.model_size, step), values) for record in records if record.status != "failed" for step, values in record.curve
    ]
    found = []
    for record in records:
        if record.status == "failed" and seen:
            near = [values for key, values in seen if key == (record.model_size, record.steps)] or [values for _, values in seen]
            found.append((record, max(near, key=lambda values: float(problem.metric.objective(values)))))
    return found
