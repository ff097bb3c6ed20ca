"""Several runs from one command: the launcher's grids, and Hydra multiruns in the pool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from src.nanollama.config import ConfigError, read_result
from src.nanollama.config.compose import ROOT
from src.nanollama.config.folder import is_locked
from src.nanollama.config.main import entry_of
from src.nanollama.launcher.__main__ import main as launcher
from src.nanollama.launcher.job import launches
from src.nanollama.launcher.status import states
from src.nanollama.launcher.tasks import compose_tasks

MODULE = "tests.nanollama.launcher.toy"


def wait_for(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def grid_file(tmp_path):
    def write(**sections):
        file = tmp_path / "grid.yaml"
        file.write_text(json.dumps({"cluster": {"script": MODULE, "launcher": "bash", "slots": 2}, **sections}))
        return str(file)

    return write


def test_grid_points_are_the_product_and_each_is_composed(grid_file):
    file = grid_file(grid={"text": ["a", "b"], "data": {"batch_size": [2, 4]}})
    tasks, _ = compose_tasks(entry_of(MODULE), [file, "steps=3,5"], sweep=True)
    points = [(t.config["steps"], t.config["text"], t.config["data"]["batch_size"]) for t in tasks]
    assert points == [(s, t, b) for s in (3, 5) for t in "ab" for b in (2, 4)]
    assert tasks[1].label == "steps=3 text=a data.batch_size=4"


def test_the_command_line_goes_before_the_grid_of_the_file(grid_file):
    file = grid_file(grid={"text": ["a", "b"], "data": {"batch_size": [2, 4]}})
    for argv, sweep, points in (
        (["text=c"], False, [("c", 2), ("c", 4)]),
        (["text=c,d", "data.batch_size=8"], True, [("c", 8), ("d", 8)]),
        (["text=c", "data.batch_size=8"], False, [("c", 8)]),
    ):
        tasks, _ = compose_tasks(entry_of(MODULE), [file, *argv], sweep=sweep)
        assert [(t.config["text"], t.config["data"]["batch_size"]) for t in tasks] == points


def test_sweep_values_mean_what_they_mean_in_a_single_run(grid_file):
    """The launcher composes a grid's runs in a shorter way than Hydra; the result must be the same."""
    from src.nanollama.config.compose import as_dict, compose

    entry = entry_of(MODULE)
    overrides = ["text='1e-3',a b,'[x]'", "step_s=1e-3,2", "+cluster.env.A='1'"]
    tasks, _ = compose_tasks(entry, overrides, sweep=True)
    singles = [["text='1e-3'", "step_s=1e-3"], ["text='1e-3'", "step_s=2"], ["text=a b", "step_s=1e-3"]]
    for task, single in zip(tasks, singles, strict=False):
        alone = as_dict(compose(entry, [*single, "+cluster.env.A='1'"]))
        assert {**task.resolved, "run_dir": None} == alone


