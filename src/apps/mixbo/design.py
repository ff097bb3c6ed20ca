"""The first trials of a multi-fidelity study: small, and the same mixtures at two sizes, so that trust can be measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.arrays import Array

from .cost import allowance, flops, unlocked
from .problem import Problem
from .records import Record, Suggestion, same


def initial_design(problem: Problem, seed: int) -> list[tuple[Array, int]]:
    """Mixtures with the index of the size to train them at, to the last step.

    Corners, centroid and Dirichlet mixtures at the smallest size; corners and centroid again one size up. What a corner
    does alone is what every other mixture is compared with, so the final answer can always fall back on the best of them.
    """
    rng = np.random.default_rng((seed, 1))
    drawn = problem.space.dim if problem.strategy.design is None else problem.strategy.design
    anchors = _anchors(problem)
    plan = [(w, 0) for w in np.vstack([anchors, problem.space.sample(drawn, rng)])]
    if len(problem.fidelities.sizes) > 2:
        plan += [(w, 1) for w in anchors]
    return _distinct(problem, plan)


def anchors_at_target(problem: Problem) -> list[tuple[Array, int]]:
    """Corners and centroid at the largest size: the design of a study without cheap fidelities."""
    return _distinct(problem, [(w, problem.fidelities.target[0]) for w in _anchors(problem)])


def draw(problem: Problem, records: Sequence[Record], rng: np.random.Generator, size: int, steps: int) -> Array | None:
    """A mixture (K,) drawn uniformly; of a table one that no trial ran for so many steps, ``None`` if there is none left."""
    if problem.space.choices is None:
        return problem.space.sample(1, rng)[0]
    name = problem.fidelities.sizes[size]
    ran = {record.weights for record in records if (record.model_size, record.steps) == (name, steps)}
    left = [w for w in problem.space.choices if w not in ran and problem.available(w, name, steps)]
    return np.array(left[rng.integers(len(left))]) if left else None


def full_run(problem: Problem, weights: Array, size: int) -> Suggestion:
    """A trial of all steps, from scratch."""
    steps = problem.fidelities.steps[-1]
    return Suggestion(tuple(weights.tolist()), problem.fidelities.sizes[size], steps, flops=float(flops(problem, size, steps)))


def _anchors(problem: Problem) -> Array:
    return np.vstack([problem.space.corners(), problem.space.centroid()[None]])


def _distinct(problem: Problem, plan: list[tuple[Array, int]]) -> list[tuple[Array, int]]:
    unique: list[tuple[Array, int]] = []
    for w, size in plan:
        new = all(size != other or not same(w, v) for v, other in unique)
        if new and problem.available(w.tolist(), problem.fidelities.sizes[size], problem.fidelities.steps[-1]):
            unique.append((w, size))
    return unique


def start(problem: Problem, records: Sequence[Record], seed: int) -> Suggestion | None:
    """The next trial of the design by the start-small rules, as many of the steps as they allow; ``None`` if it is over or must wait."""
    first = next_of_design(initial_design(problem, seed), problem, records)
    if first is None or not unlocked(problem, records)[first[1]]:
        return None
    w, size = first
    most = allowance(problem, records) * (1 + 1e-9)
    for steps in reversed(problem.fidelities.steps):
        added = float(flops(problem, size, steps))
        if added <= most and problem.available(w.tolist(), problem.fidelities.sizes[size], steps):
            return Suggestion(tuple(w.tolist()), problem.fidelities.sizes[size], steps, flops=added)
    return None


def next_of_design(plan: Sequence[tuple[Array, int]], problem: Problem, records: Sequence[Record]) -> tuple[Array, int] | None:
    """The first of the plan that no trial (failed ones included) has taken."""
    for w, size in plan:
        name = problem.fidelities.sizes[size]
        if not any(record.model_size == name and same(record.weights, w) for record in records):
            return w, size
    return None
