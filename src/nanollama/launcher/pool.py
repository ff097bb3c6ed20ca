"""A bounded pool of local processes without barriers: a slot that gets free takes the next job at once.

    with Pool(slots=4, timeout_s=3600) as pool:
        pool.submit(Job(command, run_dir))
        while len(pool):
            if ended := pool.poll():
                print(ended.job.run_dir, ended.result["status"])

A job is any command that leaves ``result.json`` in its run folder; that file alone says how it ended. Jobs killed from outside start
again in the same folder. A job that still runs there since an earlier pool died is waited for, never started a second time.
"""

from __future__ import annotations

import glob
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from ..config.folder import holder, is_locked, read_result, wait_unlocked, write_json
from .local import kill_group, kill_tree
from .outcome import RESTARTABLE
from .signals import stop_flag


@dataclass(frozen=True)
class Job:
    """A command, the run folder it was told to use, and environment variables beside those of its slot."""

    command: tuple[str, ...]
    run_dir: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


@dataclass(frozen=True)
class Ended:
    """How a job ended: ``result`` as in ``result.json`` (at least ``status``), after how many starts, in which slot."""

    job: Job
    result: dict[str, Any]
    attempts: int
    slot: int
    wall_s: float  # since its last start

    def line(self, label: str) -> str:
        """One line for people."""
        loss = f"  loss {self.result['loss']:.4f}" if isinstance(self.result.get("loss"), float) else ""
        again = f"  (started {self.attempts} times)" if self.attempts > 1 else ""
        return f"{self.job.run_dir.name}: {self.result['status']}{loss}  {label}{again}"


