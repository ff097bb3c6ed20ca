"""The sweep as its users meet it: one command, killed and resumed, with failing trials and wrong input. Trials are real processes."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.apps.mixbo.build import build, suggesting
from src.apps.mixbo.config import SWEEP, identity
from src.apps.mixbo.controller import Controller, Limits
from src.apps.mixbo.records import Record
from src.apps.mixbo.study import Study
from src.apps.mixbo.sweeper import translate
from src.nanollama.config import ConfigError, RunFailed, compose
from src.nanollama.launcher.signals import StopFlag

SIMULATED = ["objective=simulator", "strategy=random", "space.domains=[a,b,c]"]


def prepare(tmp_path: Path, *argv: str):
    """(controller, study, problem) of a command line, without its terminal output."""
    cfg = compose(SWEEP, [*argv, f"run_dir={tmp_path}"])
    problem, runner = build(cfg, tmp_path / "trials")
    study = Study("study", cfg.storage or Study.sqlite(tmp_path), problem, identity(cfg))
    return Controller(suggesting(problem, cfg.seed), study, runner, Limits.of(cfg.budget, problem), lambda records: None), study, problem


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
        Controller(suggesting(problem, cfg.seed), study, runner, Limits.of(cfg.budget, problem), lambda records: None).run(StopFlag())
        assert len(study.records()) == 3


BAD = {
    "unknown strategy": ["strategy.name=kgg"],
    "unknown preset": ["strategy=kgg"],
    "caps that exclude the simplex": [*SIMULATED, "space.caps={a: .2, b: .2, c: .2}"],
    "cap of no domain": [*SIMULATED, "space.caps={z: .2}"],
    "target is not the largest": ["objective=simulator", "fidelity.model_size=[1B,20M]"],
    "unreachable budget": [*SIMULATED, "budget.flops=10"],
    "size the simulator lacks": ["objective=simulator", "fidelity.model_size=[tiny]"],
    "no such file": ["objective=simulator", "simulator.path=/nowhere.npz"],
    "table without path": ["objective=table"],
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


# --- real trainings --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A user's folder with three domains."""
    root = tmp_path_factory.mktemp("corpus")
    for domain, text in {"count": "0123456789 ", "alpha": "abcdefghij ", "mixed": "a1b2c3d4e5 "}.items():
        (root / "texts" / domain).mkdir(parents=True)
        for i in range(12):
            (root / "texts" / domain / f"{i}.txt").write_text(f"{domain} {i} " + text * 80 + str(i))
    return root


def real(corpus: Path, *more: str) -> list[str]:
    overrides = [
        f"data.corpus={corpus / 'texts'}",
        f"data.cache={corpus / 'cache'}",
        "data.seq_len=16",
        "data.batch_size=4",
        "eval.sequences=4",
    ]
    quoted = ",".join(f"'{o}'" for o in overrides)
    return [
        sys.executable, "-m", "src.apps.mixbo.sweep", f"training.overrides=[{quoted}]", "fidelity.model_size=[pico,nano]",
        "fidelity.steps=[8,16]", "pool.slots=1", "training.checkpoints=1", "metrics.tensorboard=false", *more,
    ]  # fmt: skip


def rows(folder: Path) -> list[tuple]:
    import csv

    with (folder / "trials.csv").open() as file:
        return [
            (r["trial"], r["status"], r["w.count"], r["w.alpha"], r["model_size"], r["steps"], r["continues"], r["value"])
            for r in csv.DictReader(file)
        ]


def test_killed_sweep_ends_like_the_unbroken_one(corpus, tmp_path) -> None:
    """kill -9 of the controller while a trial runs: nothing is trained twice, and every suggestion and result is the same."""
    whole = subprocess.run(real(corpus, "budget.trials=4", f"run_dir={tmp_path / 'whole'}"), capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stderr
    command = real(corpus, "budget.trials=4", f"run_dir={tmp_path / 'cut'}")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (tmp_path / "cut" / "trials" / "2" / "config.yaml").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") and len(rows(tmp_path / "cut")) == 4
    best = [json.loads((tmp_path / name / "best.json").read_text()) for name in ("whole", "cut")]
    assert best[0] == best[1] and best[0]["model_size"] == "nano" and best[0]["steps"] == 16
    assert sum(best[0]["weights"].values()) == pytest.approx(1)
    trained = [json.loads(line)["step"] for line in (tmp_path / "cut/trials/2/metrics.jsonl").read_text().splitlines()]
    assert trained == sorted(trained)


def test_a_sweep_whose_trials_all_fail_ends_with_their_message(corpus, tmp_path) -> None:
    cfg_args = [a for a in real(corpus)[3:]]
    cfg_args[0] = cfg_args[0].replace("]", ",'optim.lr=1e30','optim.clip=null','train.max_skipped=1']")
    controller, study, _ = prepare(tmp_path, *cfg_args)
    with pytest.raises(RunFailed, match="trials all failed"):
        controller.run(StopFlag())
    assert {record.status for record in study.records()} == {"failed"}
    assert {row["status"] for row in study.details()} == {"nan"}
