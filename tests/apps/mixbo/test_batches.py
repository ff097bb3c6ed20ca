"""Trials in batches, by whatever Hydra launcher is named."""

import csv
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from src.apps.mixbo.jobs import BatchPool
from src.nanollama.config import read_result, write_json
from src.nanollama.config.compose import ROOT
from src.nanollama.launcher.pool import Job


def job(run: Path, *overrides: str) -> Job:
    return Job((sys.executable, "-m", "a.module", *overrides, f"run_dir={run}"), run)


class Launcher:
    """Leaves the results that it was given, one list of statuses a job, then raises if it is told to. None: killed, no result."""

    def __init__(self, ends: Mapping[str, list[str | None]], error: Exception | None = None) -> None:
        self.ends, self.error, self.batches = dict(ends), error, []

    def __call__(self, jobs: Mapping[Path, Sequence[str]]) -> None:
        self.batches.append({run.name: list(overrides) for run, overrides in jobs.items()})
        for run in jobs:
            run.mkdir(exist_ok=True)
            if status := self.ends[run.name].pop(0):
                write_json(run / "result.json", {"status": status})
        if self.error:
            raise self.error


def test_a_batch_is_reported_whole_before_the_next_is_asked_for(tmp_path) -> None:
    launcher = Launcher({"a": ["ok"], "b": ["nan"], "c": ["ok"]})
    pool = BatchPool(launcher, slots=2, retries=0)
    pool.submit(job(tmp_path / "a", "x=1"))
    pool.submit(job(tmp_path / "b", "x=2"))
    assert pool.slots == 2 and not launcher.batches
    first = pool.poll()
    assert first and pool.slots == 0 and len(pool) == 1
    second = pool.poll()
    assert second and pool.slots == 2 and not len(pool) and pool.poll() is None
    assert [first.result["status"], second.result["status"]] == ["ok", "nan"]
    pool.submit(job(tmp_path / "c"))
    pool.poll()
    assert launcher.batches == [{"a": ["x=1"], "b": ["x=2"]}, {"c": []}]


def test_what_was_killed_is_launched_again_with_the_next_batch(tmp_path) -> None:
    launcher = Launcher({"a": [None, "requeue", "ok"], "b": [None, None]})
    pool = BatchPool(launcher, slots=2, retries=2)
    pool.submit(job(tmp_path / "a"))
    assert pool.poll() is None and len(pool) == 1
    assert pool.poll() is None
    ended = pool.poll()
    assert ended and (ended.result["status"], ended.attempts) == ("ok", 3)
    pool.submit(job(tmp_path / "b"))
    assert pool.poll() is None
    pool.stop()
    assert not len(pool) and pool.poll() is None and len(launcher.batches) == 4


def test_a_launcher_that_raises_for_one_loses_no_other(tmp_path) -> None:
    launcher = Launcher({"a": ["ok"], "b": [None]}, RuntimeError("lost a worker"))
    pool = BatchPool(launcher, slots=2, retries=0)
    pool.submit(job(tmp_path / "a"))
    pool.submit(job(tmp_path / "b"))
    assert [ended.result["status"] for _ in range(2) if (ended := pool.poll())] == ["ok", "killed"]
    pool = BatchPool(Launcher({"c": [None]}, RuntimeError("cannot start")), slots=1, retries=0)
    pool.submit(job(tmp_path / "c"))
    with pytest.raises(RuntimeError, match="cannot start"):  # not the trial's fault
        pool.poll()


def test_a_sweep_by_a_hydra_launcher(tmp_path) -> None:
    """Three trials, two at a time; the launcher's own table of jobs shows the batches."""
    for domain in ("letters", "digits"):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for i in range(8):
            (tmp_path / "texts" / domain / f"{i}.txt").write_text(f"{domain} {i} " * 100)
    command = [
        sys.executable, "-m", "src.apps.mixbo.train", "-m", "hydra/sweeper=mixbo", "hydra/launcher=pool", "hydra.launcher.slots=2",
        "hydra.sweeper.strategy=random", "hydra.sweeper.slots=2", "hydra.sweeper.trials=3", "model=pico", "train.steps=8",
        f"data.corpus={tmp_path}/texts", f"data.cache={tmp_path}/cache", "data.seq_len=16", "data.batch_size=4", "eval.sequences=4",
        f"run_dir={tmp_path}/sweep",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(\d+|trial)(?::|  )", done.stdout, re.M)  # of the launcher, and of the sweep
    assert sorted(lines[:2]) == ["0", "1"] and lines[2:] == ["trial", "trial", "2", "trial"]
    assert [row["status"] for row in csv.DictReader((tmp_path / "sweep/trials.csv").read_text().splitlines())] == ["ok"] * 3
    assert all(read_result(tmp_path / f"sweep/trials/{n}")["steps"] == 8 for n in range(3))
