"""Seconds to suggest the next trial of a mixture study that holds 300 observations: 60 runs of five values each, strategy kg.

    python benchmarks/bo_seconds.py [--quick] [--json PATH]

One output and seven, one thread, processor time, median over trials. With a refit: the suggestion after every fourth finished trial, which
also fits the hyper-parameters again, from where the fit before ended. Target: .5 s.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rounds import save
from threadpoolctl import threadpool_limits

from src.apps.mixbo.design import initial_design
from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.options import SimulatorConfig, SpaceConfig
from src.apps.mixbo.problem import Problem
from src.apps.mixbo.records import Record
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.suggest import suggest

RUNS = 60  # of five checkpoints each
TARGET = 0.5  # s
SHARES = (0.1, 0.25, 0.25, 0.25, 0.15)  # of the runs after the initial design, by size from small to large


def study(seed: int, outputs: int, runs: int) -> tuple[Problem, list[Record]]:
    """The initial design, then random mixtures at random sizes, all to the last step."""
    space = MixtureSpace.from_config(SpaceConfig())
    simulator = Simulator(SimulatorConfig(outputs=outputs, noise=0.003, run_noise=0.003, seed=seed), space)
    problem = Problem(space, simulator.fidelities, simulator.metric, simulator.flops_per_step)
    rng, steps = np.random.default_rng(seed), simulator.fidelities.steps
    plan = initial_design(problem, seed)
    plan += [(space.sample(1, rng)[0], int(rng.choice(len(SHARES), p=SHARES))) for _ in range(runs - len(plan))]
    records = []
    for number, (weights, size) in enumerate(plan):
        name, w = simulator.fidelities.sizes[size], tuple(weights.tolist())
        curve = tuple(simulator.observe(w, name, steps, number))
        records.append(Record(number, w, name, steps[-1], "ok", curve, simulator.flops_per_step[size] * steps[-1], None))
    return problem, records


def measure(outputs: int, runs: int, seeds: int) -> dict[str, list[float]]:
    """Seconds of the suggestions before and at the last refit of each study."""
    taken: dict[str, list[float]] = {"without a refit": [], "with a refit": []}
    for seed in range(seeds):
        problem, records = study(seed, outputs, runs)
        suggest(problem, records[:-4], seed, runs - 4)  # all fits but the last
        for count in range(runs - 3, runs + 1):
            start = time.process_time()
            suggest(problem, records[:count], seed, count)
            taken["with a refit" if count % problem.surrogate.refit == 0 else "without a refit"].append(time.process_time() - start)
    return taken


def results(runs: int, seeds: int) -> dict[str, Any]:
    """Printed as they come."""
    found: dict[str, Any] = {}
    for outputs in (1, 7):
        for what, taken in measure(outputs, runs, seeds).items():
            middle = statistics.median(taken)
            seconds = f"{middle:.2f} s ({min(taken):.2f}-{max(taken):.2f})"
            verdict = f", wanted {TARGET}: {'met' if middle <= TARGET else 'MISSED'}" if runs == RUNS else ""
            print(f"{outputs} output(s), {5 * runs} observations, {what}: {seconds}{verdict}", flush=True)
            found[f"{outputs} outputs {what}"] = {"seconds": taken, "median": middle, "met": middle <= TARGET}
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one study of 24 runs: shows that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    runs, seeds = (24, 1) if args.quick else (RUNS, 7)
    torch.set_num_threads(1)
    measure(1, 24, 1)  # compiles, and loads the libraries whose threads are limited next, as in a sweep
    with threadpool_limits(1):
        save(args.json, results(runs, seeds))


if __name__ == "__main__":
    main()
