"""A bounded number of jobs on Slurm, with the face of ``pool.Pool``.

    with SlurmPool(slots=16, folder=Path("runs/sweep"), cluster=cluster) as pool:
        pool.submit(Job(command, run_dir))

Each start of a job is a Slurm job with a script of its own, ``RUN/launch/<k>/run.sh``, and its id in ``launch.json`` beside it: who comes
after a pool that died finds the job in the queue and waits for it. All jobs of a pool import the same snapshot of the code. How a job
ended is in its ``result.json``; Slurm only says whether it is still to be expected.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..config import ConfigError, read_result
from ..config.schema import ClusterConfig
from . import script, slurm, snapshot
from .job import Launch, launches, next_folder
from .outcome import RESTARTABLE
from .pool import Ended, Job, save_result, without_result

log = logging.getLogger("nanollama")

LOOK_S, ASK_S = 0.2, 5.0  # seconds between two looks for results, and between two questions to Slurm, whose queue others ask too
GONE = 2  # answers without a job until it counts as gone: a shared file system may show its result a little later
REFUSED_S = 30.0  # seconds after which a job is submitted again that Slurm refused although it took others


@dataclass
class _Submitted:
    job: Job
    attempts: int
    launch: Launch
    since: float  # when it was submitted, or first seen running
    state: str = "PENDING"
    missing: int = 0  # answers of Slurm without it
    stop_at: float | None = None  # when it was told to end
    timed_out: bool = False

    @property
    def id(self) -> str:
        return str(self.launch.record["job_id"])


class SlurmPool:
    """``slots`` jobs ``python -m MODULE ...`` at a time, each a Slurm job on one node with the ``cluster`` settings, torchrun included.

    ``folder``: where the snapshot of the code goes. ``timeout_s`` bounds each start of a job from when it runs; Slurm's own limit
    (``cluster.time``) makes it save, and go on in the queue. ``retries`` and ``grace_s`` as for ``Pool``. Raises ConfigError where
    Slurm does not answer.
    """

    def __init__(
        self,
        slots: int,
        folder: Path,
        cluster: ClusterConfig,
        *,
        timeout_s: float | None = None,
        retries: int = 2,
        grace_s: float = 30.0,
    ) -> None:
        there, why = slurm.answers()
        if not there:
            raise ConfigError(f"jobs are to run on Slurm, but {why}")
        if cluster.nodes > 1:
            raise ConfigError(f"cluster.nodes = {cluster.nodes}: each job of a pool runs on one node; cluster.nproc is for processes there")
        self.folder = Path(os.path.abspath(folder))
        script.check_path(self.folder)
        self.slots, self.cluster, self.timeout_s, self.retries, self.grace_s = slots, cluster, timeout_s, retries, grace_s
        self._waiting: deque[tuple[Job, int]] = deque()  # with the number of starts so far
        self._running: list[_Submitted] = []
        self._asked = self._refused = float("-inf")
        self._accepted = self._stopping = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __len__(self) -> int:
        """Jobs not yet reported by ``poll``."""
        return len(self._waiting) + len(self._running)

    def submit(self, job: Job) -> None:
        """Hand a job to Slurm as soon as a slot is free; one that an earlier pool has left in the queue is waited for.

        Raises ConfigError if Slurm refuses the first job of all.
        """
        launch = _in_queue(job)
        if launch:
            self._running.append(_Submitted(job, 0, launch, time.monotonic()))
        else:
            self._waiting.append((job, 0))
            self._fill()

    def poll(self, wait_s: float | None = None) -> Ended | None:
        """The next job that has ended; None if none did within ``wait_s`` seconds (None: wait for one) or none is left."""
        until = None if wait_s is None else time.monotonic() + wait_s
        while len(self):
            self._fill()
            self._ask()
            for one in [*self._running]:
                if ended := self._settle(one):
                    return ended
            if until is not None and time.monotonic() >= until:
                return None
            time.sleep(LOOK_S)
        return None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Submit nothing more, cancel what waits in the queue and tell what runs to save and end; ``poll`` goes on reporting."""
        self._stopping = True
        self._waiting.clear()
        self._ask(now=True)
        for one in self._running:
            self._tell(one, signal.Signals(number).name.removeprefix("SIG"))

    def kill(self) -> None:
        """Cancel all jobs."""
        self._stopping = True
        self._waiting.clear()
        for one in self._running:
            self._cancel(one)
        self._running.clear()

    # --- one job ----------------------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.slots and time.monotonic() > self._refused + REFUSED_S:
            job, attempts = self._waiting[0]
            try:
                launch = _in_queue(job) or self._start(job)
            except ConfigError as error:
                if not self._accepted:
                    raise
                log.warning("%s; it is submitted again in %.0f s", error, REFUSED_S)
                self._refused = time.monotonic()
                return
            self._accepted = True
            self._waiting.popleft()
            self._running.append(_Submitted(job, attempts + 1, launch, time.monotonic()))

    def _start(self, job: Job) -> Launch:
        """Write the job's script and queue it. Its id comes after its script, by which it is found if this process dies in between."""
        newest, run_dir = _newest(job), Path(os.path.abspath(job.run_dir))
        path = newest.path if newest and "job_id" not in newest.record else next_folder(run_dir)
        cluster = replace(self.cluster, env={**self.cluster.env, **job.env})
        name = f"{self.folder.name}-{run_dir.name}"
        command = script.ranked(job.command, cluster)
        spec = script.Script("", cluster, run_dir, path, job.cwd or Path.cwd(), name, command=command, snapshot=self._code)
        (path / "run.sh").write_text(script.text(spec, batch=True))
        for old in ("result.json", ".cancelled"):
            (job.run_dir / old).unlink(missing_ok=True)
        launch = Launch(path, {})
        launch.note(launcher="sbatch", command=list(command), cluster=asdict(cluster), tasks=None, started=[0])
        launch.note(job_id=slurm.submit(launch.script))
        return launch

    @cached_property
    def _code(self) -> Path:
        code = next_folder(self.folder) / "code"
        snapshot.take(code)
        return code

    def _settle(self, one: _Submitted) -> Ended | None:
        """Book the end of a job; None if it goes on."""
        job, result = one.job, read_result(one.job.run_dir)
        over = result is not None and (result["status"] not in RESTARTABLE or one.stop_at is not None)  # else Slurm may start it again
        if not over and one.missing < GONE:
            return None
        self._running.remove(one)
        found = result or _without_result(one)
        if one.timed_out:
            found |= {"status": "timeout", "message": f"ended after its {self.timeout_s:g} s"}
        elif found["status"] in RESTARTABLE and one.attempts <= self.retries and not self._stopping:
            self._waiting.appendleft((job, one.attempts))
            return None
        if one.timed_out or result is None:
            save_result(job, found)
        return Ended(job, found, one.attempts, 0, time.monotonic() - one.since)

    def _ask(self, now: bool = False) -> None:
        """Learn from Slurm what is in its queue, and end what has had its time."""
        if not self._running or (time.monotonic() < self._asked + ASK_S and not now):
            return
        self._asked = time.monotonic()
        try:
            queue = slurm.mine()
        except ConfigError as error:  # it may be restarting; its jobs go on meanwhile
            log.warning("%s", error)
            return
        for one in self._running:
            _note(one, queue)
            late = self.timeout_s and one.state == "RUNNING" and self._asked > one.since + self.timeout_s
            if late and not one.timed_out and not one.missing:
                one.timed_out = True
                self._tell(one, "TERM")
            if one.stop_at and self._asked > one.stop_at + self.grace_s:
                self._cancel(one)

    def _tell(self, one: _Submitted, name: str) -> None:
        """Ask a job to save and end, or take it out of the queue."""
        one.stop_at = one.stop_at or time.monotonic()
        if one.state == "RUNNING":
            self._cancel(one, name)
        else:
            self._cancel(one)
            one.missing = GONE

    def _cancel(self, one: _Submitted, name: str | None = None) -> None:
        with suppress(OSError):
            (one.job.run_dir / ".cancelled").touch()  # its script does not ask Slurm to start it again
        try:
            slurm.cancel(one.id, signal=name)
        except ConfigError as error:  # it has just ended
            log.debug("%s", error)


