"""End a launched run: the first time it is asked to save and stop, the second time it is killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from ..config import ConfigError
from ..config.folder import holder
from . import local, slurm
from .job import Launch
from .status import alive_in, launched, states


def cancel(folder: Path, wait_s: float = 10.0) -> str:
    """Cancel the run or the grid in ``folder``, or one run of a grid on Slurm; returns what was done, in words."""
    active = [state for state in states(folder) if state.is_active or state.status == "unknown"]
    if not active:
        return f"{folder}: nothing is running or waiting there"
    tasks, known = launched(folder)
    if not known:
        raise ConfigError(f"{folder}: this run was not started by the launcher; stop it where it was started")
    found = [launch for launch in known if alive_in(launch)]
    if any(launch.record["launcher"] == "bash" and launch.record["host"] != socket.gethostname() for launch in found):
        raise ConfigError(f"{folder}: it was started on {found[0].record['host']}; cancel it there")
    task = int(folder.name) if tasks is not None and known[0].run_dir != folder else None
    again = (folder / ".cancelled").exists()
    for launch in found:
        (_cancel_job if launch.record["launcher"] == "sbatch" else _cancel_process)(launch, task, again)
    for state in active if not found else ():
        again = _cancel_orphan(Path(state.run_dir))
    for run_dir in {Path(state.run_dir) for state in active if Path(state.run_dir).is_dir()} | ({folder} if folder.is_dir() else set()):
        (run_dir / ".cancelled").touch()  # a batch script does not ask Slurm to start it again
    return _wait(folder, wait_s, again)


def _cancel_process(launch: Launch, task: int | None, again: bool) -> None:
    if task is not None:
        raise ConfigError(f"{launch.run_dir / str(task)} is one run of a local grid; cancel the grid: {launch.run_dir}")
    if again:
        local.kill_tree(launch.record["pid"])
    else:
        os.kill(launch.record["pid"], signal.SIGINT)


def _cancel_orphan(run_dir: Path) -> bool:
    """End a run whose pool, torchrun or shell was killed before it; returns whether it was told to save before."""
    env = holder(run_dir)
    if env is None:
        raise ConfigError(f"{run_dir}: the process that runs there is not on this machine; cancel it where it is")
    told = run_dir / ".cancelled"
    again = told.exists() and told.stat().st_mtime > (run_dir / "env.json").stat().st_mtime
    if again:
        local.kill_tree(env["pid"])
    else:
        os.kill(env["pid"], signal.SIGINT)
    return again


def _cancel_job(launch: Launch, task: int | None, again: bool) -> None:
    """Tell what runs, cancel what waits."""
    job = launch.record["job_id"]
    for number, state in alive_in(launch).items():
        if task in (None, number):
            slurm.cancel(job, number, signal="INT" if state == "RUNNING" and not again else None)


def _wait(folder: Path, wait_s: float, again: bool) -> str:
    until = time.monotonic() + wait_s
    while True:
        left = [state for state in states(folder) if state.is_active]
        if not left:
            return f"{folder}: {'killed' if again else 'cancelled'}"
        if time.monotonic() > until:
            return f"{folder}: told to save and stop, {len(left)} still at it; cancel again to kill"
        time.sleep(0.2)
