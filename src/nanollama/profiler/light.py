"""The light profiler: where the time of a step goes and what memory it takes, as one row of ``light.csv`` per log line."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import write_csv

PHASES = ("data", "forward", "backward", "optimizer", "graph", "log", "other")
COLUMNS = (
    *("segment", "step", "time", "tokens_per_s", "mfu_causal", "mfu_palm", "hfu"),
    *(f"{phase}_s" for phase in PHASES),
    *("memory_allocated", "memory_reserved", "host_rss"),
)


class Clock:
    """Time between laps, by phase. On a GPU a lap is an event in its stream: taking it waits for nothing, reading does.

    ``data``: waiting for the batch and its way to the device. ``graph``: a captured step, which has no parts. ``log``: writing records.
    ``other``: evaluations and checkpoints.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spare: list[torch.cuda.Event] = []
        self.start()

    def start(self) -> None:
        """Forget everything and begin the first lap."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._laps: list[tuple[str, torch.cuda.Event]] = []
        self._last = time.perf_counter()
        if self._cuda:
            self.lap("other")

    def lap(self, phase: str) -> None:
        """Everything since the last lap was ``phase``."""
        if self._cuda:
            event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            event.record()
            self._laps.append((phase, event))
        else:
            now = time.perf_counter()
            self._seconds[phase] += now - self._last
            self._last = now

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last reading; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            for (_, before), (phase, event) in zip(self._laps, self._laps[1:], strict=False):
                self._seconds[phase] += before.elapsed_time(event) / 1e3
            self._spare += [event for _, event in self._laps[:-1]]
            self._laps = self._laps[-1:]
        seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return seconds


class Light:
    """``light.csv``. On resume rows past the checkpoint are dropped and the new ones carry the next ``segment`` number.

    Times are seconds per step, means over the interval; memory in bytes, of rank 0 (``memory_*``: the device's allocator, empty on CPU).
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        kept = [row for row in read_light(path) if int(row["step"]) <= resume_step] if path.exists() else []
        self._segment = 1 + max((int(row["segment"]) for row in kept), default=-1)
        write_csv(path, kept, COLUMNS)
        self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, COLUMNS)

    def write(self, record: Mapping[str, Any], seconds: Mapping[str, float], steps: int, memory: Mapping[str, int | None]) -> None:
        """One row: the training record of the interval, the clock's reading, over how many steps, and ``memory.in_use``."""
        shown = {key: record[key] for key in COLUMNS if key in record}
        phases = {f"{phase}_s": f"{seconds[phase] / steps:.6g}" for phase in PHASES}
        self._writer.writerow({"segment": self._segment, "time": f"{time.time():.3f}", **shown, **phases, **memory})

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read_light(path: Path) -> list[dict[str, str]]:
    """The whole rows of a ``light.csv``; a torn last one (killed while writing) is left out."""
    with path.open(newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [row for row in csv.DictReader(lines) if None not in row.values()]
