"""Signals become a flag that is read between steps and between batches, so that a stop never cuts a step or a checkpoint in half."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..config import Interrupted, Requeue

ECHO_S = 1.0  # Slurm signals every process of a job, and torchrun passes on to its ranks what they have got themselves
REQUEUE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # a scheduler needs the machine back


class StopFlag:
    """Which stop was asked for: 0 none, 1 by the user (Ctrl-C), 2 by a scheduler (come back later)."""

    def __init__(self) -> None:
        self.kind = 0
        self._since = 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.kind == 1:
            if time.monotonic() < self._since + ECHO_S:
                return
            raise KeyboardInterrupt  # a second Ctrl-C: the user does not want to wait for the checkpoint
        self.kind, self._since = 1 if number == signal.SIGINT else 2, time.monotonic()


def stopped(kind: int, text: str) -> Interrupted | Requeue:
    """What a run raises that was asked to stop, by the ``kind`` of its flag."""
    return Interrupted(text) if kind == 1 else Requeue(text)


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Catch Ctrl-C and the schedulers' signals while inside; outside the main thread nothing is caught."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, flag._handle) for number in (signal.SIGINT, *REQUEUE)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            around = getattr(handler, "__self__", None)
            if isinstance(around, StopFlag) and flag.kind:  # who was asked inside has not told the one around
                around.kind = flag.kind
