"""The next trial of a study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import design
from .problem import Problem
from .records import Record, Suggestion
from .strategies import REGISTRY, lookup


def suggest(problem: Problem, records: Sequence[Record], seed: int, number: int) -> Suggestion:
    """The next trial, a pure function of its arguments: the same contents, seed and trial number give the same suggestion.

    ``records`` are all trials so far, running and failed ones too; ``number`` is that of the trial to come.
    """
    strategy = lookup(problem.strategy.name)
    records = sorted(records, key=lambda record: record.number)
    if REGISTRY[problem.strategy.name][1]:
        first = design.start(problem, records, seed)
        if first is not None:
            return first
    return strategy(problem, records, np.random.default_rng((seed, number, 2)))
