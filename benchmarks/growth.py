"""Greedy growth against the rule of the original tool, in worlds whose losses are known, at equal numbers of trainings.

    python benchmarks/growth.py [--quick] [--json PATH]

A world has six directions of different gain and cost, one of which does nothing and one harm; a training's loss is the true loss plus
noise of standard deviation sigma, a share of which is the seed's, the same for every shape. Both rules are run by the code that runs real
trainings. Reported for each noise level, over many repetitions: true loss gained after so many trainings, accepted steps that truly did
harm, and steps. Then a real study on this machine: a round of eight candidates, and how busy it kept two slots.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _rounds import arguments, save

from src.apps.mixbo.growth.moves import Direction, Point
from src.apps.mixbo.growth.options import GrowthConfig
from src.apps.mixbo.growth.replay import advance
from src.apps.mixbo.growth.state import Ask, Measured, Overrides, Policy, Results, Run

SIGMAS = (0.0005, 0.001, 0.002, 0.005)
SHARED = (0.0, 0.7)  # share of the variance that is the seed's
BUDGETS = (120, 240)  # trainings
RULES: Mapping[str, dict[str, Any]] = {
    "original, 1 seed": {"rule": "upstream", "random_iterations": 1},
    "original, 3 seeds": {"rule": "upstream", "random_iterations": 3},
    "ours": {"rule": "paired"},
    "ours, equal steps": {
        "rule": "paired",
        "cost_fraction": 0.0,
        "stuck": ("seeds", "joint", "undo"),
    },  # single increments, as the original
}


@dataclass(frozen=True)
class World:
    """Loss ``sum_i a_i v_i^-alpha_i + b_i log v_i``; costs in parameters of an increment. ``gains``: of each first step."""

    gains: tuple[float, ...]
    costs: tuple[float, ...]
    bend: tuple[float, ...]
    start: int = 8  # of every direction

    def loss(self, point: Point) -> float:
        """Without noise."""
        total = 3.0
        for (_, value), gain, alpha in zip(point, self.gains, self.bend, strict=True):
            assert isinstance(value, int)
            x, first = value / self.start, 1 + 1 / self.start
            total += gain * (x**-alpha - 1) / (1 - first**-alpha) if gain > 0 else -gain * math.log(x) / math.log(first)
        return total

    def params(self, point: Point, overrides: Overrides = ()) -> float:
        """A million at first."""
        return 1e6 + sum(cost * (value - self.start) for (_, value), cost in zip(point, self.costs, strict=True))  # type: ignore[operator,misc]

    flops = params


def world(rng: np.random.Generator) -> World:
    """Six directions in random order; steps cost .5 to 2 % of the first model, the cheapest ones gain least."""
    gains = np.array([0.0, -0.0004, 0.0004, 0.0012, 0.0022, 0.0033]) * rng.uniform(0.7, 1.3, 6)
    costs = np.array([5e3, 5e3, 1e4, 2e4, 2e4, 2e4]) * rng.uniform(0.7, 1.3, 6)
    order = rng.permutation(6)
    return World(tuple(gains[order]), tuple(costs[order]), tuple(rng.uniform(0.3, 0.8, 6)))


def study(here: World, options: Mapping[str, Any], sigma: float, shared: float, most: int, seed: int) -> list[tuple[int, float, bool]]:
    """(trainings so far, true gain, whether the step did harm) after every accepted step."""
    names = tuple(f"model.d{i}" for i in range(len(here.gains)))
    start = tuple((name, here.start) for name in names)
    growth = GrowthConfig(param_names=names, increments=(1,), num_iterations=10_000, **options)
    policy = Policy(growth, tuple(Direction(name, 1) for name in names), start, here, steps=1000)
    rng = np.random.default_rng(seed)
    of_seed: dict[tuple[int, int], float] = {}
    known: dict[Ask, Measured] = {}
    path: list[tuple[int, float, bool]] = []
    state = policy.begin
    while True:
        state, step = advance(policy, state, Results(known))
        while len(path) < state.accepted:
            done = [round for round in state.log if round.chosen][len(path)]
            assert done.chosen
            gained = here.loss(done.incumbent) - here.loss(done.chosen.point)
            path.append((len(known), here.loss(start) - here.loss(done.chosen.point), gained < 0))
        if not isinstance(step, Run) or len(known) >= most:
            return path
        for ask in step.asks:
            common = of_seed.setdefault((ask.cohort, ask.seed), rng.standard_normal())
            noise = sigma * (math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.standard_normal())
            known[ask] = Measured("ok", here.loss(ask.point) + noise, here.params(ask.point))


def compare(repetitions: int) -> list[dict[str, Any]]:
    """One row per noise, share and rule."""
    rows = []
    for sigma in SIGMAS:
        for shared in SHARED:
            for name, options in RULES.items():
                paths = [study(world(np.random.default_rng(i)), options, sigma, shared, max(BUDGETS), i) for i in range(repetitions)]
                rows.append({"sigma": sigma, "shared": shared, "rule": name, **summary(paths)})
                print_row(rows[-1])
    return rows


def summary(paths: list[list[tuple[int, float, bool]]]) -> dict[str, float]:
    """Means over repetitions; a step counts once the trainings it took fit into the budget."""
    found: dict[str, float] = {}
    for budget in BUDGETS:
        within = [[step for step in path if step[0] <= budget] for path in paths]
        gains = [path[-1][1] if path else 0.0 for path in within]
        found[f"gain_{budget}"] = float(np.mean(gains))
        found[f"gain_{budget}_se"] = float(np.std(gains, ddof=1) / math.sqrt(len(gains)))
    steps = [step for path in paths for step in path if step[0] <= max(BUDGETS)]
    return found | {"steps": len(steps) / len(paths), "harmful": sum(step[2] for step in steps) / max(1, len(steps))}


def print_row(row: Mapping[str, Any]) -> None:
    gains = "  ".join(f"{row[f'gain_{b}']:.4f} ± {row[f'gain_{b}_se']:.4f}" for b in BUDGETS)
    print(
        f"{row['sigma']:.4f}  {row['shared']:.1f}  {row['rule']:18s}  {gains}  {row['steps']:6.1f}  {100 * row['harmful']:5.1f} %",
        flush=True,
    )


# --- a real round ----------------------------------------------------------------------------------------------------------------


def busy_slots(steps: int) -> dict[str, float]:
    """Share of two slots' time that a round of eight candidates, two seeds each, kept trainings running, from its first to its last."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "growth"
        words = [
            *("strategy=greedy", f"run_dir={run_dir}", "pool.slots=2", "budget.trials=18"),
            *("growth.param_names=[n_embd,mlp_size,n_qk_head_dim,n_v_head_dim]", "growth.increments=[16,32,16,16]", "growth.iterations=2"),
            "growth.stuck=[]",
            "growth.baseline={n_layer: 1, n_head: 1, n_embd: 32, mlp_size: 32, n_qk_head_dim: 32, n_v_head_dim: 32, "
            f"max_iters: {steps}, batch_size: 8, block_size: 64, data.domain_bytes: 262144}}",
        ]
        subprocess.run([sys.executable, "-m", "src.apps.mixbo.sweep", *words], check=True, stdout=subprocess.DEVNULL)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{run_dir}/study.db")
        trials = study.get_trials()[2:]  # the first two are the baseline's
        spans = [(_seconds(t.datetime_start), _seconds(t.datetime_complete)) for t in trials]
    window = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {"trainings": len(spans), "seconds": window, "busy": sum(end - begin for begin, end in spans) / (2 * window)}


def _seconds(when: datetime | None) -> float:
    assert when, "every trial has ended"
    return when.timestamp()


def main() -> None:
    """Both parts."""
    options = arguments(__doc__)
    print("sigma   share  rule                " + "  ".join(f"gain after {b:4d}   " for b in BUDGETS) + "  steps  harmful")
    rows = compare(20 if options.quick else 200)
    busy = busy_slots(100 if options.quick else 300)
    print(f"\n{busy['trainings']} trainings in {busy['seconds']:.0f} s kept two slots busy {100 * busy['busy']:.0f} % of the time")
    save(options.json, {"worlds": rows, "round": busy})


if __name__ == "__main__":
    main()
