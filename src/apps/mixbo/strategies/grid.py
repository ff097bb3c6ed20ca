"""Every trial a model-based strategy could propose: mixtures times sizes times steps, what each costs, and which are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.nanollama.config import ConfigError

from ..cost import allowance, charged, flops, owes_target, unlocked
from ..observations import rows
from ..pool import at_target, promising, spread, tested
from ..problem import Problem
from ..records import Record, Suggestion, runs, same
from ..surrogate import Basis, Surrogate, condition

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Candidates (C mixtures x F fidelities) and their posterior. Arrays named ``..cf`` are (C, F)."""

    problem: Problem
    records: Sequence[Record]
    surrogate: Surrogate
    mixtures: Array  # (C, K)
    sizes: Ints  # (F,) index
    steps: Array  # (F,)
    basis: Basis  # (C F) rows
    there: Basis  # (C) rows: the same mixtures at the target
    targets: Basis  # (M) rows: mixtures at the target among which the best is sought
    added_cf: Array  # FLOPs
    parent_cf: Ints  # trial to continue, or -1
    allowed_cf: NDArray[np.bool_]  # not run before, not running, not failed, in the table

    @property
    def shape(self) -> tuple[int, int]:
        """(C, F)."""
        return len(self.mixtures), len(self.sizes)

    @property
    def charged_cf(self) -> Array:
        """Cost with launch overhead, in full runs, to the power ``division_coefficient``."""
        return charged(self.problem, self.added_cf) ** self.problem.strategy.division_coefficient

    @property
    def best(self) -> float:
        """Lowest posterior mean at the target: the incumbent, in the units of every prediction here."""
        return float(min(self.targets.mean.min(), self.there.mean.min()))

    def rho_cf(self) -> Array:
        """Posterior correlation of each candidate with its own mixture at the target."""
        each = np.repeat(np.arange(self.shape[0]), self.shape[1])
        covariance = self.surrogate.paired_covariance(self.basis, self.there, each).reshape(self.shape)
        sd = np.sqrt(self.surrogate.variance(self.basis).reshape(self.shape) * self.surrogate.variance(self.there)[:, None])
        return np.clip(covariance / sd, -1.0, 1.0)


def build(problem: Problem, records: Sequence[Record], rng: np.random.Generator, only_target: bool = False) -> Grid:
    """The surrogate given ``records``, the mixtures it finds promising or uncertain at the target, and their grid."""
    surrogate = condition(problem, records)
    pool, mean, sd = promising(problem, surrogate, records, rng)
    options = problem.strategy
    scores = [mean, mean - sd, mean - 2 * sd]
    chosen = spread(scores, options.candidates)
    targets = spread(scores, options.targets)
    fidelities = problem.fidelities
    top, last = fidelities.target
    if only_target:
        sizes, steps = np.array([top]), np.array([float(last)])
    else:
        sizes = np.repeat(np.arange(len(fidelities.sizes)), len(fidelities.steps))
        steps = np.tile(np.array(fidelities.steps, dtype=float), len(fidelities.sizes))
    mixtures = _with_tested(problem, pool[chosen], tested(records), surrogate)
    added, parent, allowed = _trials(problem, records, mixtures, sizes, steps)
    return Grid(
        problem, records, surrogate, mixtures, sizes, steps,
        basis=surrogate.grid(mixtures, sizes, steps),
        there=surrogate.basis(at_target(problem, mixtures), contrast=True),
        targets=surrogate.basis(at_target(problem, pool[targets]), contrast=True),
        added_cf=added, parent_cf=parent, allowed_cf=allowed,
    )  # fmt: skip


