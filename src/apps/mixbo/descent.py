"""A local search on the simplex that needs values only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .space import MixtureSpace

Array = NDArray[np.float64]

STEPS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)  # mass moved: from coarse to the finest share that matters


def descend(
    space: MixtureSpace,
    score: Callable[[Array], Array],
    start: Array,
    rounds: int = 12,
    steps: Sequence[float] = STEPS,
    least: float = 1e-9,
) -> Array:
    """Pattern search: move mass between pairs of domains while the score falls by more than ``least``, then with a smaller step.

    At most ``rounds`` moves with each of ``steps``. Returns (K,).
    """
    best, value = start, float(score(start[None])[0])
    for step in steps:
        for _ in range(rounds):
            moved = space.transfers(best, (step,))
            if not len(moved):
                break
            values = score(moved)
            i = int(np.argmin(values))
            if values[i] >= value - least:
                break
            best, value = moved[i], float(values[i])
    return best
