"""Problems and records that the tests of the optimiser share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.options import CostConfig, SimulatorConfig, SpaceConfig, StrategyConfig, SurrogateConfig
from src.apps.mixbo.problem import Fidelities, Problem
from src.apps.mixbo.records import Record, Suggestion, runs
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.suggest import suggest

SPACE = MixtureSpace.from_config(SpaceConfig(("a", "b", "c")))
FIDELITIES = Fidelities(("20M", "150M", "1B"), (2e7, 1.5e8, 1e9), (2000, 4000, 8000))
SMALL = {"pool": 60, "candidates": 8, "targets": 16}


def simulator(**options: object) -> Simulator:
    return Simulator(SimulatorConfig(**({"amplitude": 0.03, "noise": 0.001} | options)), SPACE, FIDELITIES)  # type: ignore[arg-type]


def problem(objective: Simulator, **parts: Mapping[str, object]) -> Problem:
    strategy = StrategyConfig(**(SMALL | dict(parts.get("strategy", {}))))  # type: ignore[arg-type]
    return Problem(
        SPACE,
        objective.fidelities,
        objective.metric,
        objective.flops_per_step,
        cost=CostConfig(**parts.get("cost", {})),  # type: ignore[arg-type]
        surrogate=SurrogateConfig(**parts.get("surrogate", {})),  # type: ignore[arg-type]
        strategy=strategy,
    )


def finish(objective: Simulator, asked: Suggestion, records: list[Record]) -> Record:
    """The record of a suggestion carried out."""
    parent = next((run for run in runs(records) if run.last == asked.continues), None)
    first = parent.reached if parent else 0
    steps = [step for step in objective.fidelities.steps if first < step <= asked.steps]
    curve = objective.observe(asked.weights, asked.model_size, steps, parent.numbers[0] if parent else len(records))
    return Record(len(records), asked.weights, asked.model_size, asked.steps, "ok", tuple(curve), asked.flops, asked.continues)


def study(posed: Problem, objective: Simulator, trials: int, seed: int = 0) -> list[Record]:
    """The records after ``trials`` suggestions carried out one by one."""
    records: list[Record] = []
    for number in range(trials):
        records.append(finish(objective, suggest(posed, records, seed, number), records))
    return records


def spread_out(objective: Simulator, counts: Mapping[str, int], seed: int = 0) -> list[Record]:
    """Full runs of random mixtures, ``counts`` per size."""
    rng, records = np.random.default_rng(seed), []
    for size, count in counts.items():
        cost = objective.flops_per_step[objective.fidelities.index(size)] * objective.fidelities.steps[-1]
        for w in rng.dirichlet(np.ones(len(objective.domains)), count):
            asked = Suggestion(tuple(w.tolist()), size, objective.fidelities.steps[-1], flops=cost)
            records.append(finish(objective, asked, records))
    return records


def rescaled(record: Record, factor: float, shift: float) -> Record:
    """The record of the same trial had its outputs been measured in other units."""
    return replace(record, curve=tuple((step, tuple(factor * v + shift for v in values)) for step, values in record.curve))
