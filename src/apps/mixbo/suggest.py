"""The next trial of a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import design
from .problem import Problem
from .protocol import Done
from .records import Record, Suggestion
from .strategies import REGISTRY, lookup


def suggest(problem: Problem, records: Sequence[Record], seed: int, number: int) -> Suggestion | Done:
    """The next trial, a pure function of its arguments: the same contents, seed and trial number give the same suggestion.

    ``records`` are all trials so far, running and failed ones too; ``number`` is that of the trial to come. ``Done`` where a table has
    no row left to try.
    """
    strategy = lookup(problem.strategy.name)
    records = sorted(records, key=lambda record: record.number)
    if REGISTRY[problem.strategy.name][1]:
        first = design.start(problem, records, seed)
        if first is not None:
            return first
    return strategy(problem, records, np.random.default_rng((seed, number, 2)))


def first_flops(problem: Problem, seed: int) -> float:
    """FLOPs of the first trial of a new study; 0 if there is none to try."""
    first = suggest(problem, (), seed, 0)
    return 0.0 if isinstance(first, Done) else first.flops
