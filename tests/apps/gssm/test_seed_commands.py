"""The commands that people have always typed, run for real, cut down by overrides."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from src.nanollama.config import read_result
from src.nanollama.config.compose import ROOT

SMALL = ["data.seq_len=16", "data.batch_size=8", "train.micro_batch=null", "train.steps=2", "model.emb_dim=16", "model.nb_layers=1",
         "model.nb_heads=1", "eval.period=0", "eval.sequences=8", "optim.warmup=1", "checkpoint.period=0"]  # fmt: skip
TRAIN = "script=src.apps.gssm.train config=src/apps/gssm/configs"
COMMANDS = [
    *[f"python -m src.nanollama.launcher {TRAIN}/{name}.yaml" for name in ("base", "sparse", "dense", "low_entropy", "debug")],
    f"python -m src.nanollama.launcher {TRAIN}/debug.yaml launcher=bash",
    f"python -m src.nanollama.launcher {TRAIN}/debug.yaml torchrun=True",
    f"python -m src.nanollama.launcher {TRAIN}/debug.yaml torchrun=True launcher=bash",
    "python -m src.apps.gssm.train config=src/apps/gssm/configs/debug.yaml",
    "torchrun --nproc-per-node 2 -m src.apps.gssm.train config=src/apps/gssm/configs/debug.yaml",
    "torchrun --nproc-per-node 8 -m src.apps.gssm.train_onfly src/apps/gssm/configs/experiment1/onfly_small_Z.yaml",
    "python -m src.nanollama.launcher src/apps/gssm/configs/experiment1/onfly_small_X.yaml",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_trains(command: str, tmp_path: Path) -> None:
    program, *words = shlex.split(command)
    start = [sys.executable] if program == "python" else [sys.executable, "-m", "torch.distributed.run"]
    no_slurm = {"SLURM_CONF": str(tmp_path / "none")}  # so that a developer's own cluster gets no jobs from here
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **no_slurm}
    line = [*start, *words, *SMALL, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = read_result(tmp_path / "run") or {}
    assert result["status"] == "ok" and result["steps"] == 2 and result["tokens"] == 2 * 8 * 16
    if "launcher" in command:
        assert "launcher: bash (as asked)" in done.stdout if "launcher=bash" in command else "launcher: bash (" in done.stdout
