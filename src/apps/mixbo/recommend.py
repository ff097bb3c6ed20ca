"""The answer of a study: the mixture predicted best for the largest model at the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.nanollama.arrays import Array

from .baseline import at_target, baseline, caution, difference
from .candidates import promising
from .descent import descend
from .problem import Problem
from .records import Record, same
from .surrogate import Surrogate, condition

Z95 = 1.959964  # two-sided 95 %


@dataclass(frozen=True)
class Recommendation:
    """``predicted`` and ``interval`` (95 %, somewhat too narrow: benchmarks/RESULTS.md) are of the noise-free target value.

    Both are in the metric's own units and direction.
    """

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

    Another mixture replaces the :func:`baseline` only where the posterior of the *difference* says so by :func:`caution` standard
    deviations: levels are shared and hard to predict, differences are not.
    """
    if not any(record.status == "ok" for record in records):
        return None
    surrogate = condition(problem, records)
    reference = baseline(problem, surrogate, records)
    rng = np.random.default_rng((len(records), 3))
    pool, _, _ = promising(problem, surrogate, records, reference, rng)
    wanted = caution(problem, surrogate, records)

    def score(weights: Array) -> Array:
        gain, sd = difference(surrogate, weights, reference)
        return wanted * sd - gain

    scores = score(pool)
    start = pool[np.argmin(scores)]
    best = start if problem.space.choices is not None else descend(problem.space, score, start)
    if float(score(best[None])[0]) > 0:
        best = reference
    return _answer(problem, surrogate, records, best, reference)


def _answer(problem: Problem, surrogate: Surrogate, records: Sequence[Record], best: Array, reference: Array) -> Recommendation:
    basis = surrogate.at_target(best[None])
    mean, sd = float(basis.mean[0]), float(surrogate.variance(basis)[0]) ** 0.5
    ends = sorted(problem.metric.own_units(value) for value in (mean - Z95 * sd, mean + Z95 * sd))
    gain, gain_sd = difference(surrogate, best[None], reference)
    size, step = problem.fidelities.target
    was_run = any(same(w, best) for w in at_target(problem, records))
    return Recommendation(
        tuple(best.tolist()), problem.fidelities.sizes[size], step, problem.metric.own_units(mean), (ends[0], ends[1]), was_run,
        tuple(reference.tolist()), float(gain[0]), float(gain_sd[0]),
    )  # fmt: skip
