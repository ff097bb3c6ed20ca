"""The ranks of one torchrun agree on a value before any process group exists."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def rank() -> int:
    """Global rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes of this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def agree(key: str, make: Callable[[], str]) -> str:
    """Rank 0 calls ``make``; every rank returns its value.

    Goes through the TCPStore that torchrun already serves. After an elastic restart the store still holds the value, so a
    restarted run finds its own folder again instead of making a new one. If ``make`` raises, the other ranks end at once too.
    """
    store = shared_store()
    if store is None:
        return make()
    if rank() == 0 and not store.check([key]):
        try:
            store.set(key, "=" + make())
        except BaseException:
            store.set(key, "!")
            raise
    value = store.get(key).decode()
    if value == "!":
        raise SystemExit(2)  # rank 0 says why
    return value[1:]


def shared_store(timeout_s: float = 300) -> Any:
    """A connection of its own to the TCPStore that torchrun serves; None for a single process.

    ``timeout_s`` bounds connecting, to a torchrun that may be gone, and waiting for a value.
    """
    if world_size() == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from datetime import timedelta

    from torch.distributed import PrefixStore, TCPStore

    server = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=timeout_s))
    return PrefixStore("nanollama", server)
