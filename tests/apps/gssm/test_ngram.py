from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.apps.gssm.ngram import held_out_losses
from src.nanollama.config import ConfigError


def naive(fit, history, token, vocab):
    """Interpolated Witten-Bell, by recursion over dictionaries."""
    counts = defaultdict(Counter)
    for row in fit:
        for i in range(len(row) - len(history)):
            counts[tuple(row[i : i + len(history)])][row[i + len(history)]] += 1
    lower = 1 / vocab if not history else naive(fit, history[1:], token, vocab)
    seen = counts[tuple(history)]
    if not seen:
        return lower
    return (seen[token] + len(seen) * lower) / (sum(seen.values()) + len(seen))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10**6), st.integers(1, 4))
def test_equals_a_dictionary_of_counts(order, seed, vocab):
    rng = np.random.default_rng(seed)
    fit, test = rng.integers(0, vocab, (3, 9)), rng.integers(0, vocab, (2, 6))
    found = held_out_losses(fit, test, vocab, (order,))[order]
    for b, row in enumerate(test.tolist()):
        for t, token in enumerate(row):
            expected = -np.log(naive(fit.tolist(), row[max(0, t - order + 1) : t], token, vocab))
            assert found[b, t] == pytest.approx(expected, abs=1e-12)


def test_probabilities_sum_to_one():
    fit = np.random.default_rng(0).integers(0, 5, (20, 30))
    histories = np.random.default_rng(1).integers(0, 5, (50, 2))
    total = sum(np.exp(-held_out_losses(fit, np.c_[histories, np.full(50, v)], 5, (3,))[3][:, -1]) for v in range(5))
    np.testing.assert_allclose(total, 1)


def test_learns_a_deterministic_rule():
    tokens = np.arange(400)[None] % 7
    losses = held_out_losses(tokens, tokens, 7, (1, 2))
    assert losses[1].mean() == pytest.approx(np.log(7), abs=0.01)
    assert losses[2][:, 1:].mean() < 0.05


def test_too_long_histories_are_refused():
    with pytest.raises(ConfigError, match="use an order up to 12"):
        held_out_losses(np.zeros((1, 5)), np.zeros((1, 5)), 32, (13,))
