"""The sweep as its users meet it: one command, resumed, and with wrong input. Trials are simulated."""

import inspect
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import prepare

from src.apps.mixbo.build import build, suggesting
from src.apps.mixbo.config import SWEEP, identity
from src.apps.mixbo.controller import Controller, Limits
from src.apps.mixbo.records import Record
from src.apps.mixbo.study import Study
from src.apps.mixbo.suggest import first_flops
from src.apps.mixbo.sweep import sweep
from src.apps.mixbo.sweeper import translate
from src.nanollama.config import ConfigError, compose, read_result
from src.nanollama.config.main import run_command
from src.nanollama.launcher.__main__ import main as launcher
from src.nanollama.launcher.signals import StopFlag

SIMULATED = ["objective=simulator", "strategy=random", "space.domains=[a,b,c]"]


def simulate(tmp_path: Path, *argv: str) -> tuple[Record, ...]:
    tmp_path.mkdir(exist_ok=True)
    controller, study, _ = prepare(tmp_path, *SIMULATED, *argv)
    controller.run(StopFlag())
    return study.records()


def test_a_study_interrupted_and_resumed_equals_the_unbroken_one(tmp_path) -> None:
    whole = simulate(tmp_path / "whole", "budget.trials=9", "strategy=kg")
    for trials in (3, 7, 9):
        parts = simulate(tmp_path / "parts", f"budget.trials={trials}", "strategy=kg")
    assert parts == whole and len(whole) == 9


def test_a_trial_left_running_is_taken_up_and_not_asked_for_again(tmp_path) -> None:
    whole = simulate(tmp_path / "whole", "budget.trials=6")
    tmp_path.joinpath("cut").mkdir()
    controller, study, problem = prepare(tmp_path / "cut", *SIMULATED, "budget.trials=6")
    from src.apps.mixbo.suggest import suggest

    for number in range(3):  # three suggestions stored, none carried out: as after kill -9 with three slots
        study.add(suggest(problem, study.records(), 0, number))
    controller.run(StopFlag())
    assert [r.number for r in study.records()] == list(range(6)) and all(r.status == "ok" for r in study.records())
    assert [r.weights for r in study.records()][:3] == [r.weights for r in whole][:3]


def test_continued_trials_are_charged_for_the_added_steps_only(tmp_path) -> None:
    records = simulate(tmp_path, "budget.trials=14", "strategy=hyperband")
    continued = [r for r in records if r.parent is not None]
    assert continued
    by_number = {r.number: r for r in records}
    for record in continued:
        parent = by_number[record.parent]
        assert record.weights == parent.weights and record.model_size == parent.model_size
        per_step = record.flops / (record.steps - parent.steps)
        assert per_step == pytest.approx(by_number[0].flops / by_number[0].steps)
        assert min(step for step, _ in record.curve) > parent.steps


def test_budget_counts_everything_ever_charged(tmp_path) -> None:
    first = simulate(tmp_path, "budget.full_runs=3")
    assert len(first) == 3
    assert len(simulate(tmp_path, "budget.full_runs=5")) == 5


def test_another_space_in_the_same_store_is_refused(tmp_path) -> None:
    simulate(tmp_path, "budget.trials=2")
    with pytest.raises(ConfigError, match="another space"):
        prepare(tmp_path, *SIMULATED[:2], "space.domains=[a,b,c,d]")


