"""When one rank of a torchrun fails: its traceback is the one that people see, and the other ranks end within seconds.

Without this they would wait in a collective until its timeout, or report the broken connection as if that were the cause.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from .ranks import rank, shared_store, world_size

PERIOD_S = 0.5  # between two looks at the others
GRACE_S = 3.0  # for a rank to fail on its own, with its own last words in its log
PATIENCE_S = 10.0  # for rank 0 to write down how the run ended, and for torchrun to answer a rank that ends
# torch's allocators (GPU, CPU), CUDA itself (loading a module, recording a graph), cuBLAS
NO_MEMORY = ("OutOfMemoryError", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Failure:
    """What went wrong where."""

    rank: int
    host: str
    status: str  # as in result.json
    text: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} failed first:\n{self.text.rstrip()}"


def unexpected(error: Exception) -> tuple[str, str]:
    """Status and text of an error that nobody raised on purpose."""
    text = "".join(traceback.format_exception(error))
    return "oom" if isinstance(error, MemoryError) or out_of_memory(f"{type(error).__name__}: {error}") else "error", text


def out_of_memory(text: str) -> bool:
    """Whether an error's text says that a device's or the host's memory is full."""
    return any(sign in text for sign in NO_MEMORY)


def first_failure(status: str, text: str) -> Failure | None:
    """Tell the others that this rank failed. Returns who failed first, maybe this rank; None where there are no others."""
    mine = Failure(rank(), socket.gethostname(), status, text)
    try:
        store = shared_store(PATIENCE_S)
        if store is None:
            return None
        return Failure(**json.loads(store.compare_set(_key(), "", json.dumps(asdict(mine)))))
    except Exception:  # the store went down with torchrun itself
        return mine


def wait_until_written() -> None:
    """A rank that ends early stays until rank 0 has written the run's result: once one has left, torchrun ends the others."""
    if rank() == 0 or world_size() == 1:
        return
    until = time.monotonic() + PATIENCE_S
    with suppress(Exception):  # rank 0, and torchrun with it, may be gone
        store = shared_store(PATIENCE_S)
        while store is not None and time.monotonic() < until and not store.check([_key() + "-written"]):
            time.sleep(PERIOD_S / 10)


def written() -> None:
    """Rank 0 has written the run's result."""
    with suppress(Exception):
        if (store := shared_store(PATIENCE_S)) is not None:
            store.set(_key() + "-written", "1")


@contextmanager
def watching(end: Callable[[Failure], None]) -> Iterator[None]:
    """Inside, call ``end`` from a thread once another rank has failed and this one does not end by itself meanwhile.

    The thread is gone afterwards: one that is still asking the store while Python shuts down would abort the process.
    """
    over = threading.Event()

    def look() -> None:
        try:
            store = shared_store()
            while store is not None and not store.check([_key()]):
                if over.wait(PERIOD_S):
                    return
            if store is not None:
                failure = Failure(**json.loads(store.get(_key())))
                if failure.rank != rank() and not over.wait(GRACE_S):
                    end(failure)
        except Exception:
            return  # torchrun has gone, and takes this rank with it

    thread = threading.Thread(target=look, daemon=True)
    if world_size() > 1:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join(PATIENCE_S)


def _key() -> str:
    return f"failure-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
