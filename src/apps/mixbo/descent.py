"""A local search on the simplex that needs values only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from src.nanollama.arrays import Array

from .constants import MASS_MOVED, MOVES
from .space import MixtureSpace


def descend(
    space: MixtureSpace,
    score: Callable[[Array], Array],
    start: Array,
    rounds: int = MOVES,
    steps: Sequence[float] = MASS_MOVED,
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
