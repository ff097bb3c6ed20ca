"""How much of a text was seen before, by sampled fingerprints.

Every 32-byte window is hashed, and the hashes divisible by 64 (in effect: whose top six bits are 0) are kept: whether a window is kept
depends on its bytes only, so a passage leaves the same marks wherever it stands. (Manber, "Finding Similar Files in a Large File System",
USENIX 1994.)
"""

from __future__ import annotations

import numpy as np

WINDOW = 32  # bytes
_KEPT_BITS = 6  # one window in 64
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def fingerprints(data: bytes) -> set[int]:
    """Sampled hashes of the 32-byte windows of ``data``; empty for texts shorter than a window."""
    hashes = np.frombuffer(data, np.uint8).astype(np.uint64)
    if len(hashes) < WINDOW:
        return set()
    # polynomial hash modulo 2**64 of every window, by doubling: a window of 2k is two windows of k
    span, power = 1, _BASE
    while span < WINDOW:
        hashes = hashes[:-span] * np.uint64(power) + hashes[span:]
        span, power = 2 * span, power * power % 2**64
    hashes *= _MIX  # low bits of a polynomial hash are weak; mixed, the high ones are good
    return set(hashes[hashes >> np.uint64(64 - _KEPT_BITS) == 0].tolist())


class SeenTexts:
    """The fingerprints of the texts seen so far."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def share(self, data: bytes) -> float:
        """Share of ``data`` (0 to 1, by fingerprints) that occurs in what was added."""
        marks = fingerprints(data)
        return len(marks & self._seen) / len(marks) if marks else 0.0

    def add(self, data: bytes) -> None:
        """Remember ``data``."""
        self._seen |= fingerprints(data)
