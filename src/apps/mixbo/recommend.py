"""The answer of a study: the mixture predicted best for the largest model at the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .descent import descend
from .pool import promising, tested
from .problem import Problem
from .records import Record, same
from .surrogate import Surrogate, condition

Array = NDArray[np.float64]
Z95 = 1.959964  # two-sided 95 %


@dataclass(frozen=True)
class Recommendation:
    """``predicted`` and ``interval`` (95 %) are of the noise-free target value in the metric's own units and direction."""

    weights: tuple[float, ...]
    model_size: str
    steps: int
    predicted: float
    interval: tuple[float, float]
    tested: bool  # this mixture was run at the target
    baseline: tuple[float, ...]  # best mixture tested at the target, or the best corner while none was
    gain: float  # predicted advantage over the baseline, objective units
    gain_sd: float


def recommend(problem: Problem, records: Sequence[Record]) -> Recommendation | None:
    """The best mixture by what is known, or ``None`` without any result. A pure function of the records.

    Another mixture replaces the :func:`baseline` only where the posterior of the *difference* says so by ``strategy.caution``
    standard deviations: levels are shared and hard to predict, differences are not.
    """
    if not any(record.status == "ok" for record in records):
        return None
    surrogate = condition(problem, records)
    reference = baseline(problem, surrogate, records)
    rng = np.random.default_rng((len(records), 3))
    pool, _, _ = promising(problem, surrogate, records, rng)

    def score(weights: Array) -> Array:
        gain, sd = difference(surrogate, weights, reference)
        return problem.strategy.caution * sd - gain

    scores = score(pool)
    start = pool[np.argmin(scores)]
    best = start if problem.space.choices is not None else descend(problem.space, score, start)
    if float(score(best[None])[0]) > 0:
        best = reference
    return _answer(problem, surrogate, records, best, reference)


def difference(surrogate: Surrogate, weights: Array, reference: Array) -> tuple[Array, Array]:
    """Mean and sd (n,) of f(reference) - f(w) at the target: positive where w is predicted to be better."""
    basis, other = surrogate.at_target(weights), surrogate.at_target(reference[None])
    variance = surrogate.variance(basis) + surrogate.variance(other) - 2 * surrogate.covariance(basis, other)[:, 0]
    return other.mean[0] - basis.mean, np.sqrt(np.maximum(variance, 0.0))


def baseline(problem: Problem, surrogate: Surrogate, records: Sequence[Record]) -> Array:
    """The mixture (K,) to fall back on: the best anchor, until one tested at the target is better by ``strategy.caution`` sds.

    Once the anchor was tested there itself, whichever has the best posterior mean of all that were.
    """
    tried, anchor = best_tested(problem, surrogate, records), best_anchor(problem, records)
    if tried is None and anchor is None:
        known = tested(records)
        return known[int(np.argmin(surrogate.mean_at_target(known)))]
    if tried is None or anchor is None:
        return anchor if tried is None else tried  # type: ignore[return-value]
    if any(same(w, anchor) for w in _at_target(problem, records)):
        return tried
    gain, sd = difference(surrogate, tried[None], anchor)
    return tried if gain[0] > problem.strategy.caution * sd[0] else anchor


def best_tested(problem: Problem, surrogate: Surrogate, records: Sequence[Record]) -> Array | None:
    """Of the mixtures tested at the target, the one with the best posterior mean there (K,)."""
    there = _at_target(problem, records)
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


def _at_target(problem: Problem, records: Sequence[Record]) -> list[Array]:
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    return [np.array(r.weights) for r in records if r.status == "ok" and r.model_size == name and any(s == step for s, _ in r.curve)]


def _answer(problem: Problem, surrogate: Surrogate, records: Sequence[Record], best: Array, reference: Array) -> Recommendation:
    basis = surrogate.at_target(best[None])
    mean, sd = float(basis.mean[0]), float(surrogate.variance(basis)[0]) ** 0.5
    ends = sorted(problem.metric.own_units(value) for value in (mean - Z95 * sd, mean + Z95 * sd))
    gain, gain_sd = difference(surrogate, best[None], reference)
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    was_run = any(r.status == "ok" and r.model_size == name and r.steps == step and same(r.weights, best) for r in records)
    return Recommendation(
        tuple(best.tolist()), name, step, problem.metric.own_units(mean), (ends[0], ends[1]), was_run,
        tuple(reference.tolist()), float(gain[0]), float(gain_sd[0]),
    )  # fmt: skip
