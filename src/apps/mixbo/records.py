"""What a strategy may know: the trials of a study, as plain immutable data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.nanollama.arrays import Array

from .protocol import Status, T, Trial


@dataclass(frozen=True)
class Suggestion:
    """The next trial, and why: the acquisition value, the prediction at the suggested point and the fidelity's trust (``rho``)."""

    weights: tuple[float, ...]
    model_size: str
    steps: int
    continues: int | None = None  # trial whose run is extended, paying only for the added steps
    acquisition: float | None = None
    predicted_mean: float | None = None  # objective (minimised) at the suggested mixture, size and step
    predicted_sd: float | None = None  # of one run's value there, same units
    rho: float | None = None  # posterior correlation of the fidelity with the target
    flops: float = 0.0  # incremental, without launch overhead


@dataclass(frozen=True)
class Record:
    """One trial. ``curve`` holds ``(step, one value per output)``, of this trial's own steps only, in the metric's own units."""

    number: int
    weights: tuple[float, ...]
    model_size: str
    steps: int
    status: Status = "running"
    curve: tuple[tuple[int, tuple[float, ...]], ...] = ()
    flops: float = 0.0  # added by this trial
    parent: int | None = None


@dataclass(frozen=True)
class Run:
    """Trials that continue one another, as one training: its whole learning curve, and how far it will go."""

    numbers: tuple[int, ...]
    weights: tuple[float, ...]
    model_size: str
    curve: tuple[tuple[int, tuple[float, ...]], ...]
    reached: int  # last step of the finished part: where a continuation starts; 0 if nothing is finished
    ends: int  # steps asked for; more than the last observed one while a trial of it is running
    running: bool = field(default=False)

    @property
    def last(self) -> int:
        """Trial that a continuation names."""
        return self.numbers[-1]


def runs(records: Iterable[Record]) -> list[Run]:
    """Merge continuations into runs, in order of their first trial. Failed trials are left out (with what hangs on them)."""
    grown: dict[int, Run] = {}  # by number of the last trial so far
    for record in sorted(records, key=lambda record: record.number):
        if record.status == "failed":
            continue
        if record.parent is not None and record.parent not in grown:
            continue
        parent = grown.pop(record.parent) if record.parent is not None else None
        running = record.status == "running"
        before = parent.reached if parent else 0
        grown[record.number] = Run(
            numbers=(*(parent.numbers if parent else ()), record.number),
            weights=record.weights,
            model_size=record.model_size,
            curve=tuple(sorted((*(parent.curve if parent else ()), *record.curve))),
            reached=before if running else record.steps,
            ends=record.steps,
            running=running,
        )
    return sorted(grown.values(), key=lambda run: run.numbers[0])


def spent(records: Iterable[Trial]) -> float:
    """FLOPs charged so far, running and failed trials included."""
    return float(sum(record.flops for record in records))


def finished(records: Iterable[T]) -> list[T]:
    """Trials with a result, by number."""
    return sorted((record for record in records if record.status == "ok"), key=lambda record: record.number)


def same(a: Sequence[float] | Array, b: Sequence[float] | Array, tolerance: float = 1e-6) -> bool:
    """Whether two mixtures are the same up to storage precision."""
    return bool(np.max(np.abs(np.asarray(a) - np.asarray(b))) <= tolerance)
