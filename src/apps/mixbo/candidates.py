"""Which mixtures are worth looking at: a wide pool, narrowed by the posterior at the target, and what local searches add to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from src.nanollama.arrays import Array, Ints, Mask

from .baseline import difference, tested
from .constants import AROUND, CONCENTRATIONS, POOL_MOVES
from .descent import descend
from .problem import Problem
from .records import Record
from .surrogate import Surrogate


def is_known(weights: Array, known: Array) -> Mask:
    """(n,): whether each mixture is among ``known`` (m, K)."""
    if not len(known):
        return np.zeros(len(weights), dtype=bool)
    return np.abs(weights[:, None, :] - known).max(axis=2).min(axis=1) < 1e-6


def wide_pool(problem: Problem, rng: np.random.Generator) -> Array:
    """(about ``strategy.pool``, K): corners, pairs of corners, the centroid and Dirichlet draws of several concentrations."""
    if problem.space.choices is not None:
        return np.array(problem.space.choices)
    corners = problem.space.corners()
    i, j = np.triu_indices(len(corners), k=1)
    share = problem.strategy.pool // len(CONCENTRATIONS)
    drawn = [problem.space.sample(share, rng, concentration) for concentration in CONCENTRATIONS]
    return np.vstack([corners, (corners[i] + corners[j]) / 2, problem.space.centroid()[None], *drawn])


def spread(scores: Sequence[Array], count: int) -> Ints:
    """Indices of the lowest of each score in turn, ``count`` in all, none twice."""
    orders = [np.argsort(score, kind="stable") for score in scores]
    chosen: dict[int, None] = {}
    for rank in range(len(orders[0])):
        for order in orders:
            if len(chosen) < count:
                chosen.setdefault(int(order[rank]))
    return np.array(list(chosen), dtype=int)


def promising(
    problem: Problem, surrogate: Surrogate, records: Sequence[Record], reference: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The pool with its posterior at the target, less that of the ``reference``: mixtures (P, K), mean (P,) and sd (P,).

    Holds the wide pool, everything tested, and what local searches find for the mean and for two optimistic bounds.
    """
    pool = np.vstack([wide_pool(problem, rng), tested(records)]) if len(records) else wide_pool(problem, rng)
    gain, sd = difference(surrogate, pool, reference)
    if problem.space.choices is not None:
        return pool, -gain, sd
    found = []
    for optimism in (0.0, 1.0, 2.0):
        start = pool[np.argmax(gain + optimism * sd)]
        best = descend(problem.space, partial(_bound, surrogate, reference, optimism), start, rounds=POOL_MOVES)
        found.append(np.vstack([best[None], problem.space.transfers(best, AROUND)]))
    local = np.vstack(found)
    extra_gain, extra_sd = difference(surrogate, local, reference)
    return np.vstack([pool, local]), -np.concatenate([gain, extra_gain]), np.concatenate([sd, extra_sd])


def _bound(surrogate: Surrogate, reference: Array, optimism: float, weights: Array) -> Array:
    if optimism == 0.0:
        return surrogate.mean_at_target(weights)
    gain, sd = difference(surrogate, weights, reference)
    return -gain - optimism * sd