def choose(grid: Grid, value_cf: Array, start_small: bool = True) -> Suggestion:
    """The allowed candidate of the greatest value, by the start-small rules unless they are switched off.

    If the greatest value lies at a size that is still locked, the best candidate of the largest unlocked size is taken: the rule
    delays large runs, and a search that would rather stay small must not be able to keep them locked for ever.
    """
    problem = grid.problem
    held = problem.strategy.model_size
    value = np.where(grid.allowed_cf, value_cf, -np.inf)
    open_sizes = unlocked(problem, grid.records) | (not start_small)
    affordable = grid.added_cf <= (allowance(problem, grid.records) * (1 + 1e-9) if start_small else np.inf)
    eligible = affordable & open_sizes[grid.sizes][None]
    if held is not None:
        value = np.where(grid.sizes == problem.fidelities.index(held), value, value - 1e9)
    elif start_small and owes_target(problem, grid.records):
        value = np.where((grid.sizes == problem.fidelities.target[0]) & (grid.steps == problem.fidelities.target[1]), value, value - 1e9)
    size = grid.sizes[np.unravel_index(np.argmax(value), grid.shape)[1]]
    reach = int(np.nonzero(np.cumprod(open_sizes))[0][-1])
    masks = [eligible & (grid.sizes == reach)] if size > reach else []
    for mask in (*masks, eligible):
        if np.isfinite(np.where(mask, value, -np.inf)).any():
            c, f = np.unravel_index(int(np.argmax(np.where(mask, value, -np.inf))), grid.shape)
            return _suggestion(grid, int(c), int(f), float(value_cf[c, f]))
    raise ConfigError("no trial is left that the table and the start-small rules allow; widen the fidelity grid or raise cost.growth")


def _suggestion(grid: Grid, c: int, f: int, value: float) -> Suggestion:
    problem, row = grid.problem, c * grid.shape[1] + f
    one, there = grid.basis[row : row + 1], grid.there[c : c + 1]
    variance = float(grid.surrogate.variance(one)[0])
    full = grid.surrogate.basis(rows(problem, grid.mixtures[c : c + 1], int(grid.sizes[f]), float(grid.steps[f])))
    covariance = float(grid.surrogate.paired_covariance(one, there, np.zeros(1, dtype=np.int64))[0])
    parent = int(grid.parent_cf[c, f])
    return Suggestion(
        weights=tuple(grid.mixtures[c].tolist()),
        model_size=problem.fidelities.sizes[int(grid.sizes[f])],
        steps=int(grid.steps[f]),
        continues=None if parent < 0 else parent,
        acquisition=value,
        predicted_mean=float(full.mean[0]),
        predicted_sd=float(grid.surrogate.variance(full)[0]) ** 0.5,
        rho=float(np.clip(covariance / (variance * grid.surrogate.variance(there)[0]) ** 0.5, -1, 1)),
        flops=float(grid.added_cf[c, f]),
    )


def _with_tested(problem: Problem, mixtures: Array, seen: Array, surrogate: Surrogate) -> Array:
    """Add the best tested mixtures, so that a promising run can be continued or repeated at a larger size; drop repetitions."""
    if len(seen):
        order = np.argsort(surrogate.mean(at_target(problem, seen)), kind="stable")[: problem.strategy.candidates // 4]
        mixtures = np.vstack([seen[order], mixtures])
    _, first = np.unique(np.round(mixtures, 9), axis=0, return_index=True)
    return mixtures[np.sort(first)]


def _trials(
    problem: Problem, records: Sequence[Record], mixtures: Array, sizes: Ints, steps: Array
) -> tuple[Array, Ints, NDArray[np.bool_]]:
    """Added FLOPs, trial to continue (-1: none) and permission of every candidate, each (C, F)."""
    shape = len(mixtures), len(sizes)
    reached, parent, allowed = np.zeros(shape), np.full(shape, -1), np.ones(shape, dtype=bool)
    for run in runs(records):
        same_size = sizes == problem.fidelities.index(run.model_size)
        for c in [c for c in range(len(mixtures)) if same(mixtures[c], run.weights)]:
            if run.running:
                allowed[c, same_size] = False
                continue
            allowed[c, same_size & (steps <= run.reached)] = False
            further = same_size & (steps > run.reached) & (run.reached > reached[c])
            if problem.cost.continuation:
                reached[c, further], parent[c, further] = run.reached, run.last
    for record in records:
        if record.status == "failed":
            hit = [c for c in range(len(mixtures)) if same(mixtures[c], record.weights)]
            for c in hit:
                allowed[c, sizes == problem.fidelities.index(record.model_size)] = False
    if problem.table is not None:
        for c, w in enumerate(mixtures):
            for f in range(shape[1]):
                allowed[c, f] &= problem.available(w.tolist(), problem.fidelities.sizes[int(sizes[f])], int(steps[f]))
    return flops(problem, sizes, steps, reached), parent, allowed
