"""Where a sweep's trainings run: on this machine, on Slurm, or in whatever a Hydra launcher starts, batch by batch."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from src.nanollama.config import ConfigError, read_result
from src.nanollama.config.folder import is_locked, wait_unlocked
from src.nanollama.config.schema import ClusterConfig
from src.nanollama.launcher.outcome import RESTARTABLE
from src.nanollama.launcher.pool import Ended, Job, JobPool, Pool, devices
from src.nanollama.launcher.slurm_pool import SlurmPool

from .options import PoolConfig

log = logging.getLogger("nanollama")

Launch = Callable[[Mapping[Path, Sequence[str]]], Any]  # run folder -> overrides; returns when all jobs have ended


def open_pool(options: PoolConfig, cluster: ClusterConfig, folder: Path, launch: Launch | None = None) -> JobPool:
    """The pool that the options ask for, or that of a Hydra launcher. ``folder``: the sweep's. Raises ConfigError where it cannot be."""
    if launch:
        return BatchPool(launch, options.slots, options.retries)
    if options.launcher == "sbatch":
        return SlurmPool(options.slots, folder, cluster, timeout_s=options.timeout_s, retries=options.retries)
    if cluster.torchrun:
        raise ConfigError("cluster.torchrun=true starts each training in several processes where they are jobs: give pool.launcher=sbatch")
    return local_pool(options)


def local_pool(options: PoolConfig) -> Pool:
    """Slots of this machine."""
    return Pool(options.slots, devices=devices(), timeout_s=options.timeout_s, retries=options.retries)


class BatchPool:
    """Jobs in batches: what was submitted is launched together, by the first ``poll``, which returns when all of it has ended.

    A job is any command line of a module, ``python -m MODULE overrides``. What the launcher returns or raises is not looked at as long
    as its jobs leave results.
    """

    def __init__(self, launch: Launch, slots: int, retries: int) -> None:
        self._launch, self._slots, self.retries = launch, slots, retries
        self._waiting: list[tuple[Job, int]] = []  # with the number of starts so far
        self._ended: deque[Ended] = deque()
        self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __len__(self) -> int:
        """Jobs not yet reported by ``poll``."""
        return len(self._waiting) + len(self._ended)

    @property
    def slots(self) -> int:
        """0 until the whole batch has been reported: the next one is asked for with all its results known."""
        return 0 if self._ended else self._slots

    def submit(self, job: Job) -> None:
        """Into the next batch."""
        self._waiting.append((job, 0))

    def poll(self, wait_s: float | None = None) -> Ended | None:
        """The next job that has ended; None if none did. Waits for a whole batch, whatever ``wait_s``."""
        if self._waiting and not self._ended:
            batch, self._waiting = self._waiting, []
            self._run(batch)
        return self._ended.popleft() if self._ended else None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Launch nothing more."""
        self._stopping = True
        self._waiting.clear()

    def kill(self) -> None:
        """Launch nothing more; nothing is running outside of ``poll``."""
        self.stop()

    def _run(self, batch: Sequence[tuple[Job, int]]) -> None:
        began, left = time.monotonic(), [job.run_dir for job, _ in batch if is_locked(job.run_dir)]
        for run_dir in left:  # by a sweep that was killed
            wait_unlocked(run_dir)
        todo = [job for job, _ in batch if job.run_dir not in left or _restartable(read_result(job.run_dir))]
        for job in todo:
            (job.run_dir / "result.json").unlink(missing_ok=True)  # of an earlier start
        try:
            if todo:
                self._launch({job.run_dir: _overrides(job) for job in todo})
        except Exception as error:
            if not any(read_result(job.run_dir) for job in todo):
                raise
            log.warning("the launcher raised %s: %s; its jobs' results stand", type(error).__name__, error)
        for job, attempts in batch:
            result = read_result(job.run_dir)
            if _restartable(result) and attempts < self.retries and not self._stopping:
                self._waiting.append((job, attempts + 1))
                continue
            found = result or {"status": "killed", "message": "left no result.json; the launcher's own log may say why"}
            self._ended.append(Ended(job, found, attempts + 1, 0, time.monotonic() - began))


def _restartable(result: Mapping[str, Any] | None) -> bool:
    return result is None or result["status"] in RESTARTABLE


def _overrides(job: Job) -> list[str]:
    """A command line without ``python -m MODULE`` and without the run folder, which is the launcher's to name."""
    module = max(i for i, text in enumerate(job.command) if text == "-m") + 1
    return [text for text in job.command[module + 1 :] if not text.startswith("run_dir=")]
