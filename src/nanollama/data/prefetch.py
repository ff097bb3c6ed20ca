"""The batches of a training in order, and a thread that prepares them ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np

from .source import DataSource, sample_range

T = TypeVar("T")


def batches(
    source: DataSource, split: str, batch_size: int, first_step: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """``(step, batch)`` from ``first_step`` on, without end; ``batch`` is this rank's share, ``(batch_size / world_size, seq_len + 1)``."""
    step = first_step
    while True:
        yield step, source.batch(split, *sample_range(step, batch_size, rank, world_size))
        step += 1


class Prefetch(Generic[T]):
    """Iterates over ``items`` in a thread, at most ``depth`` items ahead; gives the same items in the same order.

    An exception in the thread is raised where the consumer would have met it. Use as a context manager, or call :meth:`close`.

        with Prefetch(batches(source, "train", 16, first_step=resumed)) as stream:
            for step, batch in stream: ...
    """

    def __init__(self, items: Iterator[T], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"a prefetch depth of {depth} prepares nothing; give at least 1")
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._finished: tuple[str, T | BaseException | None] | None = None
        self._thread = threading.Thread(target=self._fill, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def _put(self, entry: tuple[str, T | BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.1)  # wakes up now and then, to notice close()
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed.is_set():
            raise ValueError("this Prefetch is closed")
        kind, value = self._finished or self._queue.get()
        if kind == "item":
            return value  # type: ignore[return-value]
        self._finished = (kind, value)
        if isinstance(value, BaseException):
            raise value
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and drop what it prepared. May be called twice."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
