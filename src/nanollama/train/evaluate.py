"""Held-out loss, paired with the exact floor where it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..distributed import Ranks
from .step import precision


@dataclass(frozen=True)
class HeldOut:
    """Fixed sequences of one split.

    ``tokens``: (N, T + 1) unsigned. ``floor``: (N,) Bayes-optimal loss of each sequence over its T predicted positions, in nats per
    token, or None. ``bytes_per_token``: 1 for byte-level text (the loss is then also reported in bits per byte), else None.
    """

    tokens: np.ndarray
    floor: np.ndarray | None = None
    bytes_per_token: float | None = None


@torch.no_grad()
def sequence_losses(model: nn.Module, tokens: np.ndarray, batch: int, ranks: Ranks, precision_name: str) -> np.ndarray:
    """Mean loss of each sequence (N,), float64, nats per token; the ranks share the work and all get the whole result."""
    losses = torch.zeros(len(tokens), dtype=torch.float64, device=ranks.device)
    start, length = ranks.share(len(tokens))
    longest = -(-len(tokens) // ranks.world)
    model.eval()
    for low in range(0, longest, batch):  # as many rounds on every rank: a sharded model is gathered by all of them together
        rows = slice(start + min(low, length), start + min(low + batch, length))
        mine = tokens[rows] if rows.start < rows.stop else tokens[:1]
        part = torch.from_numpy(mine.astype(np.int64)).to(ranks.device)
        with precision(precision_name, ranks.device):
            logits = model(part[:, :-1])
        nll = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        losses[rows] = nll.view(len(mine), -1).double().mean(dim=1)[: rows.stop - rows.start]
    model.train()
    return ranks.sum(losses).cpu().numpy()


def evaluate(model: nn.Module, splits: Mapping[str, HeldOut], batch: int, ranks: Ranks, precision_name: str) -> dict[str, dict[str, Any]]:
    """Split -> loss and its standard error over sequences; with a floor also ``bayes_loss`` and ``excess_loss`` on the same sequences."""
    records = {}
    for split, held_out in splits.items():
        losses = sequence_losses(model, held_out.tokens, batch, ranks, precision_name)
        record = {"loss": float(losses.mean()), "loss_se": standard_error(losses)}
        if held_out.floor is not None:
            excess = losses - held_out.floor  # paired: the luck of the draw cancels
            record |= {
                "bayes_loss": float(held_out.floor.mean()),
                "excess_loss": float(excess.mean()),
                "excess_loss_se": standard_error(excess),
            }
        if held_out.bytes_per_token:
            record["bits_per_byte"] = record["loss"] / math.log(2) / held_out.bytes_per_token
        records[split] = record
    return records


def standard_error(values: np.ndarray) -> float:
    """Of the mean; nan for fewer than two values is avoided by returning 0."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
