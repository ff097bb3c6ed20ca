import threading
from collections.abc import Iterator

import numpy as np
import pytest

from src.nanollama.data import Mixture, Prefetch, TokenStream, WindowSource, batches


def test_ahead_of_time_gives_the_same_batches() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    stream = TokenStream(ids, np.array([1000]))
    source = Mixture({name: WindowSource(name, stream, stream, 1000, 8) for name in "ab"}, [0.3, 0.7])
    for rank, first in ((0, 0), (1, 7)):
        expected = batches(source, "train", 6, first, rank, 2)
        with Prefetch(batches(source, "train", 6, first, rank, 2), depth=3) as ahead:
            for _ in range(50):
                (step, batch), (expected_step, expected_batch) = next(ahead), next(expected)
                assert step == expected_step and np.array_equal(batch, expected_batch)


def test_the_end_is_the_end_each_time() -> None:
    with Prefetch(iter([1, 2, 3])) as items:
        assert list(items) == [1, 2, 3]
        assert list(items) == []


def test_an_exception_comes_where_it_would_have_come() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    with Prefetch(failing()) as items:
        assert [next(items), next(items)] == [1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(items)


def test_it_runs_a_bounded_number_of_items_ahead() -> None:
    produced, seen_enough = [], threading.Event()

    def counting() -> Iterator[int]:
        for item in range(1000):
            produced.append(item)
            if item == 3:
                seen_enough.set()
            yield item

    with Prefetch(counting(), depth=3) as items:
        assert seen_enough.wait(timeout=30)  # it does run ahead: three queued and one in hand, before anything is asked for
        assert len(produced) == 4
        assert next(items) == 0


def test_close_ends_a_waiting_thread_and_may_be_repeated() -> None:
    items = Prefetch(iter(range(10**9)), depth=1)
    assert next(items) == 0
    items.close()
    items.close()
    assert not items._thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        next(items)


def test_leaving_the_block_by_an_exception_closes() -> None:
    with pytest.raises(KeyError), Prefetch(iter(range(10**9))) as items:
        raise KeyError
    assert not items._thread.is_alive()


def test_depth_0_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Prefetch(iter([]), depth=0)
