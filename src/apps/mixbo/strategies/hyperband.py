"""Hyperband (Li et al. 2018) over training steps at the largest size: the multi-fidelity baseline without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..cost import flops, resumable
from ..design import draw
from ..problem import Problem
from ..protocol import Done
from ..records import Record, Suggestion, same


@dataclass(frozen=True)
class Bracket:
    """Successive halving: ``counts[i]`` mixtures reach ``steps[i]``, the best of each rung going on."""

    counts: tuple[int, ...]
    steps: tuple[int, ...]


def brackets(grid: Sequence[int], eta: int) -> list[Bracket]:
    """Most aggressive first. Rungs are the steps of the grid nearest to last / eta^k."""
    last = grid[-1]
    deepest = int(math.log(last / grid[0], eta) + 1e-9)
    rung = [min(grid, key=lambda step, k=k: abs(math.log(step * eta**k / last))) for k in range(deepest + 1)]  # type: ignore[misc]
    rung = sorted(set(rung), reverse=True)
    top = len(rung) - 1
    found = []
    for s in range(top, -1, -1):
        first = math.ceil((top + 1) / (s + 1) * eta**s)
        found.append(Bracket(tuple(max(first // eta**i, 1) for i in range(s + 1)), tuple(rung[s - i] for i in range(s + 1))))
    return found


def hyperband(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion | Done:
    """The next trial of the first bracket that has one to start; brackets overlap only while a rung is waiting for results.

    On a table no mixture runs twice for as many steps; a bracket for which none is left goes on with those it has. Where trials stand is
    read off the records alone. Does not obey the start-small rules: it knows one size.
    """
    size = problem.fidelities.target[0]
    name = problem.fidelities.sizes[size]
    kinds = brackets(problem.fidelities.steps, problem.strategy.eta)
    fresh = _fresh(problem, records, name)
    starts = {kind.steps[0]: [record for record in fresh if record.steps == kind.steps[0]] for kind in kinds}
    used_up: set[int] = set()
    for cycle in range(len(records) + 1):
        for kind in kinds:
            members = starts[kind.steps[0]][cycle * kind.counts[0] : (cycle + 1) * kind.counts[0]]
            if len(members) < kind.counts[0] and kind.steps[0] not in used_up:
                drawn = draw(problem, records, rng, size, kind.steps[0])
                if drawn is not None:
                    return _suggest(problem, drawn, size, kind.steps[0], None)
                used_up.add(kind.steps[0])
            promoted = _promotion(problem, kind, members, records)
            if promoted is not None:
                record, steps = promoted
                return _suggest(problem, np.array(record.weights), size, steps, record if problem.cost.continuation else None)
    return Done("no mixture of the table is left to start or to go on with")


def _fresh(problem: Problem, records: Sequence[Record], name: str) -> list[Record]:
    """Trials of mixtures that were drawn. Without continuation a promoted one has no parent either: its shorter run tells it."""
    shortest: dict[tuple[float, ...], int] = {}
    found = []
    for record in records:
        if record.model_size == name and record.parent is None:
            first = shortest.setdefault(tuple(np.round(record.weights, 9)), record.steps)
            if problem.cost.continuation or first >= record.steps:
                found.append(record)
    return found


def _promotion(problem: Problem, kind: Bracket, members: list[Record], records: Sequence[Record]) -> tuple[Record, int] | None:
    """The best member of a finished rung that has not gone on, with the steps it goes on to."""
    for count, steps in zip(kind.counts[1:], kind.steps[1:], strict=True):
        if any(member.status == "running" for member in members):
            return None
        ok = [m for m in members if m.status == "ok" and m.curve and problem.available(m.weights, m.model_size, steps)]
        ok.sort(key=lambda member: (float(problem.metric.objective(member.curve[-1][1])), member.number))
        onward = []
        for member in ok[:count]:
            child = next((r for r in records if r.steps == steps and same(r.weights, member.weights)), None)
            if child is None:
                return member, steps
            onward.append(child)
        members = onward
    return None


def _suggest(problem: Problem, weights: np.ndarray, size: int, steps: int, parent: Record | None) -> Suggestion:
    reached = resumable(problem, parent.steps) if parent else 0
    return Suggestion(
        weights=tuple(weights.tolist()),
        model_size=problem.fidelities.sizes[size],
        steps=steps,
        continues=parent.number if parent and reached else None,
        flops=float(flops(problem, size, steps, reached)),
    )
