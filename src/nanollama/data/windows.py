"""Windows of a long token stream as samples: random ones to train on, a fixed cover of the held-out stream to validate on.

    train   any window of seq_len + 1 tokens, its start drawn by the counter; document borders may fall inside
    valid   |x . . . .|. . . . .|. . . . .|      targets of the windows lie side by side, so each held-out token (but the
             `-------+-`-------+-`-------+-      first, and a tail shorter than a window) is predicted exactly once
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import ConfigError
from .counter import random_words, words_at
from .source import check_split, token_dtype


@dataclass(frozen=True)
class TokenStream:
    """Documents end to end: token ``ids`` ``(n,)``, often memory-mapped, and where each document ends (exclusive), ``(documents,)``."""

    ids: np.ndarray
    ends: np.ndarray

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.ends)


class WindowSource:
    """Data source over a training and a held-out token stream.

    ``name`` is the name of the random stream: two sources of one seed draw independently if their names differ.
    """

    def __init__(self, name: str, train: TokenStream, valid: TokenStream, vocab_size: int, seq_len: int, seed: int = 0) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.seed = seed
        self.streams = {"train": train, "valid": valid}
        for split, stream in self.streams.items():
            if len(stream.ids) < seq_len + 1:
                raise ConfigError(
                    f"{name}: the {split} split has {len(stream.ids):,} tokens, "
                    f"one window of data.seq_len={seq_len} needs {seq_len + 1:,}; give more data or shorter sequences"
                )
        # plain ndarray views: indexing through the np.memmap subclass is several times slower
        self._windows = {s: np.lib.stride_tricks.sliding_window_view(np.asarray(t.ids), seq_len + 1) for s, t in self.streams.items()}
        # shuffled once and for all seeds, so that the first few windows already speak for the whole held-out stream
        order = random_words(0, "validation order", 0, (len(valid.ids) - 1) // seq_len)[:, 0]
        self._valid_starts = np.argsort(order, kind="stable") * seq_len

    def size(self, split: str) -> int | None:
        """Number of different samples: the windows of the held-out cover for "valid", ``None`` (no end) for "train"."""
        check_split(split)
        return len(self._valid_starts) if split == "valid" else None

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """See :class:`~src.nanollama.data.source.DataSource`. Validation indices wrap around after ``size("valid")``."""
        return self.rows(split, np.arange(start, start + count))

    def rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Samples of scattered indices, ``(len(indices), seq_len + 1)``."""
        starts = self._starts(split, indices)
        rows = self._windows[split][starts]
        return rows.astype(token_dtype(self.vocab_size), copy=False)

    def segments(self, split: str, start: int, count: int) -> np.ndarray:
        """Which document each position of ``batch(split, start, count)`` belongs to, counted from 0 in each row; same shape, int32.

        Document masks let a position attend only to positions of its own segment.
        """
        return self.segment_rows(split, np.arange(start, start + count))

    def segment_rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Segments of scattered indices, ``(len(indices), seq_len + 1)`` of int32."""
        positions = self._starts(split, indices)[:, None] + np.arange(self.seq_len + 1)
        documents = np.searchsorted(self.streams[split].ends, positions, side="right")
        return (documents - documents[:, :1]).astype(np.int32)

    def _starts(self, split: str, indices: np.ndarray) -> np.ndarray:
        check_split(split)
        if split == "valid":
            return self._valid_starts[indices % len(self._valid_starts)]
        # modulo bias of 64-bit words: below n / 2**64, unmeasurable
        words = words_at(self.seed, f"{self.name}/train", indices)[:, 0]
        return (words % np.uint64(len(self._windows[split]))).astype(np.int64)
