"""How much compute a strategy needs to find a good mixture for the largest model.

    python benchmarks/bo.py [--quick] [--json PATH]                        # our own synthetic problems, exact optimum
    python benchmarks/bo.py --emulator PATH [--metrics mean stackexchange ...] [--noise 0.005] [--cache DIR]
    python benchmarks/bo.py --strategies kg --seeds 5 --set surrogate.kernel=joint    # the seven-input idea; flops: the six-input one

Costs are FLOPs of what was really trained, in full runs of the largest model (FRE), launch overhead not counted. Regret is noise-free,
at the target. Model-based strategies are scored on what they recommend, asked whenever .1 FRE more were spent; random search and
Hyperband on their best full run. One process; with --cache each study is stored when it ends, so that an interrupted benchmark goes on
where it stopped (delete the folder after a change of the code).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rounds import save

from src.apps.mixbo.config import SWEEP
from src.apps.mixbo.objectives import Objective
from src.apps.mixbo.objectives.emulator import Emulator
from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.options import SimulatorConfig, SpaceConfig
from src.apps.mixbo.problem import Problem
from src.apps.mixbo.recommend import recommend
from src.apps.mixbo.records import Record, runs
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.suggest import suggest
from src.apps.mixbo.truth import Truth
from src.nanollama.config import compose

CUTS = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 14, 20, 40, 100)  # FRE
EVERY = 0.1  # FRE between two questions for the answer
PARTS = ("surrogate", "strategy", "cost")  # of a sweep's config that ``--set`` may change
STEPS = (1200, 2400, 4900, 9800, 19500)
STEPS_HYPERBAND = (200, 700, 2200, 6500, 19500)  # a third each, in the emulator's units of 100
BUDGETS = {"random": 100.0, "hyperband": 40.0, "ei": 14.0}  # others: 10
TARGETS = {  # metric: (cost in FRE, median regret at most)
    "mean": ((0.5, 0.0213), (4, 0.0167), (6, 0.0084), (10, 0.0042)),
    "stackexchange": ((5, 0.0020),),
    "commoncrawl": ((8, 0.0069),),
    "hellaswag": ((1.5, 0.0045),),
}
WORST = {"hellaswag": ((2, 0.02),)}  # the same of the worst seed
SYNTHETIC = {
    "interior, r=.8": SimulatorConfig(noise=0.003, run_noise=0.003),
    "face, r=.3": SimulatorConfig(r_size=0.3, r_step=0.8, amplitude=0.03, gamma=1.0, noise=0.002, optimum=(0, 0.1, 0, 0.05, 0.85)),
    "corner, r=-.5": SimulatorConfig(r_size=-0.5, r_step=0.8, amplitude=0.015, noise=0.001, optimum=(0, 0, 0, 0, 1)),
    "five outputs, r=.7": SimulatorConfig(r_size=0.7, outputs=5, noise=0.003),
}


@dataclass(frozen=True)
class Study:
    """One simulated study: cost and regret after every trial, and processor seconds per suggestion."""

    cost: list[float]
    regret: list[float]
    seconds: list[float]
    trials: list[tuple[str, int]]


def simulate(problem: Problem, objective: Objective, truth: Truth, seed: int, budget: float) -> Study:
    """Run one study to ``budget`` FRE; the trial that would exceed it is not started."""
    model_free = problem.strategy.name in ("random", "hyperband")
    records: list[Record] = []
    study = Study([], [], [], [])
    total, best = 0.0, float("inf")
    regret, asked_at = float("nan"), 0.0
    while True:
        start = time.process_time()
        asked = suggest(problem, records, seed, len(records))
        seconds = time.process_time() - start
        total += asked.flops / problem.full_run
        if total > budget + 1e-9 or len(records) >= 400:
            return study
        parent = next((run for run in runs(records) if run.last == asked.continues), None)
        first = parent.reached if parent else 0
        steps = [step for step in problem.fidelities.steps if first < step <= asked.steps]
        identity = parent.numbers[0] if parent else len(records)
        curve = objective.observe(asked.weights, asked.model_size, steps, 1000 * seed + identity)
        records.append(Record(len(records), asked.weights, asked.model_size, asked.steps, "ok", tuple(curve), asked.flops, asked.continues))
        if not model_free and (total >= asked_at + EVERY or regret != regret):
            asked_at = total
            answer = recommend(problem, records)
            assert answer is not None
            regret = truth.regret(answer.weights) or 0.0
        elif (problem.fidelities.index(asked.model_size), asked.steps) == problem.fidelities.target:
            value = float(problem.metric.objective(curve[-1][1]))
            if value < best:
                best, regret = value, truth.regret(asked.weights) or 0.0
        study.cost.append(total)
        study.regret.append(regret)
        study.seconds.append(seconds)
        study.trials.append((asked.model_size, asked.steps))


def at(study: Study, cost: float) -> float:
    """Regret of the answer when ``cost`` was spent; infinite before the first."""
    known = [r for c, r in zip(study.cost, study.regret, strict=True) if c <= cost + 1e-9 and r == r]
    return known[-1] if known else float("inf")


def arrival(study: Study, level: float) -> float:
    """Cost from which the answer stays at or below ``level``; infinite if it is not there at the end."""
    found = float("inf")
    for cost, regret in zip(reversed(study.cost), reversed(study.regret), strict=True):
        if not regret <= level:
            break
        found = cost
    return found


def cached(
    folder: Path | None, key: dict[str, Any], problem: Problem, objective: Objective, truth: Truth, seed: int, budget: float
) -> Study:
    """``simulate``, or what it gave the last time."""
    if folder is None:
        return simulate(problem, objective, truth, seed, budget)
    path = folder / (hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16] + ".json")
    if path.exists():
        return Study(**json.loads(path.read_text())["study"])
    study = simulate(problem, objective, truth, seed, budget)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"key": key, "study": study.__dict__}))
    temporary.replace(path)
    return study


def quantiles(values: list[float]) -> list[float]:
    """Median, and of the values those nearest to the quartiles; infinite ones (never arrived) count as they are."""
    return [statistics.median(values), *(float(q) for q in np.quantile(values, (0.25, 0.75), method="nearest"))]


def report(title: str, strategy: str, studies: list[Study], gap: float, budget: float) -> dict[str, Any]:
    """Print one row per strategy and return the same as data."""
    cuts = [cut for cut in CUTS if cut <= budget]
    row = {cut: quantiles([at(study, cut) for study in studies]) for cut in cuts}
    reach = quantiles([arrival(study, 0.1 * gap) for study in studies])
    worst = {cut: max(at(study, cut) for study in studies) for cut in cuts}
    seconds = [s for study in studies for s in study.seconds]
    cells = "  ".join(f"{cut:g}: {q[0]:.4f} [{q[1]:.4f}-{q[2]:.4f}]" for cut, q in row.items() if np.isfinite(q[0]))
    arrived = f"{reach[0]:.2f}" if np.isfinite(reach[0]) else f"> {budget:g}"
    print(f"{title:<22}{strategy:<12}{len(studies):>5}  {arrived:>12}  {cells}", flush=True)
    return {"regret": row, "worst": worst, "arrival": reach, "seconds": statistics.mean(seconds), "slowest": max(seconds), "gap": gap}


def synthetic(strategies: list[str], seeds: int, budget: float | None, cache: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """Our own problems, whose optimum is exact; then the geometric mean of the regret over all studies of a strategy."""
    results: dict[str, Any] = {}
    everything: dict[str, list[Study]] = {}
    space = MixtureSpace.from_config(SpaceConfig())
    for title, options in SYNTHETIC.items():
        for strategy in strategies:
            limit = budget or BUDGETS.get(strategy, 10.0)
            studies, gaps = [], []
            for seed in range(seeds):
                objective = Simulator(replace(options, seed=seed), space)
                problem = _problem(objective, space, strategy, changes)
                truth = Truth(problem, objective)
                key = {"synthetic": title, "strategy": strategy, "seed": seed, "budget": limit} | _changed(changes)
                studies.append(cached(cache, key, problem, objective, truth, seed, limit))
                gaps.append(truth.regret(space.centroid().tolist()) or 0.0)
            results[f"{title}/{strategy}"] = report(title, strategy, studies, statistics.median(gaps), limit)
            everything.setdefault(strategy, []).extend(studies)
    for strategy, studies in everything.items():
        results[f"all/{strategy}"] = geometric_means(strategy, studies, budget or BUDGETS.get(strategy, 10.0))
    return results


def geometric_means(strategy: str, studies: list[Study], budget: float) -> dict[float, float]:
    """Print and return the geometric mean of the regret at each cost where every study has an answer; below 1e-5 nats counts as that."""
    means = {}
    for cut in (cut for cut in CUTS if cut <= budget):
        regrets = [max(at(study, cut), 1e-5) for study in studies]
        if np.isfinite(regrets).all():
            means[cut] = statistics.geometric_mean(regrets)
    cells = "  ".join(f"{cut:g}: {mean:.4f}" for cut, mean in means.items())
    print(f"{'geometric mean of all':<22}{strategy:<12}{len(studies):>5}  {'':>12}  {cells}", flush=True)
    return means


def emulated(
    path: Path,
    metrics: list[str],
    strategies: list[str],
    seeds: int,
    budget: float | None,
    noise: float,
    cache: Path | None,
    changes: Sequence[str],
) -> dict[str, Any]:
    """Metrics of an emulator fitted to real runs. Runs on single domains are few among those, so its corners are extrapolations."""
    results: dict[str, Any] = {}
    for metric in metrics:
        for strategy in strategies:
            grid = STEPS_HYPERBAND if strategy == "hyperband" else STEPS
            objective = Emulator(path, metric, grid, noise)
            space = MixtureSpace.from_config(SpaceConfig(objective.domains))
            problem = _problem(objective, space, strategy, changes)
            truth = Truth(problem, objective)
            limit = budget or BUDGETS.get(strategy, 10.0)
            studies = []
            for seed in range(seeds):
                key = {"metric": metric, "strategy": strategy, "seed": seed, "budget": limit, "noise": noise} | _changed(changes)
                studies.append(cached(cache, key, problem, objective, truth, seed, limit))
            results[f"{metric}/{strategy}"] = report(metric, strategy, studies, truth.regret(space.centroid().tolist()) or 0.0, limit)
        results.update(_verdicts(metric, results))
    return results


def _problem(objective: Objective, space: MixtureSpace, strategy: str, changes: Sequence[str]) -> Problem:
    cfg = compose(SWEEP, [f"strategy.name={strategy}", *changes])
    return Problem(space, objective.fidelities, objective.metric, objective.flops_per_step, cfg.cost, cfg.surrogate, cfg.strategy)


def _changed(changes: Sequence[str]) -> dict[str, Any]:
    return {"set": sorted(changes)} if changes else {}


def _verdicts(metric: str, results: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Print the targets, and the savings over the baselines; one that never arrives counts with its budget (a lower bound)."""
    ours = results.get(f"{metric}/kg")
    if ours is None:
        return
    wanted = [("median", *target) for target in TARGETS.get(metric, ())] + [("worst", *target) for target in WORST.get(metric, ())]
    for which, cost, level in wanted:
        if cost in ours["regret"]:
            reached = round(ours["regret"][cost][0] if which == "median" else ours["worst"][cost], 4)  # targets were set from four digits
            print(f"  {metric}: {which} {reached:.4f} at {cost} FRE, wanted {level}: {'met' if reached <= level else 'MISSED'}")
            yield f"{metric}: {which} {level} at {cost} FRE", [reached, reached <= level]
    for baseline, factor in (("hyperband", 5), ("random", 10)):
        row = results.get(f"{metric}/{baseline}")
        if row is not None:
            arrived = np.isfinite(row["arrival"][0])
            saving = (row["arrival"][0] if arrived else BUDGETS[baseline]) / ours["arrival"][0]
            sign = "" if arrived else ">= "
            print(f"  {metric}: {sign}{saving:.1f}x cheaper than {baseline}, wanted {factor}x: {'met' if saving >= factor else 'MISSED'}")
            yield f"{metric}: saving over {baseline}", [saving, saving >= factor]


