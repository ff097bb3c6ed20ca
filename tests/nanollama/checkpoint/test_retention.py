"""Which checkpoints go."""

from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.checkpoint.retention import expired


def test_the_newest_and_the_pinned_stay() -> None:
    assert expired([30, 10, 20, 40], keep=2) == [10, 20]
    assert expired([10, 20, 30, 40], keep=1, pinned={20}) == [10, 30]
    assert expired([10], keep=3) == []


@given(st.sets(st.integers(0, 50)), st.integers(1, 5), st.sets(st.integers(0, 50)))
def test_what_goes_is_neither_new_nor_pinned(steps, keep, pinned) -> None:
    gone = set(expired(steps, keep, pinned))
    assert gone <= steps and not gone & pinned and not gone & set(sorted(steps)[-keep:])
    assert len(steps - gone - pinned) <= keep
