"""The discrete knowledge gradient in closed form."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from src.nanollama.arrays import Array


@njit(cache=True)
def _gain_of_minimum(mean: Array, slopes: Array) -> Array:  # pragma: no cover (compiled)
    count, lines = slopes.shape
    gains = np.zeros(count)
    kept = np.empty(lines, dtype=np.int64)
    crossing = np.empty(lines)
    for c in range(count):
        slope = -slopes[c]  # min(m + s z) = -max(-m - s z)
        order = np.argsort(slope)
        top = -1
        for j in order:
            height = -mean[c, j]
            if top >= 0 and slope[j] - slope[kept[top]] <= 1e-14:  # parallel: the higher one stays
                if height <= -mean[c, kept[top]]:
                    continue
                top -= 1
            while top >= 0:
                z = (-mean[c, kept[top]] - height) / (slope[j] - slope[kept[top]])
                if top > 0 and z <= crossing[top]:
                    top -= 1
                    continue
                break
            top += 1
            kept[top] = j
            if top > 0:
                crossing[top] = (-mean[c, kept[top - 1]] - height) / (slope[j] - slope[kept[top - 1]])
        total = 0.0
        for i in range(1, top + 1):
            z = -abs(crossing[i])
            density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
            total += (slope[kept[i]] - slope[kept[i - 1]]) * (density + z * 0.5 * math.erfc(-z / math.sqrt(2)))
        gains[c] = total
    return gains


def gain_of_minimum(mean: Array, slopes: Array) -> Array:
    """``min_j m_cj - E[min_j (m_cj + s_cj Z)]`` for each row c, Z standard normal: exact, and never negative.

    Frazier, Powell and Dayanik 2009, algorithm 1: the lines that form the envelope, in order of slope, and one normal integral
    per crossing. ``mean`` (M,) or (C, M), ``slopes`` (C, M); returns (C,).
    """
    return _gain_of_minimum(np.ascontiguousarray(np.broadcast_to(mean, slopes.shape)), np.ascontiguousarray(slopes))
