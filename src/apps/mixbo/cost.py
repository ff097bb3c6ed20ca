"""FLOPs of a trial, and which trials may be asked for next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.arrays import Array, Ints, Mask

from .problem import Problem
from .records import Record, finished, spent


def flops(problem: Problem, size: Ints | int, steps: Array | float, reached: Array | float = 0) -> Array:
    """FLOPs added by training ``size`` (index) from step ``reached`` to ``steps``."""
    return np.asarray(problem.flops_per_step)[np.asarray(size)] * (np.asarray(steps, dtype=float) - np.asarray(reached, dtype=float))


def resumable(problem: Problem, reached: int) -> int:
    """Step from which a run that ended at ``reached`` is continued: its last one, or the last before its decay."""
    return reached - round(problem.decay * reached)


def charged(problem: Problem, added: Array | float) -> Array:
    """What an acquisition divides by: added FLOPs plus launch overhead, in full runs of the largest model."""
    return np.asarray(added, dtype=float) / problem.full_run + problem.cost.overhead


def unlocked(problem: Problem, records: Sequence[Record]) -> Mask:
    """(sizes,): the smallest size always; any other after ``cost.unlock`` results one size below."""
    results = np.zeros(len(problem.fidelities.sizes), dtype=int)
    for record in finished(records):
        results[problem.fidelities.index(record.model_size)] += 1
    return np.concatenate([[True], results[:-1] >= problem.cost.unlock])


def total(problem: Problem, records: Sequence[Record]) -> float:
    """FLOPs charged so far with the overhead of every launch: hundreds of tiny runs are no more free than one large one."""
    return spent(records) + problem.cost.overhead * problem.full_run * len(records)


def allowance(problem: Problem, records: Sequence[Record]) -> float:
    """Most FLOPs that the next trial may add: never far more than what was charged, so a study cannot start at the top."""
    smallest = float(flops(problem, 0, problem.fidelities.steps[-1]))
    return max(problem.cost.first * smallest, problem.cost.growth * total(problem, records))


def owes_target(problem: Problem, records: Sequence[Record]) -> bool:
    """Whether a full run of the largest model is due: ``strategy.confirm`` of all that was charged goes there, as soon as one may be paid.

    A surrogate that is sure of itself values nothing but cheap trials; this share bounds what its mistakes can cost.
    """
    size, step = problem.fidelities.target
    name = problem.fidelities.sizes[size]
    there = sum(record.flops for record in records if record.model_size == name and record.steps == step)
    return there < problem.strategy.confirm * total(problem, records) and problem.full_run <= allowance(problem, records)
