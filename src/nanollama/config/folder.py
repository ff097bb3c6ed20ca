"""A run folder: what was asked (``config.yaml``, ``env.json``), one writer at a time (``.lock``), how it ended (``result.json``)."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from .as_yaml import to_yaml
from .atomic import write_json, write_text
from .compose import ROOT, Entry, as_dict, flatten
from .errors import ConfigError
from .secret import without_passwords

STATUSES = ("ok", "nan", "oom", "invalid", "timeout", "killed", "error", "interrupted", "requeue")
RESUME = ("auto", "never", "must")
MADE = ("checkpoints", "trials")  # folders in which a run keeps what it would be a pity to lose
SNAPSHOT = ".snapshot.json"  # in the root of a code snapshot: where it came from
PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "pydantic", "numba", "botorch", "gpytorch", "optuna", "tensorboard", "wandb")


def read_result(run_dir: Path | str) -> dict[str, Any] | None:
    """How a run ended; None while it has not, where its folder is not there, or where a damaged file does not say."""
    try:
        result = json.loads((Path(run_dir) / "result.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return result if isinstance(result, dict) and "status" in result else None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a run's ``config.yaml`` holds, as it was written. Raises ConfigError if the file does not hold one."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not readable: it holds no mapping of keys to values")
    return values


def slug(name: str) -> str:
    """``name`` as part of a file name: letters, digits, dots, dashes; never a path of its own."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def new_folder(name: str, root: Path | None = None) -> Path:
    """Make ``runs/<name>-<date>-<time>-<4 hex>``; unique also when many start within a second."""
    root = root or Path("runs")
    while True:
        path = root / f"{slug(name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot make the run folder {path}: {error.strerror}; give a writable place with run_dir=PATH") from error


@dataclass
class RunFolder:
    """An open run folder, locked against a second writer. ``resumed``: it held this config before."""

    path: Path
    resumed: bool = False
    summary: dict[str, Any] = field(default_factory=dict)  # what is known so far; goes to result.json however the run ends
    _lock: IO[str] | None = None

    def finish(self, status: str, **values: Any) -> None:
        """Write ``result.json``, the last thing a run does, also a failed one."""
        assert status in STATUSES, status
        write_json(self.path / "result.json", {"status": status, **self.summary, **values})

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None


def open_folder(entry: Entry, cfg: Any, argv: Sequence[str], resume: str = "auto") -> RunFolder:
    """Make the run's folder, or take up the one that ``run_dir`` names, and write down what was asked before anything is built.

    Raises ConfigError if another process is writing there, the folder belongs to another config, or ``resume`` forbids it.
    """
    asked = as_dict(cfg)
    given = asked.pop("run_dir", None)
    path = Path(given).expanduser() if given else new_folder(asked.get("name") or entry.name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "logs").mkdir(exist_ok=True)
        lock = (path / ".lock").open("a")
    except OSError as error:
        raise ConfigError(f"run_dir={path}: cannot write there: {error.strerror}") from error
    if not _lock(lock):
        lock.close()
        raise ConfigError(f"run_dir={path}: another process is running in this folder; wait for it or take another run_dir")
    known = path / "config.yaml"
    resumed = holds_run(path)
    try:
        check_resume(path, resumed, resume)
        if resumed:
            check_same(entry, path, known, asked)
        write_text(known, to_yaml({**asked, "run_dir": None}))
        write_json(path / "env.json", environment(argv))
        (path / "result.json").unlink(missing_ok=True)
    except OSError as error:
        lock.close()
        raise ConfigError(f"run_dir={path}: cannot write there: {error.strerror}") from error
    except ConfigError:
        lock.close()
        raise
    return RunFolder(path, resumed, _lock=lock)


def holds_run(path: Path) -> bool:
    """Whether a run was begun in the folder. One that was refused as ``invalid`` before it made anything leaves it free for another."""
    refused = (read_result(path) or {}).get("status") == "invalid"
    return (path / "config.yaml").is_file() and not (refused and not any(any(path.glob(f"{made}/*")) for made in MADE))


def check_resume(path: Path, held: bool, resume: str) -> None:
    """Whether a folder that holds a run already, or none, may be used: ``auto`` continues, ``never`` and ``must`` insist."""
    if resume not in RESUME:
        raise ConfigError(f"command line: resume={resume}: must be one of {', '.join(RESUME)}")
    if held and resume == "never":
        raise ConfigError(f"resume=never: run_dir={path} holds a run already; take another run_dir, or resume=auto to continue it")
    if not held and resume == "must":
        raise ConfigError(f"resume=must: run_dir={path} holds no run to continue; check the path, or use resume=auto to start one")


def _lock(file: IO[str]) -> bool:
    for _ in range(10):  # who asks ``is_locked`` holds it for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def is_locked(path: Path) -> bool:
    """Whether a process is running in the folder ``path``."""
    try:
        with (path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def holder(path: Path) -> dict[str, Any] | None:
    """What the process that runs in the folder ``path`` wrote to ``env.json``; None if none does, or it is on another machine."""
    try:
        env = json.loads((path / "env.json").read_text())
    except (OSError, ValueError):
        return None
    return env if env.get("host") == socket.gethostname() and is_locked(path) else None


def wait_unlocked(path: Path) -> None:
    """Return when no process is running in the folder ``path`` any more."""
    with (path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def check_same(entry: Entry, path: Path, known: Path, asked: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the config ``known`` of the run folder ``path`` is like ``asked`` in all that a resumed run must keep."""
    before = flatten(read_yaml(known))
    now = flatten(asked)
    volatile = ("run_dir", "name", "cluster", *entry.volatile)
    differ = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == v or key.startswith(v + ".") for v in volatile)
    ]
    if differ:
        shown = ", ".join(f"{key} ({before.get(key)} there, {now.get(key)} asked)" for key in differ[:3])
        raise ConfigError(f"run_dir={path} holds a run of another config: {shown}; take another run_dir, or the old values to resume it")


def environment(argv: Sequence[str]) -> dict[str, Any]:
    """Provenance: command, code, packages, machine."""
    from importlib.metadata import PackageNotFoundError, version

    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "argv": [sys.argv[0], *map(without_passwords, argv)],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cwd": str(Path.cwd()),
        **git_state(),
        "python": platform.python_version(),
        "packages": packages,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "pid": os.getpid(),
    }


def git_state() -> dict[str, Any]:
    """Commit of the code and whether tracked files differ from it; None outside a git checkout. A snapshot remembers its origin."""
    if (ROOT / SNAPSHOT).is_file():
        return json.loads((ROOT / SNAPSHOT).read_text())

    def git(*args: str) -> str | None:
        try:
            out = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return out.stdout.strip() if out.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
