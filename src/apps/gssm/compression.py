"""gzip as a measure of difficulty: the one the first experiments quote, and the same against noise.

The quoted ratios are zlib's bytes at level 9, for a batch of int64 tokens as one stream, per *token*: compressed bytes per 8-byte token.
That number depends on the vocabulary (about .99 for uniform noise over 32 symbols, 1.16 over 64), so it goes by the name
``gzip_legacy``; divided by its value for noise of the same vocabulary and length it is ``gzip_normalised``.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .philox import derive_key
from .sampler import Sampler

STREAM_LENGTH = 2048  # tokens per sequence of the compressed batch


def gzip_legacy(tokens: NDArray[Any]) -> float:
    """Compressed bytes per token of ``tokens`` (any shape, read row by row) as int64."""
    return len(zlib.compress(np.ascontiguousarray(tokens, dtype="<i8").tobytes(), level=9)) / tokens.size


@lru_cache(maxsize=32)
def gzip_noise(vocab_size: int, count: int) -> float:
    """``gzip_legacy`` of ``count`` independent uniform tokens."""
    low, high = derive_key("noise", vocab_size, count)
    rng = np.random.Generator(np.random.Philox(key=low | high << 32))
    return gzip_legacy((rng.random(count) * vocab_size).astype(np.int64))


def stream(sampler: Sampler, count: int) -> NDArray[Any]:
    """The ``count`` tokens that gzip is asked to compress."""
    return sampler.sample("compression", 0, -(-count // STREAM_LENGTH), STREAM_LENGTH).ravel()[:count]