@pytest.mark.parametrize(
    "grid, message",
    [
        ({"txet": ["a"]}, "did you mean text?"),
        ({"text": "a"}, "give a list of values"),
        ({"text": []}, "give a list of values"),
        ([1], "must map keys to lists"),
        ({"steps": [1, -1]}, "steps = -1"),
        ({"steps": [1, 2, 3], "text": ["a", "b", "c"]}, "more than 8 runs"),
    ],
)
def test_bad_grids(grid_file, tmp_path, monkeypatch, capsys, grid, message):
    monkeypatch.setattr("src.nanollama.launcher.tasks.MAX_TASKS", 8)
    file = grid_file(grid=grid)
    monkeypatch.chdir(tmp_path)
    assert launcher([file]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["grid.yaml"]


def test_a_grid_is_refused_by_the_command_itself(grid_file):
    from src.nanollama.config.compose import compose

    with pytest.raises(ConfigError, match=r"python -m src\.nanollama\.launcher"):
        compose(entry_of(MODULE), [grid_file(grid={"text": ["a"]})])


def test_one_failure_stops_no_other_and_only_the_missing_start_again(grid_file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    file = grid_file(grid={"text": ["a", "bb"], "end": ["ok", "raise"]})
    assert launcher([file]) == 3
    out = capfd.readouterr().out
    assert "4 runs, 2 at a time" in out and "4 runs: 2 ok, 2 error" in out and "RuntimeError: told to raise" in out
    (folder,) = (tmp_path / "runs").iterdir()
    before = (folder / "0/result.json").stat().st_mtime_ns
    assert launcher([file]) == 3  # the same command finds its folder
    assert "2 runs, 2 at a time" in capfd.readouterr().out
    assert (folder / "0/result.json").stat().st_mtime_ns == before
    assert read_result(folder / "2")["text"] == "bb" and json.loads((folder / "summary.json").read_text())["runs"][3]["status"] == "error"
    assert launcher(["status", str(folder / "1")]) == 0
    assert "text=a end=raise" in capfd.readouterr().out
    assert launcher([file, "end=ok", f"run_dir={folder}", "resume=never"]) == 2


def test_nothing_missing(grid_file, tmp_path, capfd):
    file = grid_file(grid={"text": ["a"]})
    assert launcher([file, f"run_dir={tmp_path}/g"]) == 0
    assert launcher([file, f"run_dir={tmp_path}/g"]) == 0
    assert "nothing to start" in capfd.readouterr().out and not (tmp_path / "g/launch/1").exists()
    file = grid_file(grid={"text": ["b"]})
    assert launcher([file, f"run_dir={tmp_path}/g"]) == 2
    assert "another config" in capfd.readouterr().err


def test_detached_grid_is_cancelled_and_taken_up_again(grid_file, tmp_path, capfd):
    command = [grid_file(), "-m", "text=a,b,c", "step_s=0.01", f"run_dir={tmp_path}/g"]
    assert launcher([*command, "steps=3000", "detach=True"]) == 0
    wait_for(lambda: (tmp_path / "g/0/checkpoint").exists() and (tmp_path / "g/1/checkpoint").exists())
    launcher(["status", str(tmp_path / "g")])
    assert "2 running, 1 waiting" in capfd.readouterr().out
    assert launcher([*command, "steps=3000"]) == 0  # all under way already
    assert "nothing to start" in capfd.readouterr().out
    launcher(["cancel", str(tmp_path / "g")])
    launcher(["status", str(tmp_path / "g")])
    assert "3 runs: 2 interrupted, 1 missing" in capfd.readouterr().out
    assert launcher([*command, "steps=1"]) == 0
    assert "3 runs: 3 ok" in capfd.readouterr().out


def test_runs_that_a_killed_grid_has_left(grid_file, tmp_path, capfd, monkeypatch):
    """They keep their devices and count as slots of the next one, and can be cancelled without it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    command = [grid_file(), "-m", "text=a,b,c", "step_s=0.01", "steps=3000", "cluster.slots=2", f"run_dir={tmp_path}/g"]

    def begun(number):
        wait_for(lambda: is_locked(tmp_path / f"g/{number}") and (tmp_path / f"g/{number}/checkpoint").exists())

    def kill_grid():
        process = launches(tmp_path / "g")[0].record["pid"]
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE)

    assert launcher([*command, "detach=True"]) == 0
    begun(0)
    begun(1)
    kill_grid()
    pid = json.loads((tmp_path / "g/0/env.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_locked(tmp_path / "g/0"))
    assert launcher([*command, "detach=True"]) == 0  # run 1 goes on, so of runs 0 and 2 one waits
    begun(0)
    assert [json.loads((tmp_path / f"g/{n}/env.json").read_text())["devices"] for n in (0, 1)] == ["5", "6"]
    assert [state.status for state in states(tmp_path / "g")] == ["running", "running", "waiting"]
    kill_grid()
    capfd.readouterr()
    assert launcher(["cancel", str(tmp_path / "g/1")]) == 0
    assert [state.status for state in states(tmp_path / "g")] == ["running", "interrupted", "missing"]
    assert launcher(["cancel", str(tmp_path / "g")]) == 0
    assert [state.status for state in states(tmp_path / "g")] == ["interrupted", "interrupted", "missing"]


# --- hydra/launcher=pool ---------------------------------------------------------------------------------------------------------


def multirun(*argv, **options):
    command = [sys.executable, "-m", MODULE, "-m", "hydra/launcher=pool", *map(str, argv)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def test_multirun_in_the_pool(tmp_path):
    sweep = ["text=a", "end=ok,raise,kill_once", f"run_dir={tmp_path}/g", "hydra.launcher.slots=2"]
    process = multirun(*sweep)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3, out
    assert [read_result(tmp_path / f"g/{n}")["status"] for n in range(3)] == ["ok", "error", "ok"]
    assert "2: ok  loss 1.0000  text=a end=kill_once  (started 2 times)" in out
    process = multirun(*sweep)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3 and [line[:8] for line in out.splitlines() if line[1:2] == ":"] == ["1: error"]
    process = multirun("text=b,a", f"run_dir={tmp_path}/g")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "another config" in out


def test_ctrl_c_of_a_multirun_ends_its_jobs(tmp_path):
    process = multirun("text=a,b", f"run_dir={tmp_path}/g", "steps=3000", "step_s=0.01", "hydra.launcher.slots=1")
    wait_for((tmp_path / "g/0/checkpoint").exists)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert read_result(tmp_path / "g/0")["status"] == "interrupted" and not (tmp_path / "g/1").exists()
    pid = json.loads((tmp_path / "g/0/env.json").read_text())["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
