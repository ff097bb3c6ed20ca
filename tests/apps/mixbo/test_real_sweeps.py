"""Sweeps of real trainings: killed, interrupted, with trials that fail; as a command and by Hydra. All are processes of their own."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import command, prepare, rows, tiny

from src.apps.mixbo.build import build
from src.apps.mixbo.config import SWEEP
from src.apps.mixbo.objectives.training import Trainings
from src.apps.mixbo.observations import observations
from src.apps.mixbo.records import Record
from src.nanollama.config import RunFailed, compose, read_result
from src.nanollama.launcher.signals import StopFlag
from src.nanollama.metrics.sinks import read_jsonl


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


def pid_of(run_dir: Path) -> int:
    """The process of a run that has opened its folder."""
    wait_for((run_dir / "env.json").exists)
    return json.loads((run_dir / "env.json").read_text())["pid"]


def ended(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*argv), capture_output=True, text=True, timeout=300)


def test_killed_sweep_ends_like_the_unbroken_one(corpus, tmp_path) -> None:
    """kill -9 of the controller while a trial runs: nothing is trained twice, and every suggestion and result is the same."""
    whole = ended(*tiny(corpus, "budget.trials=4", f"run_dir={tmp_path / 'whole'}"))
    assert whole.returncode == 0, whole.stderr
    argv = tiny(corpus, "budget.trials=4", f"run_dir={tmp_path / 'cut'}")
    process = subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = pid_of(tmp_path / "cut/trials/2")
    process.kill()
    process.wait()
    again = ended(*argv)
    assert again.returncode == 0, again.stderr
    assert pid_of(tmp_path / "cut/trials/2") == started  # it went on by itself, and was not started again
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") and len(rows(tmp_path / "cut")) == 4
    best = [json.loads((tmp_path / name / "best.json").read_text()) for name in ("whole", "cut")]
    assert best[0] == best[1] and best[0]["model_size"] == "nano" and best[0]["steps"] == 16
    assert sum(best[0]["weights"].values()) == pytest.approx(1)


def test_ctrl_c_lets_the_trials_save_and_the_same_command_goes_on(corpus, tmp_path) -> None:
    argv = tiny(corpus, "fidelity.steps=[50,100]", "budget.trials=1", f"run_dir={tmp_path}")
    process = subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trial = tmp_path / "trials/0"
    child = pid_of(trial)
    wait_for(lambda: (trial / "metrics.jsonl").is_file() and read_jsonl(trial / "metrics.jsonl"))
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    (saved,) = (int(path.name) for path in (trial / "checkpoints").iterdir())
    assert 0 < saved < 100 and (read_result(trial) or {})["status"] == "requeue"
    assert (read_result(tmp_path) or {})["status"] == "interrupted"
    again = ended(*argv)
    assert again.returncode == 0, again.stderr
    with (trial / "light.csv").open() as file:
        second = [int(row["step"]) for row in csv.DictReader(file) if row["segment"] == "1"]
    assert saved < second[0] <= second[-1] == 100


def test_trials_that_diverge_or_are_killed_do_not_stop_the_sweep(corpus, tmp_path) -> None:
    """One corner always diverges, and the first trial is killed once, beside another one."""
    argv = tiny(corpus, "pool.slots=2", "surrogate.failed=penalise", "budget.trials=4", training=("train.max_skipped=1",))
    controller, study, problem = prepare(tmp_path, *argv, "training.script=tests.apps.mixbo.diverging")
    killed: list[int] = []

    def kill() -> None:
        killed.append(pid_of(tmp_path / "trials/0"))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill).start()
    with closing(study):
        controller.run(StopFlag())
        records, statuses = study.records(), [row["status"] for row in study.details()]
    assert statuses == ["ok", "nan", "ok", "ok"] and pid_of(tmp_path / "trials/0") != killed[0]
    diverged, asked = records[1], problem.flops_per_step[0] * 16
    assert [record.flops for record in records if record is not diverged] == pytest.approx([asked] * 3)
    assert 0 < diverged.flops <= asked * (1 + 1e-9) and diverged.curve == ()
    penalised = observations(problem, records, (5, 2.0))
    worst = max((record.curve[-1][1] for record in records if record.curve), key=problem.metric.objective)
    assert penalised.x[-1, :3] == pytest.approx(diverged.weights) and penalised.y[-1] == pytest.approx(worst)


def test_a_sweep_whose_trials_all_diverge_ends_with_their_message(corpus, tmp_path) -> None:
    controller, study, _ = prepare(tmp_path, *tiny(corpus, training=("optim.lr=1e30", "optim.clip=null", "train.max_skipped=1")))
    with closing(study):
        with pytest.raises(RunFailed, match="trials all failed"):
            controller.run(StopFlag())
        assert {record.status for record in study.records()} == {"failed"}
        assert {row["status"] for row in study.details()} == {"nan"}


def test_trials_that_time_out_are_charged_what_they_asked_for(corpus, tmp_path) -> None:
    """They end before their first step, so nothing else is known; without a charge the sweep would never use up its budget."""
    controller, study, problem = prepare(tmp_path, *tiny(corpus, "pool.timeout_s=0.2"))
    with closing(study):
        with pytest.raises(RunFailed, match=r"0\.2 s"):
            controller.run(StopFlag())
        assert {row["status"] for row in study.details()} == {"timeout"}
        for record in study.records():
            assert record.flops == problem.flops_per_step[problem.fidelities.index(record.model_size)] * record.steps


def test_hydra_sweeps_another_family_of_data_and_the_command_goes_on_with_it(tmp_path) -> None:
    """``hydra/sweeper=mixbo`` over the graphs' domains; the same study is then continued by the other front end."""
    small = ["experiment=mixture", "data.seq_len=16", "data.batch_size=4"]
    hydra = ["-m", "hydra/sweeper=mixbo", "hydra.sweeper.strategy=kg", "hydra.sweeper.trials=2", "model=pico,nano", "train.steps=2,4"]
    line = [sys.executable, "-m", "src.apps.gssm.train", *hydra, *small, f"run_dir={tmp_path}"]
    swept = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert swept.returncode == 0, swept.stderr
    first = json.loads((tmp_path / "best.json").read_text())
    assert first["weights"].keys() == {"infer", "predict", "noise"} and first["trials"] == 2
    sweep = ["strategy=kg", "training.script=src.apps.gssm.train", f"training.overrides={[*small]}", "budget.trials=3"]
    again = ended(*sweep, "fidelity.model_size=[pico,nano]", "fidelity.steps=[2,4]", f"run_dir={tmp_path}")
    assert again.returncode == 0, again.stderr
    with (tmp_path / "trials.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 3


def test_a_wsd_run_is_continued_from_before_its_decay_and_equals_the_unbroken_one(corpus, tmp_path) -> None:
    argv = tiny(corpus, training=("optim.schedule=wsd", "optim.decay=0.25"))
    cfg = compose(SWEEP, argv)
    problem, trainings = build(cfg, tmp_path)[0], Trainings(cfg.training, cfg.fidelity)
    short = Record(0, (0.2, 0.3, 0.5), "pico", 8)
    long = replace(short, number=1, steps=16, parent=0)
    for trial, folder, parent in ((short, "0", None), (long, "1", tmp_path / "0"), (long, "whole", None)):
        subprocess.run(trainings.command(trial, tmp_path / folder, parent), check=True, capture_output=True, timeout=300)
    results = {folder: read_result(tmp_path / folder) or {} for folder in ("0", "1", "whole")}
    assert results["1"]["final"] == results["whole"]["final"]
    outcome = trainings.outcome(long, tmp_path / "1", results["1"])
    assert outcome.flops == pytest.approx(problem.flops_per_step[0] * (16 - 6)) and [step for step, _ in outcome.curve] == [16]
