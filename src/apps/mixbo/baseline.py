"""The mixture that every other is compared with, and by how much another is predicted to be better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.arrays import Array

from .constants import UNTESTED
from .problem import Problem
from .records import Record, same
from .surrogate import Surrogate


def tested(records: Sequence[Record]) -> Array:
    """(n, K): each mixture that was tried and did not fail, once, in order of first use."""
    seen: dict[tuple[float, ...], tuple[float, ...]] = {}
    for record in records:
        if record.status != "failed":
            seen.setdefault(tuple(np.round(record.weights, 9)), record.weights)  # as given: a table knows them in full only
    return np.array(list(seen.values()))


def difference(surrogate: Surrogate, weights: Array, reference: Array) -> tuple[Array, Array]:
    """Mean and sd (n,) of f(reference) - f(w) at the target: positive where w is predicted to be better."""
    basis = surrogate.at_target(weights, reference)
    return 0.0 - basis.mean, np.sqrt(surrogate.variance(basis))


def caution(problem: Problem, surrogate: Surrogate, records: Sequence[Record]) -> float:
    """Standard deviations by which a mixture must beat the baseline to be the answer."""
    return problem.strategy.caution * (1 if best_tested(problem, surrogate, records) is not None else UNTESTED)


def baseline(problem: Problem, surrogate: Surrogate, records: Sequence[Record]) -> Array:
    """The mixture (K,) to fall back on: the best anchor, until one tested at the target is better by ``strategy.caution`` sds.

    Once the anchor was tested there itself, whichever has the best posterior mean of all that were.
    """
    tried, anchor = best_tested(problem, surrogate, records), best_anchor(problem, records)
    if tried is None and anchor is None:
        known = tested(records)
        return known[int(np.argmin(surrogate.mean_at_target(known)))] if len(known) else problem.space.centroid()
    if tried is None or anchor is None:
        return anchor if tried is None else tried  # type: ignore[return-value]
    if any(same(w, anchor) for w in at_target(problem, records)):
        return tried
    gain, sd = difference(surrogate, tried[None], anchor)
    return tried if gain[0] > problem.strategy.caution * sd[0] else anchor


def best_tested(problem: Problem, surrogate: Surrogate, records: Sequence[Record]) -> Array | None:
    """Of the mixtures tested at the target, the one with the best posterior mean there (K,)."""
    there = at_target(problem, records)
    return there[int(np.argmin(surrogate.mean_at_target(np.array(there))))] if there else None


def best_anchor(problem: Problem, records: Sequence[Record]) -> Array | None:
    """Corner or centroid with the best value at the largest (size, step) at which all were seen; ``None`` if there is no such."""
    anchors = np.vstack([problem.space.corners(), problem.space.centroid()[None]])
    seen: dict[tuple[int, int], dict[int, float]] = {}
    for record in records:
        for i in (i for i, anchor in enumerate(anchors) if record.status != "failed" and same(record.weights, anchor)):
            for step, values in record.curve:
                at = seen.setdefault((problem.fidelities.index(record.model_size), step), {})
                at[i] = float(problem.metric.objective(values))
    complete = [at for at, values in seen.items() if len(values) == len(anchors)]
    if not complete:
        return None
    largest = seen[max(complete)]
    return anchors[min(largest, key=lambda i: largest[i])]


def at_target(problem: Problem, records: Sequence[Record]) -> list[Array]:
    """The mixtures run for the largest model up to the last step, one entry a run."""
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    return [np.array(r.weights) for r in records if r.status == "ok" and r.model_size == name and any(s == step for s, _ in r.curve)]
