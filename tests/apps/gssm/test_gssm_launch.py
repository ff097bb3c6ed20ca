"""The commands that people have always typed start what they say."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from src.nanollama.config import read_result
from src.nanollama.config.compose import ROOT
from src.nanollama.launcher.__main__ import main as launcher
from src.nanollama.launcher.plan import plan

TRAIN = "script=src.apps.gssm.train"
FOLDER = "src/apps/gssm/configs"


@pytest.mark.parametrize(
    "command, expected",
    [
        *[(f"{TRAIN} config={FOLDER}/{name}.yaml", (None, False)) for name in ("base", "sparse", "dense", "low_entropy", "debug")],
        (f"{TRAIN} config={FOLDER}/debug.yaml launcher=bash", ("bash", False)),
        (f"{TRAIN} config={FOLDER}/debug.yaml torchrun=True", (None, True)),
        (f"{TRAIN} config={FOLDER}/debug.yaml torchrun=True launcher=bash", ("bash", True)),
        (f"{FOLDER}/base.yaml", (None, False)),
        *[(f"{FOLDER}/experiment1/{name}.yaml", (None, False)) for name in ("onfly_small_X", "onfly_small_Z", "small_X", "small_Z")],
    ],
)
def test_commands_of_the_seeds(command, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = plan(command.split())
    assert (asked.cluster.launcher, asked.cluster.torchrun) == expected
    assert asked.script.startswith("src.apps.gssm.train") and not asked.is_grid and asked.run_dir is None


def test_personal_config_from_anywhere(tmp_path, capfd):
    """A config outside the project, further overrides, a real training of two steps."""
    shutil.copy(ROOT / FOLDER / "debug.yaml", tmp_path / "my debug.yaml")
    small = ["train.steps=2", "optim.warmup=1", "data.seq_len=16", "eval.sequences=2", "metrics.tensorboard=false"]
    assert launcher([TRAIN, f"config={tmp_path}/my debug.yaml", "launcher=bash", f"run_dir={tmp_path}/r", *small]) == 0
    result = read_result(tmp_path / "r")
    assert result["status"] == "ok" and result["steps"] == 2 and result["excess_loss"] > 0
    launcher(["status", f"{tmp_path}/r"])
    assert " ok " in capfd.readouterr().out


def test_the_config_is_checked_for_the_ranks_it_will_have(capsys):
    command = [TRAIN, "experiment=debug", "torchrun=True", "launcher=bash", "cluster.nproc=3"]
    assert launcher(command) == 2
    assert "data.batch_size = 16" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_hydra_s_other_launchers(tmp_path, name):
    """One job's failure stops no other, and results are read from the run folders."""
    small = ["model=pico", "data.seq_len=16", "data.batch_size=2", "eval.sequences=2", "metrics.tensorboard=false", "train.steps=2"]
    sweep = ["-m", f"hydra/launcher={name}", "experiment=debug", *small, "checkpoint.init_from=/nowhere,null", f"run_dir={tmp_path}/g"]
    command = [sys.executable, "-m", "src.apps.gssm.train", *sweep]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 3, done.stderr
    assert [(read_result(tmp_path / f"g/{n}") or {})["status"] for n in range(2)] == ["invalid", "ok"]
