"""Count-based n-gram predictors, fitted on one sample and scored on another: what short contexts and plain counting achieve."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.nanollama.arrays import Array, Ints
from src.nanollama.config.errors import ConfigError


def held_out_losses(fit: NDArray[Any], test: NDArray[Any], vocab_size: int, orders: tuple[int, ...]) -> dict[int, Array]:
    """Loss in nats of every token of ``test`` (B, T) under n-gram models of each order, fitted on ``fit`` (B', T').

    Interpolated Witten-Bell smoothing: p_n(x | h) = (c(h x) + d(h) p_{n-1}(x | h')) / (c(h) + d(h)) with c counts, d the number of
    different successors of h, h' the shorter history, and the uniform law below the unigram (Chen and Goodman 1999, section 2.4).
    A token with a shorter history than the order asks for is predicted from what there is.
    """
    highest = max(orders)
    if highest * np.log2(vocab_size) > 62:
        most = int(62 / np.log2(vocab_size))
        raise ConfigError(f"{highest}-grams over {vocab_size} tokens are too many to count; use an order up to {most}")
    probability = np.full(test.shape, 1.0 / vocab_size)
    losses = {}
    for order in range(1, highest + 1):
        if order <= test.shape[1]:
            probability[:, order - 1 :] = _interpolate(fit, test, vocab_size, order, probability[:, order - 1 :])
        if order in orders:
            losses[order] = -np.log(probability)
    return losses


def _interpolate(fit: NDArray[Any], test: NDArray[Any], vocab_size: int, order: int, lower: Array) -> Array:
    """p_order of the tokens of ``test`` that have a full history, given the ``lower`` order's probabilities of the same tokens."""
    grams, gram_counts = np.unique(_codes(fit, vocab_size, order), return_counts=True)
    histories, first, successors = np.unique(grams // vocab_size, return_index=True, return_counts=True)
    totals = np.add.reduceat(gram_counts, first) if len(first) else np.zeros(0, np.int64)
    wanted = _codes(test, vocab_size, order)
    count = _lookup(grams, gram_counts, wanted)
    total, different = (_lookup(histories, values, wanted // vocab_size) for values in (totals, successors))
    seen = total > 0
    return np.where(seen, (count + different * lower) / np.where(seen, total + different, 1), lower)


def _codes(tokens: NDArray[Any], vocab_size: int, order: int) -> Ints:
    """Each run of ``order`` tokens as one number, shape (B, T - order + 1)."""
    width = max(tokens.shape[1] - order + 1, 0)
    codes = np.zeros((len(tokens), width), np.int64)
    for k in range(order):
        codes = codes * vocab_size + tokens[:, k : k + width]
    return codes


def _lookup(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    """``values`` at ``wanted`` among the sorted ``keys``, 0 where absent."""
    if not len(keys):
        return np.zeros(wanted.shape, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
