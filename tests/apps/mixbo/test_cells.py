"""Comparisons in cells: equal trials, halving, fresh seeds, resume; the report's reading of them."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from src.apps.mixbo.cells.config import CELLS, CellsConfig, HalvingConfig, resolve
from src.apps.mixbo.cells.halving import Runs, check_cells, promoted, rungs
from src.apps.mixbo.cells.multirun import translate
from src.apps.mixbo.cells.propose import propose, settings, waves
from src.apps.mixbo.cells.trial import Trial
from src.apps.mixbo.options import PoolConfig
from src.apps.mixbo.sweeper import is_space
from src.nanollama.config import ConfigError, compose
from src.nanollama.config.compose import as_dict
from src.nanollama.config.main import entry_of
from src.nanollama.report import find_runs
from src.nanollama.report.families import points

ROOT = Path(__file__).parents[3]
FAMILY = {"model.family": "choice(shallow, deep)", "model.target_params": "choice(60k, 120k)", "optim.lr": "tag(log, interval(1e-4, 1e-1))"}


def trials(cfg: CellsConfig) -> list[Trial]:
    return propose(cfg, range(len(settings(cfg))), {})


def test_every_cell_tries_the_same_settings() -> None:
    found = trials(CellsConfig(space=FAMILY, trials=5))
    cells = {trial.cell for trial in found}
    assert cells == {(family, size) for family in ("shallow", "deep") for size in ("60k", "120k")}
    tried = [[trial.setting for trial in found if trial.cell == cell] for cell in cells]
    assert all(settings == tried[0] for settings in tried) and len({s["optim.lr"] for s in tried[0]}) == 5
    assert trials(CellsConfig(space=FAMILY, trials=5)) == found
    assert trials(CellsConfig(space=FAMILY, trials=5, seed=1))[0].setting != found[0].setting
    grid = trials(CellsConfig(space={**FAMILY, "optim.lr": "1e-3,1e-2", "optim.warmup": "range(0,3)"}, strategy="grid"))
    assert len(grid) == 4 * 2 * 3


def test_the_full_form_has_42_cells_that_can_all_be_built() -> None:
    cfg = compose(CELLS, ["experiment=phase1_sweep"])
    found = trials(cfg)
    assert len({trial.cell for trial in found}) == 42 and len(found) == 42 * 9
    assert rungs(cfg) == [1000, 3000, 9000]
    check_cells(cfg)
    with pytest.raises(ConfigError, match=r"1 of 2 cells cannot be run:\n  deep 2k: .*nearest has"):
        check_cells(compose(CELLS, ["experiment=phase1_small", "space.model.family=deep", "space.model.target_params='60k,2k'"]))


def test_cells_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match="deep 60k; give each value once"):
        check_cells(compose(CELLS, ["experiment=phase1_small", "space.model.family=deep", "space.model.target_params='60k,60k'"]))
    signs = CellsConfig(space={"train.seed": "choice(-1, 1)"}, cells=("train.seed",))  # a file name takes no sign
    with pytest.raises(ConfigError, match="give each value once"):
        check_cells(signs)


def test_all_families_are_trained_alike() -> None:
    """One recipe: batch, schedule, data and seeds do not depend on the family."""
    cfg = compose(CELLS, ["experiment=phase1_small"])
    runs, seen = Runs(cfg, Path("study")), []
    for trial in [trial for trial in trials(cfg) if trial.number == 0]:
        composed = as_dict(compose(entry_of(cfg.script), runs.overrides(trial, ["train.steps=90"])))
        seen.append({key: value for key, value in composed.items() if key != "model"})
    assert len(seen) == 14 and all(config == seen[0] for config in seen)


def test_halving() -> None:
    assert rungs(CellsConfig(space=FAMILY, steps=90)) == [90]
    assert rungs(CellsConfig(space=FAMILY, steps=90, halving=HalvingConfig(eta=3, min_steps=10))) == [10, 30, 90]
    found = trials(CellsConfig(space=FAMILY, trials=5))
    losses = {trial: math.inf if trial.number == 0 else float(-trial.number) for trial in found}
    cells = dict.fromkeys(trial.cell for trial in found)
    assert [(trial.cell, trial.number) for trial in promoted(losses, 3)] == [(cell, number) for cell in cells for number in (4, 3)]
    assert promoted(dict.fromkeys(found, math.inf), 3) == []  # what failed does not go on
    with pytest.raises(ConfigError, match="more than steps"):
        resolve(CellsConfig(space=FAMILY, steps=5, halving=HalvingConfig(min_steps=10)))


def test_tpe_learns_in_each_cell_alone() -> None:
    space = {"model.family": "choice(shallow, deep)", "optim.lr": "tag(log, interval(1e-5, 1))", "optim.name": "choice(adamw, muon)"}
    cfg = CellsConfig(space=space, cells=("model.family",), trials=24, strategy="tpe", pool=PoolConfig(slots=2))
    assert waves(cfg) == [range(12), *(range(n, n + 1) for n in range(12, 24))]
    best = {"shallow": -1.0, "deep": -4.0}  # of log10 of the learning rate
    losses: dict[Trial, float] = {}
    for numbers in waves(cfg):
        proposed = propose(cfg, numbers, losses)
        assert proposed == propose(cfg, numbers, losses)
        assert [(t.cell, t.setting) for t in proposed] == [(t.cell, t.setting) for t in propose(cfg, numbers, losses)]  # replayable
        for trial in proposed:
            lr = float(trial.setting["optim.lr"])  # type: ignore[arg-type]
            bad = trial.setting["optim.name"] == "muon"
            losses[trial] = math.inf if lr > 0.9 else abs(math.log10(lr) - best[str(trial.cell[0])]) + bad
    for family, wanted in best.items():
        late = [trial.setting for trial in losses if trial.cell == (family,) and trial.number >= 18]
        early = [trial.setting for trial in losses if trial.cell == (family,) and trial.number < 12]
        far = [sum(abs(math.log10(float(s["optim.lr"])) - wanted) for s in part) / len(part) for part in (late, early)]  # type: ignore[arg-type]
        assert far[0] < far[1] / 1.5


def test_multirun_of_any_keys() -> None:
    options = {"strategy": "random", "seed": 3, "slots": 1, "trials": 4}
    arguments = ["experiment=debug", "train.steps=7", *(f"{key}={text}" for key, text in FAMILY.items())]
    assert is_space(arguments) and not is_space(["model=pico,nano", "train.steps=1,2"])
    cfg = translate("src.apps.gssm.train", arguments, options, None)
    assert (cfg.space, cfg.steps, cfg.trials, cfg.seed) == (FAMILY, 7, 4, 3)
    assert cfg.overrides == ("experiment=debug",) and cfg.cells == ("model.family", "model.target_params")
    with pytest.raises(ConfigError, match="random, grid, tpe"):
        translate("src.apps.gssm.train", arguments, {**options, "strategy": "kg"}, None)


def test_a_small_comparison_runs_resumes_and_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    arguments = [
        "experiment=phase1_small", "space.model.family='shallow,deep_resnet'", "space.model.target_params=20k",
        "space.optim.lr='choice(1e-3,1e30)'", "steps=6", "halving.min_steps=2", "halving.eta=2", "pool.slots=2", f"run_dir={folder}",
        "overrides=['experiment=debug','data.seq_len=16','data.batch_size=2','eval.sequences=4','profiler.light=false']",
        "seeds=1",
    ]  # fmt: skip

    def run() -> None:
        command = [sys.executable, "-m", "src.apps.mixbo.families", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr

    run()
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [row["steps"] for row in rows] == ["3"] * 4 + ["6"] * 2
    assert {row["status"] for row in rows if row["optim.lr"] == "1e+30"} == {"nan"}  # a diverged trial ends nothing else
    cells = json.loads((folder / "cells.json").read_text())["cells"]
    assert [entry["setting"] for entry in cells] == [{"optim.lr": 0.001}] * 2 and {entry["seeds"] for entry in cells} == {1}
    assert all(abs(entry["parameters"] / 20_000 - 1) <= 0.005 for entry in cells)

    went_on = json.loads((folder / "trials" / "shallow-20k-0-6" / "result.json").read_text())
    assert went_on["steps"] == 6 and went_on["tokens"] == 6 * 2 * 16  # the second rung continued the first
    assert (folder / "trials" / "shallow-20k-0-6" / "config.yaml").read_text().count("shallow-20k-0-3/checkpoints/3") == 1

    final = find_runs([folder / "final"])
    assert {run.config["train"]["seed"] for run in final} == {1}  # tuning had seed 0: no choice has seen these data
    seen = points(final)
    assert {point.family: point.loss for point in seen} == {entry["cell"]["model.family"]: entry["test_loss"] for entry in cells}
    assert "Families at equal numbers of parameters" in (folder / "report.html").read_text()

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/result.json")}
    (folder / "cells.json").unlink()
    run()
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was trained twice
    assert json.loads((folder / "cells.json").read_text())["cells"] == cells
