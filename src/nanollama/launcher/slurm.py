"""The few questions that the launcher asks Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from ..config import ConfigError


def _ask(*command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    # A job that submits jobs must not hand its own allocation on to them.
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"Slurm does not answer: {command[0]}: {type(error).__name__}") from error


def answers() -> tuple[bool, str]:
    """Whether Slurm can be used from here, and how that is known."""
    if shutil.which("sbatch") is None:
        return False, "sbatch is not installed here"
    try:
        out = _ask("sinfo", "--noheader", "--format=%P", timeout=5)
    except ConfigError as error:
        return False, str(error)
    if out.returncode:
        return False, f"Slurm does not answer: {out.stderr.strip().splitlines()[-1] if out.stderr.strip() else 'sinfo failed'}"
    return True, f"Slurm answers, partitions {', '.join(name.rstrip('*') for name in out.stdout.split())}"


def submit(script: Path) -> str:
    """Queue a batch script; returns the job's id. ConfigError with Slurm's own words if it refuses."""
    out = _ask("sbatch", "--parsable", str(script))
    if out.returncode:
        raise ConfigError(f"sbatch refused the job: {' '.join(out.stderr.split())}")
    return out.stdout.strip().partition(";")[0]


def states(job_id: str) -> dict[int | None, str]:
    """Array index (None for a plain job) -> state, such as PENDING or RUNNING, of what is still in the queue.

    Raises ConfigError if Slurm cannot be asked.
    """
    rows = _queue("--array", f"--jobs={job_id}", "--format=%K %T")
    return {int(index) if index.isdigit() else None: state for index, state in rows}


def mine() -> dict[str, tuple[str, str]]:
    """Job id -> (state, batch script) of this user's jobs that are still in the queue. Raises ConfigError if Slurm cannot be asked."""
    return {job: (state, " ".join(script)) for job, state, *script in _queue("--me", "--format=%A %T %o")}


def _queue(*options: str) -> list[list[str]]:
    """The rows that squeue prints, each split into as many words as its format has; the last may hold blanks."""
    out = _ask("squeue", "--noheader", *options)
    if out.returncode and "Invalid job id" not in out.stderr:
        raise ConfigError(f"cannot ask Slurm for its queue: {' '.join(out.stderr.split())}")
    return [line.split(maxsplit=options[-1].count(" ")) for line in out.stdout.splitlines()]


def cancel(job_id: str, task: int | None = None, signal: str | None = None) -> None:
    """Cancel a job or one element of its array; with ``signal``, only tell its processes."""
    name = job_id if task is None else f"{job_id}_{task}"
    out = _ask("scancel", *([f"--signal={signal}"] if signal else []), name)
    if out.returncode:
        raise ConfigError(f"scancel {name}: {' '.join(out.stderr.split())}")
