"""The training commands of the seed experiment, for real at tiny sizes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.apps.gssm.config import DATA, TRAIN, TRAIN_ONFLY
from src.apps.gssm.data import data
from src.apps.gssm.train import train
from src.apps.gssm.train_onfly import train_onfly
from src.nanollama.config import ROOT, ConfigError, RunFolder, compose, read_result
from src.nanollama.config.main import run_command
from src.nanollama.launcher.plan import plan
from src.nanollama.metrics.sinks import read_jsonl

CONFIGS = "src/apps/gssm/configs/experiment1"
TINY = [
    "train.steps=6", "train.log_period=1", "model.emb_dim=16", "model.nb_layers=1", "data.seq_len=16", "data.batch_size=4",
    "eval.sequences=4", "eval.period=0", "checkpoint.period=0", "metrics.tensorboard=false", "train.device=cpu",
]  # fmt: skip


def run(entry, task, *args: str) -> int:
    return run_command(entry, task.__wrapped__, [*args, *TINY])


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiment1")
    args = [f"{CONFIGS}/data.yaml", f"data.path={folder}", f"run_dir={folder / 'run'}", "data.sequences=10"]
    assert run(DATA, data, *args) == 0
    return folder


@pytest.mark.parametrize("name", ["onfly_small_X", "onfly_small_Z"])
def test_training_on_the_fly(name: str, tmp_path) -> None:
    assert run(TRAIN_ONFLY, train_onfly, f"{CONFIGS}/{name}.yaml", f"run_dir={tmp_path}") == 0
    result = read_result(tmp_path)
    assert result["status"] == "ok" and result["floor"] == "exact filter" and result["steps"] == 6
    assert result["excess_loss"] == pytest.approx(result["loss"] - result["bayes_loss"]) and result["excess_loss"] > 0
    steps = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if r["split"] == "train"]
    assert len(steps) == 6 and all(r["excess_loss"] == pytest.approx(r["loss"] - r["bayes_loss"]) for r in steps)


@pytest.mark.parametrize("name", ["small_X", "small_Z"])
def test_training_on_files_evaluates_on_the_same_sequences_as_on_the_fly(name: str, data_sets, tmp_path) -> None:
    files = f"{CONFIGS}/{name}.yaml", "data.sequences=10", f"data.path={data_sets / name}"
    assert run(TRAIN, train, *files, f"run_dir={tmp_path / 'files'}") == 0
    result = read_result(tmp_path / "files")
    assert result["epochs"] == 2.4
    assert run(TRAIN, train, *files, "data.source=onfly", f"run_dir={tmp_path / 'onfly'}") == 0
    assert read_result(tmp_path / "onfly")["bayes_loss"] == result["bayes_loss"]


def test_a_resume_in_the_middle_of_an_epoch_continues_exactly(data_sets, tmp_path) -> None:
    """10 sequences in batches of 4: step 4 ends inside the second epoch."""
    args = [f"{CONFIGS}/small_X.yaml", "data.sequences=10", f"data.path={data_sets / 'small_X'}", "optim.schedule=constant", *TINY]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_command(TRAIN, train.__wrapped__, [*args, f"run_dir={whole}"]) == 0
    assert run_command(TRAIN, train.__wrapped__, [*args, f"run_dir={broken}", "train.steps=4"]) == 0
    assert run_command(TRAIN, train.__wrapped__, [*args, f"run_dir={broken}"]) == 0
    losses = [[r["loss"] for r in read_jsonl(path / "metrics.jsonl") if r["split"] == "train"] for path in (whole, broken)]
    assert len(losses[0]) == 6 and losses[0] == losses[1]
    assert read_result(whole)["loss"] == read_result(broken)["loss"]


def test_missing_data_name_the_command_that_makes_them(tmp_path) -> None:
    where = tmp_path / "not there"
    args = [f"{CONFIGS}/small_X.yaml", "data.sequences=10", f"data.path='{where}'"]
    assert run(TRAIN, train, *args, f"run_dir={tmp_path / 'run'}") == 2
    message = read_result(tmp_path / "run")["message"]
    command = shlex.split(re.search(r"python -m (.*)", message).group(1))
    assert command[0] == "src.apps.gssm.data" == data.__module__
    assert run_command(DATA, data.__wrapped__, [*command[1:], f"run_dir={tmp_path / 'made'}"]) == 0
    assert run(TRAIN, train, *args, f"run_dir={tmp_path / 'run'}") == 0


def test_without_an_exact_filter_the_run_names_its_estimator(tmp_path) -> None:
    graph = "gssm=[{name: Z, state_dim: 3, mode: context}, {name: X, state_dim: 5, parents: [Z]}]"
    assert run(TRAIN, train, graph, "alpha_X=0.1", "alpha_Z=0.2", "model.nb_heads=2", f"run_dir={tmp_path}") == 0
    result = read_result(tmp_path)
    assert result["status"] == "ok" and result["floor"].startswith("bounds: a particle filter")
    assert "bayes_loss" not in result and "excess_loss" not in result  # a bound is no floor
    assert 0 < result["bayes_lower"] < result["bayes_upper"] < 1.7 and result["bayes_upper_se"] > 0
    assert result["excess_between"][1] - result["excess_between"][0] == pytest.approx(result["bayes_upper"] - result["bayes_lower"])
    assert all(se > result["loss_se"] > 0 for se in result["excess_between_se"])


def test_train_onfly_refuses_files_and_files_need_a_path() -> None:
    with pytest.raises(ConfigError, match=r"read files with src\.apps\.gssm\.train"):
        compose(TRAIN_ONFLY, [f"{CONFIGS}/small_X.yaml"])
    with pytest.raises(ConfigError, match=r"data\.source=files needs data\.path"):
        compose(TRAIN, ["experiment=debug", "data.source=files"])


@pytest.mark.parametrize("file", sorted((ROOT / "src/apps/gssm/configs").rglob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_says_what_it_is_for_and_fits_the_command_it_names(file: Path) -> None:
    assert re.match(r"# \w.{30,}", file.read_text())
    script = [] if "script:" in file.read_text() else ["script=src.apps.gssm.train"]
    assert all(task.config["name"] != "gssm" for task in plan([*script, str(file)]).tasks)


def test_the_seed_sizes_are_in_the_configs() -> None:
    for name in ("onfly_small_X", "onfly_small_Z", "small_X", "small_Z"):
        cfg = compose(TRAIN, [f"{CONFIGS}/{name}.yaml"])
        assert (cfg.data.seq_len, cfg.data.batch_size, cfg.model.vocab_size, cfg.cluster.mem) == (2048, 16, 32, "16G")
        assert (cfg.model.emb_dim, cfg.model.nb_layers, cfg.model.nb_heads) == (288, 12, 12)
        compose(TRAIN, [f"{CONFIGS}/{name}.yaml", "train.steps=20", "model.emb_dim=64"])  # as the tests cut it down


def test_alpha_may_be_one_number_a_symbol(tmp_path) -> None:
    graph = "gssm=[{name: Z, state_dim: 2, alpha: [0.1, 0.9]}, {name: X, state_dim: 3, parents: [Z], alpha: 1e-1}]"
    assert run(TRAIN, train, graph, "model.nb_heads=2", f"run_dir={tmp_path}") == 0
    assert json.loads((tmp_path / "result.json").read_text())["bayes_loss"] > 0


def test_run_folders_hold_a_config_that_reproduces_the_setup(tmp_path) -> None:
    args = [f"{CONFIGS}/data.yaml", "setup=small_Z", *TINY, f"run_dir={tmp_path}"]
    seen = {}

    def task(cfg, folder: RunFolder) -> None:
        seen["cfg"], seen["again"] = cfg, compose(TRAIN, [str(folder.path / "config.yaml"), f"run_dir={tmp_path}"])

    assert run_command(TRAIN, task, args) == 0
    assert seen["cfg"] == seen["again"] and seen["cfg"].alpha_X == 5e-2


@pytest.mark.parametrize("place", ["anywhere", "a job of Slurm"])
def test_the_difficulty_script_runs_from_anywhere_and_as_a_copy_in_slurms_spool(place: str, tmp_path) -> None:
    script = ROOT / "src/apps/gssm/configs/experiment0/difficulty.sh"
    env, cwd = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}, tmp_path
    env.pop("SLURM_JOB_ID", None)
    if place == "a job of Slurm":
        script = Path(shutil.copy(script, tmp_path / "slurm_script"))
        env |= {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    small = ["map.alpha_X.num=2", "map.alpha_Z.num=1", "graph_seeds=1", "measure.tokens=2000", "measure.sequences=4", "data.seq_len=16"]
    done = subprocess.run(["bash", script, *small, f"run_dir={tmp_path / 'run'}"], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "difficulty.json").read_text())
    assert [(row["alpha_X"], row["alpha_Z"]) for row in found["settings"]] == [(1e-3, 1e-3), (1.0, 1e-3)]
    assert "#SBATCH --time=" in (ROOT / "src/apps/gssm/configs/experiment0/difficulty.sh").read_text()