def main() -> None:
    """Parse, run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, 1 FRE, two strategies: shows that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--emulator", type=Path, help="an .npz file; see src/apps/mixbo/objectives/emulator.py")
    parser.add_argument("--metrics", nargs="+", default=list(TARGETS))
    parser.add_argument("--strategies", nargs="+", default=["kg", "ei_cost", "ei", "hyperband", "random"])
    parser.add_argument("--seeds", type=int, default=40, help="with ten, a median still moves by a third")
    parser.add_argument("--budget", type=float, help="FRE; default 10, and 14, 40, 100 for ei, hyperband, random")
    parser.add_argument("--noise", type=float, default=0.0, help="sd of the emulator's observations")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=f"overrides of a sweep's {', '.join(PARTS)}")
    args = parser.parse_args()
    for change in args.set:
        if not change.startswith(tuple(f"{part}." for part in PARTS)):
            parser.error(f"--set {change}: only {', '.join(PARTS)} can be changed, as in surrogate.kernel=joint")
    torch.set_num_threads(1)
    print(f"{'problem':<22}{'strategy':<12}seeds  10 % of gap  FRE: median regret [quartiles] once so many were spent")
    if args.emulator:
        results = emulated(args.emulator, args.metrics, args.strategies, args.seeds, args.budget, args.noise, args.cache, args.set)
    elif args.quick:
        results = synthetic(["kg", "random"], 1, 1.0, args.cache, args.set)
    else:
        results = synthetic(args.strategies, args.seeds, args.budget, args.cache, args.set)
    save(args.json, results)


if __name__ == "__main__":
    main()
