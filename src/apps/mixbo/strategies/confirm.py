"""The answer put to the test: a full run of it, whatever the strategy would rather do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cost import owes_target, unlocked
from ..problem import Problem
from ..recommend import recommend
from ..records import Record, Suggestion
from ..surrogate import condition
from .grid import trials


def confirm(problem: Problem, records: Sequence[Record]) -> Suggestion | None:
    """A full run of the answer where one is due, that of the baseline it is compared with first; ``None`` if both were made.

    Surrogates are most wrong about the mixtures they like most. Tested, the answer is right from there on, or gives way.
    """
    if problem.strategy.model_size is not None or not owes_target(problem, records) or not unlocked(problem, records)[-1]:
        return None
    answer = recommend(problem, records, problem.strategy.caution)  # no more caution before the first: a step too short tests nothing
    if answer is None:  # with one size nothing need have ended before a full run is due
        return None
    surrogate = condition(problem, records)
    size, step = problem.fidelities.target
    for weights in (answer.baseline, answer.weights):
        at = np.array([weights]), np.array([size]), np.array([float(step)])
        added, parent, run, allowed = trials(problem, records, *at)
        if allowed.item():
            basis = surrogate.grid(*at, runs=run.ravel())
            return Suggestion(
                weights=weights,
                model_size=answer.model_size,
                steps=step,
                continues=None if parent.item() < 0 else int(parent.item()),
                predicted_mean=float(basis.mean[0]),
                predicted_sd=float(surrogate.variance_of_run(basis)[0]) ** 0.5,
                rho=1.0,
                flops=float(added.item()),
            )
    return None
