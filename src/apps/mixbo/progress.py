"""What a sweep shows while it runs: a live table in a terminal, a line a trial elsewhere."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from .controller import Limits
from .phrases import Phrases, shares
from .problem import Problem
from .records import Record, spent

SHOWN = 8  # newest trials in the live table


class Live(ABC):
    """What is shown of a sweep: a live drawing where standard error is a terminal; use as a context manager. Elsewhere ``live`` is None."""

    def __init__(self) -> None:
        self.live = RichLive(console=Console(stderr=True), auto_refresh=False) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    @abstractmethod
    def conclude(self, answer: Mapping[str, Any], reason: str) -> None:
        """Say what came of it."""


class Progress(Live):
    """Draws the state of a study."""

    def __init__(self, problem: Problem, limits: Limits, folder: Path) -> None:
        super().__init__()
        self.problem, self.limits, self.folder = problem, limits, folder
        self.began = time.time()
        self.start_spent: float | None = None
        self.printed: set[int] = set()

    def show(self, records: Sequence[Record], answer: Mapping[str, Any]) -> None:
        """Draw the study as it is now."""
        if self.start_spent is None:
            self.start_spent = spent(records)
        if self.live:
            self.live.update(self._table(records, answer), refresh=True)
            return
        for record in records:
            if record.status != "running" and record.number not in self.printed:
                self.printed.add(record.number)
                print(f"trial {record.number:3d}  {self._describe(record)}  {self._spent(records[: record.number + 1])}", flush=True)

    def conclude(self, answer: Mapping[str, Any], reason: str) -> None:
        """The answer, in words."""
        if not answer:
            print(f"no trial has ended yet ({reason})")
            return
        low, high = answer["interval"]
        kind = "tested there" if answer["tested"] else "predicted, not tested there"
        print(f"best mixture for {answer['model_size']} at step {answer['steps']} ({kind}): {_mixture(answer['weights'])}")
        print(f"objective {answer['predicted']:.4f}, 95 % interval [{low:.4f}, {high:.4f}]; {self._cost(answer['spent_flops'])} spent")
        print(f"stopped: {reason}; everything is in {self.folder}")

    def _table(self, records: Sequence[Record], answer: Mapping[str, Any]) -> RenderableType:
        table = Table(title=f"{self.problem.strategy.name}: {self._spent(records)}{self._eta(records)}", title_justify="left", expand=False)
        for name in ("trial", "mixture", "size", "steps", "objective", "FLOPs", "status"):
            table.add_column(name, justify="right" if name in ("trial", "steps", "objective", "FLOPs") else "left")
        for record in list(records)[-SHOWN:]:
            style = {"running": "yellow", "failed": "red"}.get(record.status, "")
            origin = f" (continues {record.parent})" if record.parent is not None else ""
            table.add_row(
                str(record.number), Phrases(shares(self._weights(record))), record.model_size,
                str(record.steps), self._value(record), f"{record.flops:.2g}", Text(record.status + origin, style=style),
            )  # fmt: skip
        if not answer:
            return table
        low, high = answer["interval"]
        best, value = f"best for {answer['model_size']} at {answer['steps']}:", f" {answer['predicted']:.4f} [{low:.4f}, {high:.4f}]"
        return Group(table, Phrases([best, *shares(answer["weights"]), value], "table.caption"))

    def _describe(self, record: Record) -> str:
        return f"{_mixture(self._weights(record))}  {record.model_size}@{record.steps}  {self._value(record)}  {record.status}"

    def _weights(self, record: Record) -> dict[str, float]:
        return dict(zip(self.problem.space.domains, record.weights, strict=True))

    def _value(self, record: Record) -> str:
        if not record.curve:
            return "-"
        metric = self.problem.metric
        return f"{float(metric.own_units(float(metric.objective(record.curve[-1][1])))):.4f}"

    def _spent(self, records: Sequence[Record]) -> str:
        done = spent(records)
        share = f" ({100 * done / self.limits.flops:.0f} % of the budget)" if self.limits.flops < float("inf") else ""
        return self._cost(done) + share

    def _cost(self, flops: float) -> str:
        return f"{flops:.3g} FLOPs = {flops / self.problem.full_run:.2f} full runs"

    def _eta(self, records: Sequence[Record]) -> str:
        """Time left by FLOPs so far; nothing before there is a rate to go by."""
        done = spent(records) - (self.start_spent or 0.0)
        if done <= 0 or self.limits.flops == float("inf"):
            return ""
        seconds = max(0.0, (self.limits.flops - spent(records)) / done * (time.time() - self.began))
        return f", about {seconds / 60:.0f} min left" if seconds > 90 else f", about {seconds:.0f} s left"


def _mixture(weights: Mapping[str, float]) -> str:
    return " ".join(shares(weights))