def _newest(job: Job) -> Launch | None:
    found = (launch for launch in launches(Path(os.path.abspath(job.run_dir))) if launch.record["launcher"] == "sbatch")
    return next(found, None)


def _in_queue(job: Job) -> Launch | None:
    """The newest launch in the job's folder if Slurm still has its job."""
    newest = _newest(job)
    if newest is None:
        return None
    queue = slurm.mine()
    if "job_id" not in newest.record:
        known = [number for number, (_, path) in queue.items() if path == str(newest.script)]
        if not known:
            return None
        newest.note(job_id=known[0])
    return newest if newest.record["job_id"] in queue else None


def _note(one: _Submitted, queue: Mapping[str, tuple[str, str]]) -> None:
    if one.id not in queue:
        one.missing += 1
        return
    state, one.missing = queue[one.id][0], 0
    if state == "RUNNING" and one.state != "RUNNING":
        one.since = time.monotonic()
    one.state = state


def _without_result(one: _Submitted) -> dict[str, Any]:
    file, run_dir = one.launch.path / "exit_code", one.job.run_dir
    code = int(file.read_text()) if file.is_file() else None
    try:
        opened = json.loads((run_dir / "env.json").read_text()).get("slurm_job_id") == one.id
    except FileNotFoundError:
        opened = False
    return without_result(code, opened, run_dir / "logs" / f"slurm-{one.id}.out")
