"""Measure what training steps of several shapes cost: peak memory and time. Started by the growth in a process of its own.

    python -m src.apps.mixbo.growth.probe RUN_DIR        # reads shapes.json there, leaves result.json

Each measurement is made in a fork of this process, which has loaded torch and done nothing else, so that no shape inherits another's
memory, caches or compiled graphs. Shapes take turns, forwards and then backwards (A B B A ...), so that whatever else changes on the
machine meanwhile hits all of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.nanollama.config import write_json
from src.nanollama.config.schema import ModelConfig, OptimConfig, TrainConfig

WARM_UP, TIMED = 3, 12  # steps of one measurement; compiled modes warm up longer
COMPILED_WARM_UP = 8
ROUNDS = 4  # measurements of each shape: even, so that A B B A is complete


def step_times(parts: Mapping[str, Any]) -> dict[str, Any]:
    """One shape: milliseconds of every timed step, and the peak memory in MB above what this process had before."""
    import torch

    from src.nanollama.distributed import Ranks, pick_device
    from src.nanollama.model.transformer import Transformer
    from src.nanollama.profiler.memory import peak
    from src.nanollama.train.state import TrainState
    from src.nanollama.train.step import Step

    model, optim = ModelConfig(**parts["model"]), OptimConfig(**parts["optim"])
    train = TrainConfig(**parts["train"])
    here = Ranks(0, 1, pick_device(train.device))
    state = TrainState(Transformer(model).to(here.device), replace(train, steps=max(train.steps, 100)), optim, here)
    step = Step(state, train, optim, here)
    tokens = torch.randint(model.vocab_size or 1, (parts["batch"], parts["seq_len"] + 1), device=here.device)
    for i in range(WARM_UP if train.mode == "eager" else COMPILED_WARM_UP):
        step(i, tokens)
    float(step.norm)  # waits for the device
    if here.device.type == "cuda" and train.mode != "cudagraph":  # what a graph needs was allocated when it was recorded
        torch.cuda.reset_peak_memory_stats(here.device)
    times = []
    for i in range(TIMED):
        began = time.perf_counter()
        step(i, tokens)
        float(step.norm)
        times.append(1e3 * (time.perf_counter() - began))
    return {"times": times, "peak": peak(here.device) / 1e6}


def in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of ``work`` done in a copy of this process. Raises RuntimeError if the copy fails."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                json.dump(work(), out)
            code = 0
        except BaseException as error:  # the copy must not go on with the parent's work
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as out:
        text = out.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the measurement of a shape failed (status {status}); its output is in logs/stdout.log")
    found: dict[str, Any] = json.loads(text)
    return found


def turns(count: int, rounds: int) -> list[int]:
    """Whose turn it is: forwards, backwards, forwards, ..."""
    there = list(range(count))
    return [index for turn in range(rounds) for index in (there if turn % 2 == 0 else there[::-1])]


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Median and median absolute deviation."""
    middle = statistics.median(values)
    return middle, statistics.median(abs(value - middle) for value in values)


def measure(configs: Sequence[Mapping[str, Any]], rounds: int = ROUNDS) -> list[dict[str, tuple[float, float]]]:
    """Per shape: ``iter`` in ms and ``vram`` in MB, each as (median, scatter of the medians of the single measurements)."""
    import torch  # noqa: F401  (loaded once, before the forks)

    import src.nanollama.train.state
    import src.nanollama.train.step  # noqa: F401

    found: list[list[dict[str, Any]]] = [[] for _ in configs]
    for index in turns(len(configs), rounds):
        found[index].append(in_fork(lambda index=index: step_times(configs[index])))  # type: ignore[misc]
    return [
        {"iter": summary([statistics.median(one["times"]) for one in shape]), "vram": summary([one["peak"] for one in shape])}
        for shape in found
    ]


def main(argv: Sequence[str]) -> int:
    """Measure what ``shapes.json`` lists; returns the exit code."""
    run_dir = Path(argv[0])
    lock = (run_dir / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)  # a growth that was killed and started again waits for this probe
    began = time.time()
    configs = json.loads((run_dir / "shapes.json").read_text())["configs"]
    try:
        values: dict[str, Any] = {"status": "ok", "costs": measure(configs)}
    except Exception as error:
        values = {"status": "error", "message": str(error)}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    write_json(run_dir / "result.json", {**values, "wall_s": round(time.time() - began, 3), "cpu_s": round(used.ru_utime, 3)})
    return 0 if values["status"] == "ok" else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
