"""What a run writes down while it goes: records to the sinks, phase times to ``light.csv``, the processes to ``ranks.json``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from ..config import RunFolder, write_json
from ..config.compose import as_dict
from ..distributed import Ranks
from ..metrics.sinks import Sinks
from ..model import sizing
from ..profiler import flops, memory
from ..profiler.light import Clock, Light
from .resolve import Training

log = logging.getLogger("nanollama")
UTILISATION = ("mfu_causal", "mfu_palm", "hfu")


class Journal:
    """Files are written by rank 0. Speeds are those of the training alone: evaluations and checkpoints do not count as its time."""

    def __init__(self, cfg: Training, run: RunFolder, ranks: Ranks) -> None:
        self.cfg, self.run, self.ranks = cfg, run, ranks
        self.shape = sizing.resolve(cfg.model)
        peak = flops.peak(torch.cuda.get_device_name(ranks.device), cfg.train.precision) if ranks.device.type == "cuda" else None
        self.peak = peak * ranks.world if peak else None
        self.clock = Clock(ranks.device)
        self.sinks = Sinks(run.path, cfg.metrics, {}, active=False)
        self.light: Light | None = None
        self._tokens = self._steps = 0  # before this interval, and in it

    def open(self, resume_step: int) -> None:
        """Open the files at a step: what they hold of later ones is dropped."""
        mine = memory.describe(self.ranks.rank, self.ranks.device)
        log.info("rank %(rank)d on %(host)s: %(device)s, %(threads)d threads, %(host_memory_available)d bytes available", mine)
        everyone = self.ranks.gather(mine)
        first = self.ranks.rank == 0
        self.sinks = Sinks(self.run.path, self.cfg.metrics, as_dict(self.cfg), resume_step, active=first)
        if first:
            write_json(self.run.path / "ranks.json", {"ranks": everyone})
        if first and self.cfg.profiler.light:
            self.light = Light(self.run.path / "light.csv", resume_step)

    def start_interval(self, tokens: int) -> None:
        """Training goes on from here, with ``tokens`` behind it."""
        self._tokens, self._steps = tokens, 0
        self.clock.start()

    def count_step(self) -> None:
        """One more step in this interval."""
        self._steps += 1

    def interval(self, record: dict[str, Any]) -> dict[str, Any]:
        """Complete a training record with speed and utilisation, write it everywhere, begin the next interval."""
        seconds = self.clock.read()
        speed = (record["tokens"] - self._tokens) / (sum(seconds.values()) - seconds["other"])
        length = self.cfg.data.seq_len
        record |= {"tokens_per_s": speed} | {name: getattr(flops, name)(self.shape, length, speed, self.peak) for name in UTILISATION}
        self.sinks.write(record)
        if self.light:
            self.light.write(record, seconds, self._steps, memory.in_use(self.ranks.device))
        self._tokens, self._steps = record["tokens"], 0
        self.clock.lap("log")
        return record

    def write(self, record: Mapping[str, Any]) -> None:
        """A record of an evaluation."""
        self.sinks.write(record)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is done."""
        self.sinks.finish(result)

    def close(self) -> None:
        """Let go of the files."""
        self.sinks.close()
        if self.light:
            self.light.close()
