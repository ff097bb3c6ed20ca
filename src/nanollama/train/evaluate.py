"""Held-out loss, paired with the exact floor where it is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..config.schema import TrainConfig
from ..distributed import Ranks
from .step import precision, with_documents


@dataclass(frozen=True)
class HeldOut:
    """Fixed sequences of one split.

    ``tokens``: (N, T + 1), or (N, 2, T + 1) with documents. ``floor``: (N,) Bayes-optimal loss of each sequence over its T predicted
    positions, in nats per token, or None. ``bytes_per_token``: of text, whose loss is then also reported in bits per byte; else None.
    """

    tokens: np.ndarray
    floor: np.ndarray | None = None
    bytes_per_token: float | None = None


@torch.no_grad()
def sequence_scores(
    model: nn.Module, tokens: np.ndarray, train: TrainConfig, ranks: Ranks, before_batch: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each sequence, (N,) float64: mean loss, nats per token, and the share of tokens that the model puts first.

    The ranks share the work and all get the whole result.
    """
    scores = torch.zeros(2, len(tokens), dtype=torch.float64, device=ranks.device)
    start, length = ranks.share(len(tokens))
    longest, batch = -(-len(tokens) // ranks.world), train.micro_batch or 1
    model.eval()
    for low in range(0, longest, batch):  # as many rounds on every rank: a sharded model is gathered by all of them together
        before_batch()
        rows = slice(start + min(low, length), start + min(low + batch, length))
        mine = tokens[rows] if rows.start < rows.stop else tokens[:1]
        part = torch.from_numpy(mine.astype(np.int64)).to(ranks.device)
        with precision(train.precision, ranks.device):
            inputs, documents = with_documents(part)
            logits = model(inputs[:, :-1], documents)
        nll = F.cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        right = logits.argmax(dim=-1) == inputs[:, 1:]
        each = torch.stack([nll.view(len(mine), -1).double().mean(dim=1), right.double().mean(dim=1)])
        scores[:, rows] = each[:, : rows.stop - rows.start]
    model.train()
    losses, accuracies = ranks.sum(scores).cpu().numpy()
    return losses, accuracies


def evaluate(
    model: nn.Module, splits: Mapping[str, HeldOut], train: TrainConfig, ranks: Ranks, before_batch: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Split -> loss with its standard error over sequences, and next-token accuracy.

    With a floor also ``bayes_loss`` and ``excess_loss`` on the same sequences. ``before_batch`` is called by all ranks at once and may
    raise to end the evaluation.
    """
    records = {}
    for split, held_out in splits.items():
        losses, accuracies = sequence_scores(model, held_out.tokens, train, ranks, before_batch)
        record = {"loss": float(losses.mean()), "loss_se": standard_error(losses), "accuracy": float(accuracies.mean())}
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


def final_metrics(final: Mapping[str, Mapping[str, Any]], parameters: int) -> dict[str, float | int]:
    """What runs of models of different sizes are compared by, from the last evaluation of all splits (their plain mean).

    The two ratios fall with size almost whatever the model; the report's loss at equal size says more.
    """
    accuracy = sum(record["accuracy"] for record in final.values()) / len(final)
    return {
        "final/test_accuracy": accuracy,
        "final/test_loss": sum(record["loss"] for record in final.values()) / len(final),
        "final/model_params": parameters,
        "final/param_efficiency": accuracy / parameters * 1e5,
        "final/accuracy_per_million_params": accuracy / parameters * 1e6,
    }


def standard_error(values: np.ndarray) -> float:
    """Of the mean; nan for fewer than two values is avoided by returning 0."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
