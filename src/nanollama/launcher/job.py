"""What one launch writes down, in a folder of its own below the run's (or the grid's): ``RUN/launch/<k>/``.

``run.sh``, the config that it starts from (``config.yaml``, or ``tasks/<n>.yaml`` of a grid), ``code/`` (the snapshot), ``git.diff``,
``launch.json`` (the exact command, where and when, environment, and the process or job that runs it). A later launch in the same run
folder gets the next number and never touches an earlier one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, write_json
from ..config.as_yaml import composable
from ..config.compose import as_dict
from ..config.folder import environment
from . import script, snapshot
from .plan import Plan

# Of the environment only what steers a run; never the rest, which may hold secrets.
VARIABLES = re.compile(r"(OMP|MKL|NUMBA|CUDA|NCCL|GLOO|TORCH|PYTHON|SLURM|SBATCH|HF_HOME|LD_LIBRARY_PATH|WANDB_MODE|WANDB_PROJECT)")


@dataclass(frozen=True)
class Launch:
    """One launch folder: ``record`` is its ``launch.json``."""

    path: Path
    record: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        """The run's folder, or the grid's."""
        return self.path.parent.parent

    @property
    def script(self) -> Path:
        return self.path / "run.sh"

    def note(self, **values: Any) -> None:
        """Add to ``launch.json``."""
        self.record.update(values)
        write_json(self.path / "launch.json", self.record)


def launches(run_dir: Path) -> list[Launch]:
    """All launches in a folder, the newest first. Raises ConfigError for a damaged ``launch.json``."""
    numbers = sorted((int(p.name) for p in (run_dir / "launch").glob("*") if p.name.isdigit()), reverse=True)
    files = [run_dir / "launch" / str(number) / "launch.json" for number in numbers]
    return [Launch(file.parent, _record(file)) for file in files if file.is_file()]


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
        if "launcher" in record:
            return record
    except (ValueError, TypeError):
        pass
    raise ConfigError(f"{file} is damaged: it does not say what was launched; remove {file.parent} to go on without it")


@contextmanager
def prepare(plan: Plan, run_dir: Path, numbers: Sequence[int], launcher: str, why: str) -> Iterator[Launch]:
    """Write everything that a launch needs; if that or its submission fails, leave the folder as it was found.

    ``numbers``: of ``plan.tasks``, those to start now. Raises ConfigError when the folder cannot be written.
    """
    found = run_dir.exists()
    path: Path | None = None
    try:
        path = next_folder(run_dir)
        yield _write(plan, run_dir, path, numbers, launcher, why)
    except BaseException as error:
        if path:
            for name in (path / "previous").glob("*.json"):
                os.replace(name, _task_dir(plan, run_dir, int(name.stem)) / "result.json")
            shutil.rmtree(path, ignore_errors=True)
        if not found:
            shutil.rmtree(run_dir, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConfigError(f"run_dir={run_dir}: cannot write there: {error.strerror}; give another place with run_dir=PATH") from error
        raise


def next_folder(run_dir: Path) -> Path:
    """Make ``RUN/launch/<k>`` with the next number, and the folder of the logs."""
    parent = run_dir / "launch"
    parent.mkdir(parents=True, exist_ok=True)
    (run_dir / "logs").mkdir(exist_ok=True)
    (parent / ".gitignore").write_text("*\n")  # so that a run folder inside the project never gets into a snapshot
    while True:
        path = parent / str(max((int(p.name) for p in parent.glob("*") if p.name.isdigit()), default=-1) + 1)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue


def _write(plan: Plan, run_dir: Path, path: Path, numbers: Sequence[int], launcher: str, why: str) -> Launch:
    left_out = snapshot.take(path / "code")
    module = sys.modules[plan.script].__file__
    snapshot.check_contains(path / "code", plan.script, Path(module or ""))
    diff = snapshot.diff()
    if diff:
        (path / "git.diff").write_bytes(diff)
    for number in numbers:
        target = path / "tasks" / f"{number}.yaml" if plan.is_grid else path / "config.yaml"
        target.parent.mkdir(exist_ok=True)
        task_dir = _task_dir(plan, run_dir, number)
        target.write_text(composable({**plan.tasks[number].config, "run_dir": str(task_dir)}))
        if (task_dir / "result.json").exists():  # of an earlier launch: status must not take it for this one's
            (path / "previous").mkdir(exist_ok=True)
            os.replace(task_dir / "result.json", path / "previous" / f"{number}.json")
        (task_dir / ".cancelled").unlink(missing_ok=True)
    (run_dir / ".cancelled").unlink(missing_ok=True)
    tasks = tuple(numbers) if plan.is_grid else None
    spec = script.Script(plan.script, plan.cluster, run_dir, path, Path.cwd(), plan.name, tasks)
    (path / "run.sh").write_text(script.text(spec, batch=launcher == "sbatch"))
    launch = Launch(path, {})
    launch.note(
        command=[sys.executable, "-m", "src.nanollama.launcher", *plan.argv],
        launcher=launcher,
        why=why,
        module=plan.script,
        cluster=as_dict(plan.cluster),
        tasks={str(n): plan.tasks[n].label for n in range(len(plan.tasks))} if plan.is_grid else None,
        started=list(numbers),
        left_out_of_snapshot=left_out,
        variables={key: value for key, value in sorted(os.environ.items()) if VARIABLES.match(key)},
        **{key: value for key, value in environment(plan.argv).items() if key not in ("argv", "pid")},
    )
    return launch


def _task_dir(plan: Plan, run_dir: Path, number: int) -> Path:
    return run_dir / str(number) if plan.is_grid else run_dir
