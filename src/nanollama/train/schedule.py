"""Learning-rate schedules: pure functions of the step, in units of the peak rate."""

from __future__ import annotations

import math

from ..config.schema import OptimConfig


def warmup(step: int, length: int) -> float:
    """Linear from 1/length at step 0 to 1 at step length - 1."""
    return min(1.0, (step + 1) / length) if length else 1.0


def cosine(step: int, start: int, end: int, min_ratio: float) -> float:
    """Half a cosine from 1 at ``start`` to ``min_ratio`` at ``end`` (Loshchilov and Hutter 2017, eq. 5, one cycle)."""
    progress = min(1.0, max(0.0, (step - start) / max(1, end - start)))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(step: int, start: int, end: int, min_ratio: float) -> float:
    """Straight from 1 at ``start`` to ``min_ratio`` at ``end``."""
    progress = min(1.0, max(0.0, (step - start) / max(1, end - start)))
    return 1 - (1 - min_ratio) * progress


def decay_start(cfg: OptimConfig, steps: int) -> int:
    """First step of the decay; a checkpoint before it can be continued as a longer run (constant: always, cosine and linear: never)."""
    if cfg.schedule == "constant":
        return steps
    return steps - round(cfg.decay * steps) if cfg.schedule == "wsd" else 0


def lr_ratio(cfg: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of optimiser step ``step`` (from 0) of ``steps``, as a share of ``optim.lr``."""
    ratio = warmup(step, cfg.warmup)
    if cfg.schedule == "cosine":
        ratio *= cosine(step, cfg.warmup, steps, cfg.min_ratio)
    elif cfg.schedule == "linear":
        ratio *= linear(step, cfg.warmup, steps, cfg.min_ratio)
    elif cfg.schedule == "wsd":
        ratio *= linear(step, decay_start(cfg, steps), steps, cfg.min_ratio)
    return ratio
