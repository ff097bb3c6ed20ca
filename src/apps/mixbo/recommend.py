"""The answer of a study: the mixture predicted best for the largest model at the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pool import descend, promising, tested
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

    The baseline is the mixture tested at the target with the best posterior mean there; while there is none, the corner that did
    best at the largest size and step at which all corners were seen. Another mixture replaces it only where the posterior of the
    *difference* says so by ``strategy.caution`` standard deviations: levels are shared and hard to predict, differences are not.
    """
    if not any(record.status == "ok" for record in records):
        return None
    surrogate = condition(problem, records)
    baseline = _baseline(problem, surrogate, records)
    rng = np.random.default_rng((len(records), 3))
    pool, _, _ = promising(problem, surrogate, records, rng)

    def score(weights: Array) -> Array:
        gain, sd = difference(problem, surrogate, weights, baseline)
        return problem.strategy.caution * sd - gain

    scores = score(pool)
    start = pool[np.argmin(scores)]
    best = start if problem.space.choices is not None else descend(problem, score, start)
    if float(score(best[None])[0]) > 0:
        best = baseline
    return _answer(problem, surrogate, records, best, baseline)


def difference(problem: Problem, surrogate: Surrogate, weights: Array, baseline: Array) -> tuple[Array, Array]:
    """Mean and sd (n,) of f(baseline) - f(w) at the target: positive where w is predicted to be better."""
    basis, reference = surrogate.at_target(weights), surrogate.at_target(baseline[None])
    variance = surrogate.variance(basis) + surrogate.variance(reference) - 2 * surrogate.covariance(basis, reference)[:, 0]
    return reference.mean[0] - basis.mean, np.sqrt(np.maximum(variance, 0.0))


def _baseline(problem: Problem, surrogate: Surrogate, records: Sequence[Record]) -> Array:
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    there = [np.array(r.weights) for r in records if r.status == "ok" and r.model_size == name and any(s == step for s, _ in r.curve)]
    if there:
        return there[int(np.argmin(surrogate.mean_at_target(np.array(there))))]
    corner = best_corner(problem, records)
    if corner is not None:
        return corner
    known = tested(records)
    return known[int(np.argmin(surrogate.mean_at_target(known)))]


def untested_fallback(problem: Problem, records: Sequence[Record]) -> Array | None:
    """The best corner while it has no trial (running and failed ones count) at the target: the first full run is due to it.

    From then on the baseline is never worse than what the corners alone would have given.
    """
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    if any(record.model_size == name and record.steps == step for record in records):
        return None
    return best_corner(problem, records)


def best_corner(problem: Problem, records: Sequence[Record]) -> Array | None:
    """The corner with the best value at the largest (size, step) at which every corner was seen; ``None`` if there is no such."""
    corners = problem.space.corners()
    seen: dict[tuple[int, int], dict[int, float]] = {}
    for record in records:
        for i in (i for i, corner in enumerate(corners) if record.status != "failed" and same(record.weights, corner)):
            for step, values in record.curve:
                at = seen.setdefault((problem.fidelities.index(record.model_size), step), {})
                at[i] = float(problem.metric.objective(values))
    complete = [at for at, values in seen.items() if len(values) == len(corners)]
    if not complete:
        return None
    largest = seen[max(complete)]
    return corners[min(largest, key=lambda i: largest[i])]


def _answer(problem: Problem, surrogate: Surrogate, records: Sequence[Record], best: Array, baseline: Array) -> Recommendation:
    basis = surrogate.at_target(best[None])
    mean, sd = float(basis.mean[0]), float(surrogate.variance(basis)[0]) ** 0.5
    ends = sorted(problem.metric.own_units(value) for value in (mean - Z95 * sd, mean + Z95 * sd))
    gain, gain_sd = difference(problem, surrogate, best[None], baseline)
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    was_run = any(r.status == "ok" and r.model_size == name and r.steps == step and same(r.weights, best) for r in records)
    return Recommendation(
        tuple(best.tolist()), name, step, problem.metric.own_units(mean), (ends[0], ends[1]), was_run,
        tuple(baseline.tolist()), float(gain[0]), float(gain_sd[0]),
    )  # fmt: skip
