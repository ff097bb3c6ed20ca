"""The heavy profiler: torch.profiler over a few steps, every operator and kernel with its time, shape and memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from ..config.schema import TraceConfig

TOP = 20  # operators in the table


class Tracer:
    """Call ``step`` after every training step. Recordings go to ``traces/``, one file a rank, and a table of operators to TensorBoard.

    Does nothing unless ``cfg.active``.
    """

    def __init__(self, run_dir: Path, cfg: TraceConfig, rank: int, device: torch.device) -> None:
        self.run_dir, self.rank, self.number = run_dir, rank, 0
        self.cuda = device.type == "cuda"
        self.memory = cfg.memory and self.cuda and cfg.active
        self.profile: profile | None = None
        if cfg.active:
            (run_dir / "traces").mkdir(exist_ok=True)
            self._write = tensorboard_trace_handler(str(run_dir / "traces"), worker_name=f"rank{rank}", use_gzip=True)
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
            warmup = min(1, cfg.wait)
            plan = schedule(wait=cfg.wait - warmup, warmup=warmup, active=cfg.steps, repeat=cfg.repeat)
            self.profile = profile(
                activities=activities, schedule=plan, on_trace_ready=self._ready, record_shapes=True, profile_memory=True, with_flops=True
            )

    def __enter__(self) -> Tracer:
        if self.memory:
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        if self.profile:
            self.profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.profile:
            self.profile.stop()
        if self.memory:
            torch.cuda.memory._record_memory_history(enabled=None)

    def step(self, number: int) -> None:
        """Optimiser step ``number`` is done."""
        self.number = number
        if self.profile:
            with warnings.catch_warnings():  # each recording is written before the next one clears it
                warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
                self.profile.step()

    def _ready(self, recorded: profile) -> None:
        self._write(recorded)
        if self.memory:
            torch.cuda.memory._dump_snapshot(str(self.run_dir / "traces" / f"memory_rank{self.rank}_step{self.number}.pickle"))
        if self.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(str(self.run_dir / "tb")) as writer:
                writer.add_text("profiler/top_ops", table(recorded.key_averages(), self.cuda), self.number)


def table(events: Any, cuda: bool) -> str:
    """The operators that take most time of their own (on the device, where there is one), as a Markdown table in milliseconds."""
    own, total = ("self_device_time_total", "device_time_total") if cuda else ("self_cpu_time_total", "cpu_time_total")
    rows = sorted(events, key=lambda event: -getattr(event, own))[:TOP]
    lines = [f"| `{e.key}` | {e.count} | {getattr(e, own) / 1e3:.3f} | {getattr(e, total) / 1e3:.3f} |" for e in rows]
    return "\n".join(["| operator | calls | own ms | total ms |", "|---|---|---|---|", *lines])
