"""Sequences with their documents beside them, for models that must not look from one document into another."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .source import DataSource


class SegmentedSource(DataSource, Protocol):
    """A source that knows where its documents end."""

    def segments(self, split: str, start: int, count: int) -> np.ndarray:
        """Which document each position of ``batch(split, start, count)`` belongs to, ``(count, seq_len + 1)``."""
        ...


class WithDocuments:
    """``source`` with batches of shape ``(count, 2, seq_len + 1)``: tokens, and each position's document, counted from 0 in a row."""

    def __init__(self, source: SegmentedSource) -> None:
        self.source = source
        self.vocab_size, self.seq_len = source.vocab_size, source.seq_len

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """Samples ``start .. start + count - 1``, int32."""
        tokens = self.source.batch(split, start, count).astype(np.int32)
        return np.stack([tokens, self.source.segments(split, start, count)], axis=1)
