"""What every data source promises, and how a step's samples are divided among ranks.

A sample is a function of (seed, split, global index) and of nothing else: not of the samples drawn before it, not of the number of
processes. So the position of a training in its data is one integer, the next step.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from ..config import ConfigError

SPLITS = ("train", "valid")


@runtime_checkable
class DataSource(Protocol):
    """A stream of token sequences, addressed by global sample index."""

    vocab_size: int
    seq_len: int

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """Samples ``start .. start + count - 1`` of ``split`` ("train" or "valid").

        Returns ``(count, seq_len + 1)`` tokens in :func:`token_dtype` of the vocabulary: inputs are ``[:, :-1]``, targets ``[:, 1:]``.
        """
        ...


@runtime_checkable
class ScatteredSource(DataSource, Protocol):
    """A source that also gives samples of scattered indices in one call, which saves a mixture one call per sample."""

    def rows(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Samples of the given indices, ``(len(indices), seq_len + 1)``."""
        ...


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest unsigned type that holds every token below ``vocab_size``, little-endian on disk and in memory."""
    for dtype in ("u1", "<u2", "<u4"):
        if vocab_size <= 1 << (8 * np.dtype(dtype).itemsize):
            return np.dtype(dtype)
    raise ConfigError(f"vocab_size is {vocab_size}; tokens have at most 32 bits, so at most {1 << 32} are possible")


def check_split(split: str) -> None:
    """Raise ``ConfigError`` unless ``split`` is one of :data:`SPLITS`."""
    if split not in SPLITS:
        raise ConfigError(f"no data split {split!r}; there are {' and '.join(SPLITS)}")


def sample_range(step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> tuple[int, int]:
    """``(start, count)`` of the global sample indices that ``rank`` draws at ``step``.

    ``batch_size`` counts sequences over all ranks. The ranks' ranges side by side are ``step * batch_size .. (step + 1) * batch_size``
    for any ``world_size``, so no sample is drawn twice or left out when the number of ranks changes between two steps.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} of {world_size}: ranks count from 0 to world_size - 1")
    if batch_size % world_size:
        raise ConfigError(f"a batch of {batch_size} sequences cannot be shared evenly by {world_size} ranks; change data.batch_size")
    count = batch_size // world_size
    return step * batch_size + rank * count, count
