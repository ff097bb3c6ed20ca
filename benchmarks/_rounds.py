"""Timing contenders side by side: every round runs each of them once, in a new order, so that whatever else the machine does hits all."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments(description: str | None) -> argparse.Namespace:
    """The options that all scripts take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of the process, on a busy machine (one thread only)")
    return parser.parse_args()


def seconds(contenders: Mapping[str, Callable[[], Any]], rounds: int, clock: str) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one run that does not count."""
    now, order = CLOCKS[clock], random.Random(0)
    for run in contenders.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in order.sample(list(contenders), len(contenders)):
            start = now()
            contenders[name]()
            taken[name].append(now() - start)
    return taken


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def save(path: Path | None, results: Mapping[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")
