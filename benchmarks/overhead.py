"""What watching a training costs: logging with the light profiler per step, and the stall of a checkpoint.

    python benchmarks/overhead.py [--quick] [--json PATH] [--steps N] [--clock wall|cpu]

The real loop at GSSM-debug size (16 x 256 tokens, d=128, 4 layers), records to JSONL, TensorBoard and light.csv every 10 steps. Its parts
are timed within the same steps, so whatever else the machine does falls on both: the step itself, and everything the loop does beside it.
Checkpoints: time in which the call holds up the loop, in units of the median step, and what the following steps lose while the
background thread writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.apps.gssm.config import TRAIN
from src.nanollama.config import RunFolder, compose
from src.nanollama.distributed import Ranks, pick_device
from src.nanollama.launcher.signals import StopFlag
from src.nanollama.train.loop import Loop

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LAPS = 4  # of a step: data, forward, backward, optimizer


class Noise:
    """Uniform tokens: the data are not what is measured."""

    vocab_size, seq_len = 32, 256

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        return np.random.default_rng(start).integers(0, 32, (count, self.seq_len + 1), dtype=np.uint8)


def build(folder: Path, asynchronous: bool) -> tuple[Loop, torch.Tensor]:
    cfg = compose(TRAIN, ["experiment=debug", "train.steps=100000", "checkpoint.keep=1", "eval.period=0"])
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, asynchronous=asynchronous))
    folder.mkdir()
    here = Ranks(0, 1, pick_device(cfg.train.device))
    loop = Loop(cfg, RunFolder(folder), Noise(), {}, None, here, StopFlag())
    loop.restore()
    loop.journal.start_interval(0)
    return loop, torch.from_numpy(Noise().batch("train", 0, 16)).long().to(here.device)


def logging_share(folder: Path, steps: int, clock: Any) -> dict[str, float]:
    """Share of the loop's time that is not the step, median over log intervals."""
    loop, tokens = build(folder, asynchronous=False)
    period, shares, seconds = loop.cfg.train.log_period, [], []
    for _ in range(max(2, steps // period)):
        working = beside = 0.0
        for _ in range(period):
            began = clock()
            lr = loop.step(loop.state.step, tokens)
            float(loop.step.norm)  # so that a GPU's work falls to the step
            stepped = clock()
            loop.journal.clock.lap("data")
            loop._count()
            if loop.state.step % period == 0:
                loop._log(lr)
            loop._save_and_evaluate()
            beside += clock() - stepped
            working += stepped - began
        began = clock()
        for _ in range(1000):
            loop.journal.clock.lap("data")
        lap = (clock() - began) / 1000
        loop.journal.start_interval(loop.state.tokens)
        shares.append((beside + (LAPS - 1) * lap * period) / (working + beside))
        seconds.append(working / period)
    loop.close()
    return {"step_s": statistics.median(seconds), "share": statistics.median(shares[1:])}


def checkpoint_stall(folder: Path, saves: int, asynchronous: bool) -> dict[str, float]:
    """Wall seconds of the save call, of a median step, and what the steps during the writing lose; medians over saves."""
    loop, tokens = build(folder, asynchronous)
    stalls, losses, plain = [], [], []

    def step() -> float:
        began = time.perf_counter()
        loop.step(loop.state.step, tokens)
        float(loop.step.norm)
        loop._count()
        return time.perf_counter() - began

    for _ in range(3):
        step()
    for _ in range(saves):
        quiet = [step() for _ in range(5)]
        began = time.perf_counter()
        loop._save()
        stalls.append(time.perf_counter() - began)
        busy = [step() for _ in range(3)]
        losses.append(sum(busy) - 3 * statistics.median(quiet))
        plain += quiet
        loop.store.wait()
    loop.close()
    one = statistics.median(plain)
    return {"step_s": one, "stall_s": statistics.median(stalls), "stall_steps": statistics.median(stalls) / one,
            "after_steps": statistics.median(losses) / one}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    steps, saves = args.steps or (30 if args.quick else 100), 3 if args.quick else 9
    with tempfile.TemporaryDirectory() as scratch:
        found = {
            "logging": logging_share(Path(scratch) / "log", steps, CLOCKS[args.clock]),
            "checkpoint": checkpoint_stall(Path(scratch) / "sync", saves, asynchronous=False),
            "checkpoint_asynchronous": checkpoint_stall(Path(scratch) / "async", saves, asynchronous=True),
        }
    watching = found["logging"]
    print(f"logging and light profiler: {watching['share']:.2%} of a step of {watching['step_s'] * 1e3:.0f} ms (target: under 1 %)")
    for name in ("checkpoint", "checkpoint_asynchronous"):
        row = found[name]
        print(f"{name}: stalls {row['stall_s'] * 1e3:.0f} ms = {row['stall_steps']:.2f} steps; after it {row['after_steps']:.2f} are lost")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
