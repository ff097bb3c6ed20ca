"""Random words by counter: the same index always gives the same words, with no state in between.

Philox4x64-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), as NumPy ships it. The key is (seed, name of the
stream), the counter is the sample index. NumPy guarantees the output of its bit generators across versions (NEP 19).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np

WORDS = 4  # one counter value of Philox4x64 yields four 64-bit words


@lru_cache(maxsize=1024)
def _stream_key(stream: str) -> int:
    return int.from_bytes(blake2b(stream.encode(), digest_size=8).digest(), "little")


def random_words(seed: int, stream: str, start: int, count: int) -> np.ndarray:
    """Independent uniform words of the indices ``start .. start + count - 1``, ``(count, 4)`` of uint64.

    Row ``k`` is a function of ``(seed, stream, start + k)`` only. Streams of different names or seeds are unrelated.
    """
    if start < 0 or count < 0:
        raise ValueError(f"sample indices start at 0 and counts are not negative: got start {start}, count {count}")
    key = np.array([seed % 2**64, _stream_key(stream)], dtype=np.uint64)
    return np.random.Philox(key=key, counter=start).random_raw(WORDS * count).reshape(count, WORDS)


def words_at(seed: int, stream: str, indices: np.ndarray) -> np.ndarray:
    """As :func:`random_words`, for scattered indices: ``(len(indices), 4)``. Cost grows with the range that the indices span."""
    if len(indices) == 0:
        return np.empty((0, WORDS), np.uint64)
    first = int(indices.min())
    return random_words(seed, stream, first, int(indices.max()) - first + 1)[indices - first]


def uniform(words: np.ndarray) -> np.ndarray:
    """uint64 words to float64 in the open interval (0, 1), 52 bits each."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