class JobPool(Protocol):
    """Carries out jobs, ``slots`` at a time; use as a context manager, which ends what is left."""

    @property
    def slots(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def __len__(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def poll(self, wait_s: float | None = None) -> Ended | None: ...
    def stop(self, number: int = signal.SIGTERM) -> None: ...
    def kill(self) -> None: ...


Stamp = tuple[int, int] | None  # tells one version of a file from another: inode and time; None: no file


@dataclass
class _Running:
    job: Job
    attempts: int
    process: subprocess.Popen[bytes] | None  # None: started by somebody else
    earlier: Stamp  # of result.json at the start
    earlier_env: Stamp
    began: float
    stop_at: float | None = None  # when it was told to end
    timed_out: bool = False


class Pool:
    """``slots`` jobs at a time, each with its share of the machine's threads, or with devices of its own.

    ``devices``: ids for CUDA_VISIBLE_DEVICES, dealt out evenly; too few for all slots: shared in turn. ``processes`` in each job share
    the slot's threads, and have a device each as long as there are so many. ``timeout_s`` bounds each start of a job. ``retries``:
    further starts of a job that was killed from outside. ``grace_s``: time to save between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        slots: int,
        *,
        devices: Sequence[str] = (),
        processes: int = 1,
        timeout_s: float | None = None,
        retries: int = 2,
        grace_s: float = 30.0,
    ) -> None:
        assert slots >= 1
        self.slots, self.devices, self.processes = slots, tuple(devices), processes
        self.timeout_s, self.retries, self.grace_s = timeout_s, retries, grace_s
        self._waiting: deque[tuple[Job, int]] = deque()  # with the number of starts so far
        self._running: dict[int, _Running] = {}
        self._ended: queue.SimpleQueue[tuple[int, _Running]] = queue.SimpleQueue()
        self._failed: deque[Ended] = deque()  # could not be started
        self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __len__(self) -> int:
        """Jobs not yet reported by ``poll``."""
        return len(self._waiting) + len(self._running) + len(self._failed)

    def submit(self, job: Job) -> None:
        """Start a job as soon as a slot is free."""
        self._waiting.append((job, 0))
        self._fill()

    def poll(self, wait_s: float | None = None) -> Ended | None:
        """The next job that has ended; None if none did within ``wait_s`` seconds (None: wait for one) or none is left."""
        until = None if wait_s is None else time.monotonic() + wait_s
        while len(self):
            if self._failed:
                return self._failed.popleft()
            self._enforce_limits()
            try:
                slot, running = self._ended.get(timeout=self._patience(until))
            except queue.Empty:
                if until is not None and time.monotonic() >= until:
                    return None
                continue
            ended = self._settle(slot, running)
            self._fill()
            if ended:
                return ended
        return None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Start nothing more and tell all jobs to save and end; ``poll`` goes on reporting them."""
        self._stopping = True
        self._waiting.clear()
        for running in self._running.values():
            _tell(running, number)

    def kill(self) -> None:
        """End all jobs now."""
        self._stopping = True
        self._waiting.clear()
        for running in self._running.values():
            _kill(running)
            if running.process:
                running.process.wait()
        self._running.clear()

    # --- one slot ---------------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while self._waiting and (free := [slot for slot in range(self.slots) if slot not in self._running]):
            job, attempts = self._waiting.popleft()
            self._start(self._place(job, free), job, attempts)

    def _place(self, job: Job, free: Sequence[int]) -> int:
        """A slot for the job: the first free one; if it runs since an earlier pool, the one with the devices that it has."""
        there = (holder(job.run_dir) or {}).get("devices") if self.devices else None
        return next((slot for slot in free if there and self.share(slot)["CUDA_VISIBLE_DEVICES"] == there), free[0])

    def _start(self, slot: int, job: Job, attempts: int) -> None:
        earlier = _stamp(job.run_dir / "result.json"), _stamp(job.run_dir / "env.json")
        running = _Running(job, attempts + 1, None, *earlier, time.monotonic())
        if not is_locked(job.run_dir):
            try:
                running.process = self._spawn(slot, job)
            except OSError as error:
                self._failed.append(Ended(job, {"status": "error", "message": f"cannot start: {error}"}, attempts + 1, slot, 0.0))
                return
        self._running[slot] = running
        self._watch(slot, running)

    def _spawn(self, slot: int, job: Job) -> subprocess.Popen[bytes]:
        (job.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        with (job.run_dir / "logs" / "stdout.log").open("ab") as log:
            return subprocess.Popen(
                job.command,
                cwd=job.cwd,
                env={**os.environ, **self.share(slot), **job.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _watch(self, slot: int, running: _Running) -> None:
        def wait() -> None:
            if running.process:
                running.process.wait()
            else:
                wait_unlocked(running.job.run_dir)
            self._ended.put((slot, running))

        threading.Thread(target=wait, daemon=True).start()

    def _settle(self, slot: int, running: _Running) -> Ended | None:
        """Book the end of a process; None if the job goes on."""
        job, process = running.job, running.process
        if process:
            kill_group(process.pid)
        fresh = _stamp(job.run_dir / "result.json") not in (None, running.earlier)
        if not fresh and is_locked(job.run_dir):  # another process was faster to take the folder: wait for that one
            running.process = None
            self._watch(slot, running)
            return None
        del self._running[slot]
        result = read_result(job.run_dir) if fresh else None
        if result is None:
            code = process.returncode if process else None
            result = without_result(code, _opened(running), job.run_dir / "logs" / "stdout.log")
        if running.timed_out:
            result |= {"status": "timeout", "message": f"ended after its {self.timeout_s:g} s"}
        elif result["status"] in RESTARTABLE and running.attempts <= self.retries and not self._stopping:
            self._waiting.appendleft((job, running.attempts))
            return None
        if running.timed_out or _stamp(job.run_dir / "result.json") is None:
            save_result(job, result)
        return Ended(job, result, running.attempts, slot, time.monotonic() - running.began)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            if self.timeout_s and now > running.began + self.timeout_s and not running.timed_out and _pid(running):
                running.timed_out = True  # not one that has ended, and waits for someone to ask
                _tell(running)
            if running.stop_at and now > running.stop_at + self.grace_s:
                _kill(running)

    def _patience(self, until: float | None) -> float | None:
        """Seconds until something has to be done even if no job ends."""
        times = [] if until is None else [until]
        for running in self._running.values():
            if running.stop_at:
                times.append(running.stop_at + self.grace_s + 0.01)
            elif self.timeout_s:
                times.append(running.began + self.timeout_s + 0.01)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def share(self, slot: int) -> dict[str, str]:
        """Environment of a slot: its devices, or its share of the threads unless the user has set one."""
        env = {}
        if self.devices:
            each = min(max(self.processes, len(self.devices) // self.slots), len(self.devices))
            mine = [self.devices[(slot * each + i) % len(self.devices)] for i in range(each)]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        threads = str(max(1, len(os.sched_getaffinity(0)) // (self.slots * self.processes)))
        return env | {name: threads for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if name not in os.environ}


def run_all(pool: JobPool, jobs: Iterable[Job], report: Callable[[Ended], None]) -> bool:
    """Run all jobs and report each as it ends; False if Ctrl-C or SIGTERM stopped them (a second Ctrl-C does not wait for saving)."""
    with stop_flag() as stop, pool:
        for job in sorted(jobs, key=lambda job: not is_locked(job.run_dir)):  # those that still run take their slots first
            pool.submit(job)
        told = False
        while len(pool):
            if stop.kind and not told:
                told = True
                pool.stop(signal.SIGINT if stop.kind == 1 else signal.SIGTERM)
            if ended := pool.poll(0.2):
                report(ended)
    return not stop.kind


def devices() -> list[str]:
    """Ids of the GPUs that a child may be given, without asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


# --- run folders -----------------------------------------------------------------------------------------------------------------


def _stamp(file: Path) -> Stamp:
    """A result that was there before the start is not this job's."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _opened(running: _Running) -> bool:
    return _stamp(running.job.run_dir / "env.json") not in (None, running.earlier_env)


def without_result(code: int | None, opened: bool, log: Path) -> dict[str, Any]:
    """What is to be said of a job that left none: ``code`` of its process, whether it opened its run folder, what it said last.

    A run that opened its folder writes a result whatever happens to it, unless it is killed.
    """
    if opened or code is None or not 0 <= code <= 128:
        status = "killed"
    else:
        status = "invalid" if code == 2 else "error"
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if not line.startswith(("srun:", "slurmstepd:"))][-1:]
    if code == 1 and said and not said[0].strip("="):  # torchrun's own last words, and its code whatever its ranks ended with
        said = [line for line in lines if line.startswith("error: ")][-1:] or said
        status = "invalid" if said[0].startswith("error: ") else status
    return {"status": status, "message": " ".join([f"ended with code {code} and no result.json;", *said])}


def save_result(job: Job, result: Mapping[str, Any]) -> None:
    """Leave ``result.json`` in place of a job that could not."""
    with suppress(OSError):  # the folder is gone or full; the caller gets the result all the same
        write_json(job.run_dir / "result.json", result)


def _pid(running: _Running) -> int | None:
    """The job's process, also if somebody else started it on this machine."""
    if running.process:
        return running.process.pid if running.process.poll() is None else None
    env = holder(running.job.run_dir)
    return int(env["pid"]) if env else None


def _tell(running: _Running, number: int = signal.SIGTERM) -> None:
    """Ask a job to save and end."""
    running.stop_at = running.stop_at or time.monotonic()
    if pid := _pid(running):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill(running: _Running) -> None:
    if pid := _pid(running):
        kill_tree(pid)
