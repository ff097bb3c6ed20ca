"""Where results come from: a parametric simulator, an emulator read from a file, a table of finished runs, or real trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from src.nanollama.arrays import Array

from ..problem import Fidelities, Metric


class Objective(Protocol):
    """A simulated training: values without noise, and what a run with its seed would log."""

    @property
    def domains(self) -> tuple[str, ...]: ...

    @property
    def fidelities(self) -> Fidelities: ...

    @property
    def metric(self) -> Metric: ...

    @property
    def flops_per_step(self) -> tuple[float, ...]: ...

    def values(self, weights: Array, model_size: str, step: int) -> Array:
        """(n, outputs) noise-free values of (n, K) mixtures."""
        ...

    def observe(self, weights: Sequence[float], model_size: str, steps: Sequence[int], run: int) -> list[tuple[int, tuple[float, ...]]]:
        """The learning curve that run number ``run`` logs at ``steps``; the same run and step always give the same values."""
        ...


def noisy_curve(
    objective: Objective,
    weights: Sequence[float],
    model_size: str,
    steps: Sequence[int],
    key: tuple[int, int],
    noise: float,
    run_noise: float,
) -> list[tuple[int, tuple[float, ...]]]:
    """Values plus an offset shared by the whole run plus noise at each checkpoint, both functions of ``key`` = (seed, run) and the step."""
    w = np.asarray(weights, dtype=float)[None]
    offset = run_noise * np.random.default_rng(key).standard_normal(len(objective.metric.outputs))
    curve = []
    for step in steps:
        values = objective.values(w, model_size, step)[0]
        jitter = noise * np.random.default_rng((*key, step)).standard_normal(len(values))
        curve.append((int(step), tuple((values + offset + jitter).tolist())))
    return curve