def test_two_studies_share_one_store(tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    cfgs = [compose(SWEEP, [*SIMULATED, f"seed={seed}", f"storage={url}", "budget.trials=3"]) for seed in (0, 1)]
    for cfg in cfgs:
        problem, runner = build(cfg, tmp_path / identity(cfg))
        study = Study(identity(cfg), url, problem, identity(cfg))
        limits = Limits.of(cfg.budget, first_flops(problem, cfg.seed), problem.full_run)
        Controller(suggesting(problem, cfg.seed), study, runner, limits, lambda records: None).run(StopFlag())
        assert len(study.records()) == 3


BAD = {
    "unknown strategy": ["strategy.name=kgg"],
    "unknown preset": ["strategy=kgg"],
    "caps that exclude the simplex": [*SIMULATED, "space.caps={a: .2, b: .2, c: .2}"],
    "cap of no domain": [*SIMULATED, "space.caps={z: .2}"],
    "target is not the largest": ["objective=simulator", "fidelity.model_size=[1B,20M]"],
    "unreachable budget": [*SIMULATED, "budget.flops=10"],
    "budget below a full run": [*SIMULATED, "budget.full_runs=.5"],
    "budget below the first corner": [*SIMULATED[::2], "strategy=ei", "budget.full_runs=.9"],
    "budget below the first rung": [*SIMULATED[::2], "strategy=hyperband", "budget.full_runs=.05"],
    "size the simulator lacks": ["objective=simulator", "fidelity.model_size=[tiny]"],
    "hyperband that halves nothing": [*SIMULATED, "strategy=hyperband", "strategy.eta=1"],
    "size held that is none": [*SIMULATED, "strategy.model_size=tiny"],
    "metric of no emulator": [*SIMULATED, "simulator.metric=loss"],
    "optimum outside the simplex": [*SIMULATED, "simulator.optimum=[.5,.5,.5]"],
    "no such file": ["objective=simulator", "simulator.path=/nowhere.npz"],
    "table without path": ["objective=table"],
    "continuing a cosine": ["training.overrides=['optim.schedule=cosine']"],
    "trainings of one domain": ["training.script=src.apps.gssm.train", "training.overrides=[experiment=debug]"],
    "domain of no corpus": ["training.metric={cobol: 1}"],
    "command that mixes nothing": ["training.script=src.apps.gssm.difficulty"],
    "storage that cannot be": [*SIMULATED, "storage=nosuchdb://here"],
    "read-only storage": [*SIMULATED, "storage=sqlite:////proc/study.db"],
}


@pytest.mark.parametrize("case", BAD, ids=BAD.keys())
def test_wrong_input_is_refused_before_anything_is_trained(case: str, tmp_path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(tmp_path, *BAD[case])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trials").exists()


def test_a_second_sweep_of_a_study_in_another_folder_is_refused(tmp_path, capsys) -> None:
    argv = [*SIMULATED, "budget.trials=2", "metrics.tensorboard=false", f"storage=sqlite:///{tmp_path / 'store.db'}"]
    assert run_command(SWEEP, inspect.unwrap(sweep), [*argv, f"run_dir={tmp_path / 'a'}"]) == 0
    assert run_command(SWEEP, inspect.unwrap(sweep), [*argv, f"run_dir={tmp_path / 'b'}"]) == 2
    assert str(tmp_path / "a") in capsys.readouterr().err
    assert run_command(SWEEP, inspect.unwrap(sweep), [*argv, f"run_dir={tmp_path / 'a'}", "budget.trials=3"]) == 0


def test_a_refused_sweep_leaves_its_folder_free(tmp_path) -> None:
    wrong = [*SIMULATED, "budget.trials=2", "space.caps={a: .2, b: .2, c: .2}", f"run_dir={tmp_path / 'run'}"]
    assert run_command(SWEEP, inspect.unwrap(sweep), wrong) == 2 and (tmp_path / "run").is_dir()
    assert run_command(SWEEP, inspect.unwrap(sweep), [arg for arg in wrong if not arg.startswith("space.caps")]) == 0


def written(folder: Path) -> str:
    """Everything in a folder's files."""
    return "".join(file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file())


def test_a_password_is_neither_shown_nor_written(tmp_path, capfd) -> None:
    """Nothing listens there, so the sweep fails with the URL in its message."""
    argv = [*SIMULATED, "storage=postgresql+psycopg://me:s3cret@127.0.0.1:1/db", f"run_dir={tmp_path / 'run'}"]
    assert run_command(SWEEP, inspect.unwrap(sweep), argv) == 2
    assert "me@127.0.0.1" in written(tmp_path) and "s3cret" not in written(tmp_path)
    shown = "".join(capfd.readouterr())
    assert "me@127.0.0.1" in shown and "s3cret" not in shown


def test_a_multirun_over_seeds_is_a_sweep_each(tmp_path) -> None:
    argv = ["-m", *SIMULATED, "seed=0,1", "budget.trials=3", "metrics.tensorboard=false", f"run_dir={tmp_path}"]
    ended = subprocess.run([sys.executable, "-m", "src.apps.mixbo.sweep", *argv], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads((tmp_path / seed / "best.json").read_text()) for seed in "01"]
    assert answers[0]["weights"] != answers[1]["weights"]
    assert all(len((tmp_path / seed / "trials.csv").read_text().splitlines()) == 1 + 3 for seed in "01")


def test_a_sweep_in_the_background(tmp_path) -> None:
    run = tmp_path / "run"
    argv = ["script=src.apps.mixbo.sweep", "launcher=bash", "detach=True", *SIMULATED, "budget.trials=3", f"run_dir={run}"]
    assert launcher(argv) == 0
    until = time.monotonic() + 120
    while read_result(run) is None:
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    assert (read_result(run) or {})["status"] == "ok" and json.loads((run / "best.json").read_text())["trials"] == 3


def test_a_locked_database_says_so(tmp_path, monkeypatch) -> None:
    simulate(tmp_path, "budget.trials=2")
    lock = sqlite3.connect(tmp_path / "study.db")
    lock.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(ConfigError, match="locked"):
            prepare(tmp_path, *SIMULATED)
    finally:
        lock.close()


def test_the_sweeper_means_the_same_as_the_command() -> None:
    options = {
        "strategy": "ei_cost",
        "division_coefficient": 0.5,
        "seed": 3,
        "full_runs": None,
        "flops": 1e12,
        "trials": None,
        "slots": 1,
        "storage": None,
    }
    made = translate("src.apps.mixbo.train", ["model=pico,nano", "train.steps=4,8", "optim.lr=0.01"], options, None)
    asked = compose(
        SWEEP,
        [
            "strategy=ei_cost", "strategy.division_coefficient=0.5", "seed=3", "budget.flops=1e12", "pool.slots=1",
            "fidelity.model_size=[pico,nano]", "fidelity.steps=[4,8]", "training.overrides=['optim.lr=0.01']",
        ],
    )  # fmt: skip
    assert made == asked
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        translate("src.apps.mixbo.train", ["model=pico,nano", "train.steps=4,8", "optim.lr=0.01,0.1"], options, None)
    with pytest.raises(ConfigError, match="fidelities"):
        translate("src.apps.mixbo.train", ["optim.lr=0.01"], options, None)
