"""Every trial a model-based strategy could propose: mixtures times sizes times steps, what each costs, and which are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from src.nanollama.arrays import Array, Ints, Mask

from ..baseline import baseline, tested
from ..candidates import is_known, promising, spread
from ..cost import charged, flops, owes_target, resumable
from ..problem import Problem
from ..records import Record, Run, runs
from ..surrogate import Basis, Surrogate, condition

Tried = TypeVar("Tried", Record, Run)


@dataclass(frozen=True)
class Grid:
    """Candidates (C mixtures x F fidelities) and their posterior, less the baseline's. Arrays named ``..cf`` are (C, F)."""

    problem: Problem
    records: Sequence[Record]
    surrogate: Surrogate
    mixtures: Array  # (C, K), the baseline first
    sizes: Ints  # (F,) index
    steps: Array  # (F,)
    basis: Basis  # (C F) rows
    there: Basis  # (C) rows: the same mixtures at the target
    targets: Basis  # (M) rows: mixtures at the target among which the best is sought, the baseline first
    added_cf: Array  # FLOPs
    parent_cf: Ints  # trial to continue, or -1
    allowed_cf: Mask  # not run before, not running, not failed, in the table

    @property
    def shape(self) -> tuple[int, int]:
        """(C, F)."""
        return len(self.mixtures), len(self.sizes)

    @property
    def is_target(self) -> Mask:
        """(F,): the largest size at the last step."""
        size, step = self.problem.fidelities.target
        return (self.sizes == size) & (self.steps == step)

    @property
    def full_run_due(self) -> bool:
        """Whether beliefs are to be put to the test at the target, whatever the strategy would rather do."""
        return self.problem.strategy.model_size is None and owes_target(self.problem, self.records)

    @property
    def baseline_f(self) -> Array:
        """(F,) FLOPs to train the baseline there: 0 where it was, is being or cannot be."""
        return np.where(self.allowed_cf[0], self.added_cf[0], 0.0)

    def price(self, flops: Array) -> Array:
        """Cost with launch overhead, in full runs, to the power ``division_coefficient``."""
        return charged(self.problem, flops) ** self.problem.strategy.division_coefficient

    def with_baseline(self, paired_cf: Array, alone_cf: Array | float) -> Array:
        """(C, F) values of single trials, from those of comparing a mixture with the baseline at the same fidelity.

        Where the baseline is missing a comparison takes two trials (``paired_cf`` should be by the price of both), and that of the
        baseline, row 0, comes first. ``alone_cf``: what the other is worth without it.
        """
        missing = self.baseline_f > 0
        value = np.where(missing, alone_cf, paired_cf)
        value[0, missing] = np.maximum(value[0], paired_cf.max(axis=0))[missing]
        return value

    def rho_cf(self) -> Array:
        """Posterior correlation of each candidate with its own mixture at the target."""
        each = np.repeat(np.arange(self.shape[0]), self.shape[1])
        covariance = self.surrogate.paired_covariance(self.basis, self.there, each).reshape(self.shape)
        sd = np.sqrt(self.surrogate.variance(self.basis).reshape(self.shape) * self.surrogate.variance(self.there)[:, None])
        return np.clip(covariance / sd, -1.0, 1.0)


def build(problem: Problem, records: Sequence[Record], rng: np.random.Generator, only_target: bool = False) -> Grid:
    """The surrogate given ``records``, the mixtures it finds promising or uncertain at the target, and their grid."""
    surrogate = condition(problem, records)
    reference = baseline(problem, surrogate, records)
    pool, mean, sd = promising(problem, surrogate, records, reference, rng)
    known = is_known(pool, tested(records))
    options = problem.strategy
    scores = [mean, mean - sd, mean - 2 * sd]
    targets = spread(scores, options.targets)
    fresh = (
        np.flatnonzero(~known) if (~known).any() else np.arange(len(pool))
    )  # tested mixtures are added below, and would crowd out new ones
    chosen = fresh[spread([score[fresh] for score in scores], options.candidates)]
    fidelities = problem.fidelities
    top, last = fidelities.target
    if only_target:
        sizes, steps = np.array([top]), np.array([float(last)])
    else:
        sizes = np.repeat(np.arange(len(fidelities.sizes)), len(fidelities.steps))
        steps = np.tile(np.array(fidelities.steps, dtype=float), len(fidelities.sizes))
    mixtures = _with_tested(problem, np.vstack([reference, pool[chosen]]), tested(records), surrogate)
    added, parent, run, allowed = _trials(problem, records, mixtures, sizes, steps)
    return Grid(
        problem, records, surrogate, mixtures, sizes, steps,
        basis=surrogate.grid(mixtures, sizes, steps, reference, run.ravel()),
        there=surrogate.at_target(mixtures, reference),
        targets=surrogate.at_target(np.vstack([reference, pool[targets]]), reference),
        added_cf=added, parent_cf=parent, allowed_cf=allowed,
    )  # fmt: skip


def _with_tested(problem: Problem, mixtures: Array, seen: Array, surrogate: Surrogate) -> Array:
    """Add the best tested mixtures, so that a promising run can be continued or repeated at a larger size; drop repetitions."""
    if len(seen):
        order = np.argsort(surrogate.mean_at_target(seen), kind="stable")[: problem.strategy.candidates // 4]
        mixtures = np.vstack([mixtures[:1], seen[order], mixtures[1:]])
    _, first = np.unique(np.round(mixtures, 9), axis=0, return_index=True)
    return mixtures[np.sort(first)]


def _trials(
    problem: Problem, records: Sequence[Record], mixtures: Array, sizes: Ints, steps: Array
) -> tuple[Array, Ints, Ints, Mask]:
    """Added FLOPs, trial to continue and the run it belongs to (-1: none), and permission of every candidate, each (C, F)."""
    shape = len(mixtures), len(sizes)
    reached, parent, number, allowed = np.zeros(shape), np.full(shape, -1), np.full(shape, -1), np.ones(shape, dtype=bool)
    for run, c in _among(mixtures, runs(records)):
        same_size = sizes == problem.fidelities.index(run.model_size)
        if run.running:
            allowed[c, same_size] = False
            continue
        allowed[c, same_size & (steps <= run.reached)] = False
        start = resumable(problem, run.reached)
        further = same_size & (steps > run.reached) & (start > reached[c])
        if problem.cost.continuation:
            reached[c, further], parent[c, further], number[c, further] = start, run.last, run.numbers[0]
    for record, c in _among(mixtures, [record for record in records if record.status == "failed"]):
        allowed[c, sizes == problem.fidelities.index(record.model_size)] = False
    if problem.table is not None:
        for c, w in enumerate(mixtures):
            for f in range(shape[1]):
                allowed[c, f] &= problem.available(w.tolist(), problem.fidelities.sizes[int(sizes[f])], int(steps[f]))
    return flops(problem, sizes, steps, reached), parent, number, allowed


def _among(mixtures: Array, tried: Sequence[Tried]) -> list[tuple[Tried, int]]:
    """Each of ``tried`` that has one of the (C, K) mixtures, with the index of that mixture."""
    if not tried:
        return []
    apart = np.abs(np.array([one.weights for one in tried])[:, None, :] - mixtures).max(axis=2)
    return [(tried[i], int(c)) for i, c in zip(*np.nonzero(apart <= 1e-6), strict=True)]
