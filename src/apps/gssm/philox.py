"""Philox4x32-10, a counter-based random generator: the words at a counter depend on that counter and the key alone.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. This is the numpy form, the reference
for the compiled one in ``sampler_native``; ``words`` fixes which counter feeds which draw of a sequence.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

Key = tuple[int, int]


def derive_key(*parts: Any) -> Key:
    """Two 32-bit key words from any JSON-able parts: different parts give unrelated streams."""
    digest = hashlib.blake2b(json.dumps(parts, separators=(",", ":")).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox4x32(counter: NDArray[np.uint32], key: Key) -> NDArray[np.uint32]:
    """Four random words for each counter. ``counter`` and the result have shape (4, ...)."""
    c0, c1, c2, c3 = (c.astype(np.uint64) for c in counter)
    k0, k1 = key
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    for _ in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _MASK
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def words(sequences: NDArray[np.uint64], first: int, count: int, key: Key) -> NDArray[np.uint32]:
    """Words ``first`` to ``first + count - 1`` of each sequence's stream, shape (count, sequences).

    Word w of sequence i is output w mod 4 of the block with counter (w div 4, low half of i, high half of i, 0).
    """
    blocks = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    counter = np.empty((4, len(blocks), len(sequences)), np.uint32)
    counter[0] = (blocks & _MASK).astype(np.uint32)[:, None]
    counter[1] = (sequences & _MASK).astype(np.uint32)
    counter[2] = (sequences >> _SHIFT).astype(np.uint32)
    counter[3] = 0
    stream = philox4x32(counter, key).transpose(1, 0, 2).reshape(4 * len(blocks), len(sequences))
    return stream[first % 4 : first % 4 + count]
