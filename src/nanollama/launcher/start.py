"""Start what a plan asks for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import ConfigError, read_result
from ..config.compose import ROOT
from ..config.folder import check_resume, check_same, holds_run, new_folder
from . import grid, local, slurm
from .job import Launch, launches, prepare
from .outcome import exit_code
from .plan import Plan
from .script import check_path
from .status import State, alive_in, states, table


def start(plan: Plan) -> int:
    """Choose where to run, make the launch folder, and run, detach or submit; returns the exit code."""
    launcher, why = choose(plan)
    given = grid.default_folder(plan) if plan.is_grid and not plan.run_dir else plan.run_dir
    folder = Path(os.path.abspath(given)) if given else None
    check_path(folder or Path.cwd())
    numbers = _to_start(plan, folder, launcher) if folder else [0]
    if not numbers:
        print(f"{folder}: nothing to start, every run is done or under way")
        return grid.summarise(folder) if folder else 0
    fresh = None if folder else Path(os.path.abspath(new_folder(plan.name)))
    run_dir = folder or fresh
    assert run_dir is not None
    print(f"launcher: {launcher} ({why})\nrun folder: {run_dir}", flush=True)
    try:
        with prepare(plan, run_dir, numbers, launcher, why) as launch:
            if launcher == "sbatch":
                launch.note(job_id=slurm.submit(launch.script))
    except BaseException:
        if fresh:
            fresh.rmdir()
        raise
    if launcher == "sbatch":
        print(f"job: {launch.record['job_id']}" + (f", {len(numbers)} tasks" if plan.is_grid else ""))
        return _how_to_ask(run_dir)
    return _on_this_machine(plan, launch)


def choose(plan: Plan) -> tuple[str, str]:
    """``bash`` or ``sbatch``, and why."""
    asked = plan.cluster.launcher
    if asked == "bash":
        chosen = "bash", "as asked"
    else:
        there, why = slurm.answers()
        if asked == "sbatch" and not there:
            raise ConfigError(f"launcher=sbatch: {why}; use launcher=bash to run on this machine")
        chosen = ("sbatch", "as asked" if asked else why) if there else ("bash", why)
    if plan.cluster.nodes > 1 and chosen[0] == "bash":
        raise ConfigError(f"cluster.nodes = {plan.cluster.nodes}: several nodes need Slurm, and {chosen[1]}")
    if plan.cluster.nodes > 1 and not plan.cluster.torchrun:
        raise ConfigError(f"cluster.nodes = {plan.cluster.nodes} needs torchrun=True; one process cannot use several nodes")
    return chosen


def _on_this_machine(plan: Plan, launch: Launch) -> int:
    if plan.detach:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "src.nanollama.launcher.grid", str(launch.path)] if plan.is_grid else ["bash", str(launch.script)]
        pid = local.detach(launch, command, {"PYTHONPATH": path} if plan.is_grid else {})
        print(f"process: {pid}, its output in {launch.run_dir / 'logs' / 'stdout.log'}")
        return _how_to_ask(launch.run_dir)
    if plan.is_grid:
        launch.note(**local.process_record(os.getpid()))
        return grid.run(launch)
    code = local.run(launch)
    return exit_code(launch.run_dir, 3 if plan.cluster.torchrun and code == 1 else code)  # torchrun ends with 1 whatever its ranks did


def _how_to_ask(run_dir: Path) -> int:
    for verb in ("status", "cancel"):
        print(f"{verb}: python -m src.nanollama.launcher {verb} '{run_dir}'")
    return 0


def _to_start(plan: Plan, folder: Path, launcher: str) -> Sequence[int]:
    """Numbers of the runs to start in a folder that may hold earlier ones. ConfigError if it is not to be touched."""
    launched = next(iter(launches(folder)), None)
    held = launched is not None or holds_run(folder)
    check_resume(folder, held, plan.resume)
    if not held:
        return range(len(plan.tasks))
    if launched and (launched.record["tasks"] is not None) != plan.is_grid:
        raise ConfigError(f"run_dir={folder} holds {'one run' if plan.is_grid else 'a grid'}; take another run_dir")
    for number, task in enumerate(plan.tasks):
        run_dir = folder / str(number) if plan.is_grid else folder
        if holds_run(run_dir):
            check_same(plan.entry, run_dir, run_dir / "config.yaml", task.resolved)
        elif launched and read_result(run_dir) is None:  # it has not begun yet
            waiting = launched.path / "tasks" / f"{number}.yaml" if plan.is_grid else launched.path / "config.yaml"
            if waiting.is_file():
                check_same(plan.entry, run_dir, waiting, task.config)
    if not plan.is_grid:
        _refuse_if_active(states(folder))
        return [0]
    under_way = {int(Path(state.run_dir).name) for state in states(folder) if state.is_active} if launched else set()
    if launcher == "bash":  # runs that a killed pool has left go into the new one, which waits for them and counts them
        under_way &= {number for launch in launches(folder) for number in alive_in(launch) if number is not None}
    return [n for n in range(len(plan.tasks)) if n not in under_way and (read_result(folder / str(n)) or {}).get("status") != "ok"]


def _refuse_if_active(rows: list[State]) -> None:
    if any(row.is_active for row in rows):
        raise ConfigError(f"a run is under way in this folder; wait for it or cancel it\n{table(rows)}")
