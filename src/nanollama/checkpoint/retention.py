"""Which checkpoints to delete. Pure."""

from __future__ import annotations

from collections.abc import Collection


def expired(steps: Collection[int], keep: int, pinned: Collection[int] = ()) -> list[int]:
    """Steps to delete so that the newest ``keep`` remain, and every one in ``pinned`` (waiting for its evaluation, say)."""
    return [step for step in sorted(steps)[:-keep] if step not in pinned]
