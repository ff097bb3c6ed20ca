"""Probes: regressions from features to targets, fitted on some sequences and scored on others.

Squared error throughout. The best any function of x_<=t can do on the one-hot state is then its exact filtered marginal, so the filter's
own R2 on the states is a ceiling for every probe, and R2 = 1 on the marginals is what a perfect observer would reach.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray
Predict = Callable[[Tensor], Tensor]

BATCH = 1024  # rows a step of the MLP
CHUNK = 2**15  # rows at once in the linear probe's sums
RATE = 3e-3


@dataclass(frozen=True)
class Score:
    """R2 = 1 - residual / total sum of squares, with its standard error over sequences."""

    r2: float
    se: float


def score(target: Array, predicted: Array, mean: Array) -> Score:
    """R2 of ``predicted`` for ``target``, both (N, T, K), against the constant prediction ``mean`` (K,).

    The standard error is that of a ratio of sums over sequences (linearised).
    """
    residual = ((target - predicted) ** 2).sum(axis=(1, 2))
    total = ((target - mean) ** 2).sum(axis=(1, 2))
    if total.sum() == 0:
        return Score(0.0, 0.0)  # nothing varies, nothing to explain
    ratio = residual.sum() / total.sum()
    spread = (residual - ratio * total).std(ddof=1) if len(total) > 1 else 0.0
    return Score(float(1 - ratio), float(spread * len(total) ** 0.5 / total.sum()))


def by_position(target: Array, predicted: Array, mean: Array) -> Array:
    """R2 at every position, (T,): explained share of the variation that all positions have on average; 0 where there is none."""
    residual = ((target - predicted) ** 2).sum(axis=2).mean(axis=0)
    total = ((target - mean) ** 2).sum(axis=2).mean()
    return 1 - residual / total if total else np.zeros_like(residual)


def fit_linear(features: Tensor, targets: Tensor, ridge: float) -> Predict:
    """Ridge regression with an intercept. ``features`` (R, D), ``targets`` (R, K); the penalty is ``ridge`` times the mean variance."""
    centre, offset = features.mean(dim=0), targets.mean(dim=0)
    size = features.shape[1]
    gram = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    moment = torch.zeros(size, targets.shape[1], dtype=torch.float64, device=features.device)
    for rows, wanted in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):  # float64, but never all rows at once
        x = (rows - centre).double()
        gram += x.T @ x
        moment += x.T @ (wanted - offset).double()
    penalty = ridge * gram.diagonal().mean().clamp_min(1e-30)
    weights = torch.linalg.solve(gram + penalty * torch.eye(size, dtype=gram.dtype, device=gram.device), moment).float()
    return lambda rows: (rows - centre) @ weights + offset


def fit_mlp(features: Tensor, targets: Tensor, linear: Predict, hidden: int, epochs: int, seed: int) -> Predict:
    """What ``linear`` leaves over, by one hidden layer of ``hidden`` GELU units: Adam on the squared error, in an order fixed by ``seed``.

    Stops where the last tenth of the rows, which it is not fitted on, is predicted best; that may be before the first step.
    """
    centre, scale = features.mean(dim=0), features.std(dim=0)
    # a feature that never varied, such as a token not yet seen, says nothing, however far from its mean it is later
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.inf)
    generator = torch.Generator().manual_seed(seed)
    first, second = nn.Linear(features.shape[1], hidden), nn.Linear(hidden, targets.shape[1])
    with torch.no_grad():
        first.weight.copy_(torch.randn(first.weight.shape, generator=generator) * first.in_features**-0.5)
        first.bias.zero_()
        second.weight.zero_()
        second.bias.zero_()
    net = nn.Sequential(first, nn.GELU(), second).to(features.device)

    def predict(rows: Tensor) -> Tensor:
        return net((rows - centre) / scale) + linear(rows)

    fit = len(features) - len(features) // 10
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-fit // BATCH))
    best, kept = _error(predict, features[fit:], targets[fit:]), deepcopy(net.state_dict())
    for _ in range(epochs):
        for rows in torch.randperm(fit, generator=generator).split(BATCH):
            rows = rows.to(features.device)
            loss = ((predict(features[rows]) - targets[rows]) ** 2).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        error = _error(predict, features[fit:], targets[fit:])
        if error < best:
            best, kept = error, deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return torch.no_grad()(predict)


@torch.no_grad()
def _error(predict: Predict, features: Tensor, targets: Tensor) -> float:
    return float(((predict(features) - targets) ** 2).sum()) if len(features) else float("inf")


def window(tokens: Array, vocab_size: int, length: int) -> Array:
    """One-hot codes of the last ``length`` tokens at every position, (N, T, length * (vocab_size + 1)); the extra symbol is "none yet"."""
    padded = np.concatenate([np.full((len(tokens), length - 1), vocab_size), tokens.astype(np.int64)], axis=1)
    views = np.lib.stride_tricks.sliding_window_view(padded, length, axis=1)
    codes = np.zeros((*views.shape, vocab_size + 1), np.float32)
    np.put_along_axis(codes, views[..., None], 1.0, axis=-1)
    return codes.reshape(*views.shape[:2], -1)
