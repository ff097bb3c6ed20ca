"""Watching the other ranks of a torchrun."""

import json
import threading
from dataclasses import asdict

import pytest
import torch
from torch.distributed import PrefixStore, TCPStore

from src.nanollama.config.failure import Failure, first_failure, unexpected, wait_until_written, watching, written


@pytest.fixture
def store(monkeypatch):
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port), "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    return PrefixStore("nanollama", server)


def test_no_thread_is_left_that_could_abort_the_process_as_it_ends(store) -> None:
    before = threading.active_count()
    with watching(lambda failure: None):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_another_rank_s_failure_is_told_to_one_that_goes_on(store, monkeypatch) -> None:
    monkeypatch.setattr("src.nanollama.config.failure.GRACE_S", 0.1)
    told: list[Failure] = []
    said = threading.Event()
    failure = Failure(1, "there", "error", "why")
    with watching(lambda found: (told.append(found), said.set())):  # type: ignore[arg-type, func-returns-value]
        store.set("failure-0", json.dumps(asdict(failure)))
        assert said.wait(10)
    assert told == [failure]


def test_a_rank_that_ends_by_itself_is_left_alone(store) -> None:
    told: list[Failure] = []
    with watching(told.append):
        store.set("failure-0", json.dumps(asdict(Failure(1, "there", "error", "why"))))
    assert not told


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_whose_torchrun_was_killed_ends_all_the_same(rank: str, monkeypatch) -> None:
    """Nobody answers at its store any more: once, a rank that ended then kept its run folder locked for five minutes."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for key, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setattr("src.nanollama.config.failure.PATIENCE_S", 0.2)
    said: list[Failure | None] = []

    def end() -> None:
        said.append(first_failure("error", "why"))
        written()
        wait_until_written()
        said.append(None)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and said[0] is not None and (said[0].rank, said[0].text) == (int(rank), "why")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (torch.AcceleratorError("CUDA error: out of memory"), "oom"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), "oom"),
        (RuntimeError("the model is out of memory of its training"), "error"),
    ],
)
def test_memory_that_is_full_is_told_from_other_failures(error: Exception, status: str) -> None:
    assert unexpected(error)[0] == status
