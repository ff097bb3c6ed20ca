"""End a launched run: the first time it is asked to save and stop, the second time it is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from ..config import ConfigError
from . import local, slurm
from .job import Launch, last
from .status import State, states


def cancel(folder: Path, wait_s: float = 10.0) -> str:
    """Cancel the run or the grid in ``folder``, or one run of a grid on Slurm; returns what was done, in words."""
    active = [state for state in states(folder) if state.is_active]
    if not active:
        return f"{folder}: nothing is running or waiting there"
    launch, task = last(folder), None
    if launch is None:
        launch, task = last(folder.parent), folder.name
    if launch is None:
        raise ConfigError(f"{folder}: this run was not started by the launcher; stop it where it was started")
    again = (folder / ".cancelled").exists()
    if launch.record["launcher"] == "sbatch":
        _cancel_job(launch, active, again, int(task) if task is not None else None)
    elif task is not None:
        raise ConfigError(f"{folder} is one run of a local grid; cancel the grid: {launch.run_dir}")
    elif again:
        local.kill_tree(launch.record["pid"])
    else:
        os.kill(launch.record["pid"], signal.SIGINT)
    for state in active:
        if Path(state.run_dir).is_dir():
            (Path(state.run_dir) / ".cancelled").touch()  # a batch script does not ask Slurm to start it again
    (folder / ".cancelled").touch()
    return _wait(folder, wait_s, again)


def _cancel_job(launch: Launch, active: list[State], again: bool, task: int | None) -> None:
    job = launch.record["job_id"]
    if again or not any(state.status == "running" for state in active):
        return slurm.cancel(job, task)
    for number, state in slurm.states(job).items():
        if task in (None, number):
            slurm.cancel(job, number, signal="INT" if state == "RUNNING" else None)


def _wait(folder: Path, wait_s: float, again: bool) -> str:
    until = time.monotonic() + wait_s
    while True:
        left = [state for state in states(folder) if state.is_active]
        if not left:
            return f"{folder}: {'killed' if again else 'cancelled'}"
        if time.monotonic() > until:
            return f"{folder}: told to save and stop, {len(left)} still at it; cancel again to kill"
        time.sleep(0.2)
