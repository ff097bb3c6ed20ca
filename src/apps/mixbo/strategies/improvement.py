"""Expected improvement in closed form."""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx
from scipy.stats import norm

from src.nanollama.arrays import Array


def log_ei(mean: Array, sd: Array, best: float) -> Array:
    """log E[max(best - Y, 0)], Y ~ N(mean, sd^2), in the same scale as ``best``, finite far into the tail (Ament et al. 2023)."""
    z = (best - mean) / sd
    near = np.log(norm.pdf(np.maximum(z, -1.0)) + np.maximum(z, -1.0) * norm.cdf(np.maximum(z, -1.0)))
    far = np.minimum(z, -1.0)
    ratio = 1 + far * np.sqrt(np.pi / 2) * erfcx(-far / np.sqrt(2))  # cancels like 1 / z^2
    ratio = np.where(far > -1e3, ratio, 1 / far**2)
    return np.log(sd) + np.where(z > -1, near, norm.logpdf(far) + np.log(ratio))
