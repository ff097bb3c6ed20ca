"""The README's commands are accepted as written, and the trainings among them really run, cut down."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from src.apps.mixbo import sweeper
from src.apps.mixbo.cells import multirun
from src.apps.mixbo.objectives.training import Trainings
from src.nanollama.config import ConfigError, compose
from src.nanollama.config.compose import CONFIGS, register_schema, rewrite_argv
from src.nanollama.config.explain import all_keys
from src.nanollama.config.main import entry_of, expand

ROOT = Path(__file__).parents[1]
PLACEHOLDERS = ("RUN", "RUNS", "...", "PATH", "runs/A", "runs/B", "[RUNS]", "checkpoint=RUN", "runs=[RUNS]")
LINES = re.findall(r"^    (?:torchrun --nproc-per-node \d+|python) -m (src\.\S+)([^#\n]*)", (ROOT / "README.md").read_text(), flags=re.M)
COMMANDS = [(module, shlex.split(rest)) for module, rest in LINES]
COMPLETE = [(module, args) for module, args in COMMANDS if not set(args) & set(PLACEHOLDERS)]
COMPOSED = [(module, args) for module, args in COMPLETE if not module.startswith("src.nanollama")]
SMALL = ["model=pico", "train.steps=2", "data.seq_len=16", "data.batch_size=2", "eval.sequences=2", "metrics.tensorboard=false"]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20 and len(COMPOSED) > 10


@pytest.mark.parametrize(("module", "args"), COMPOSED, ids=[" ".join([m, *a]) for m, a in COMPOSED])
def test_command_is_accepted(module: str, args: list[str]) -> None:
    entry = entry_of(module)
    words = [arg for arg in args if arg != "-m"]
    if any(arg.startswith("hydra/sweeper") for arg in words):
        words = swept(module, words)
    for job in expand(words) if "-m" in args else [words]:
        assert compose(entry, job)


def swept(module: str, words: list[str]) -> list[str]:
    """Have Hydra compose the whole line and our sweeper take it, as they do at the start; returns what it sweeps over."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    entry = entry_of(module)
    register_schema(entry)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        hydra = loader.load_configuration(entry.name, rewrite_argv(entry, words), run_mode=RunMode.MULTIRUN).hydra
    task, options = list(hydra.overrides.task), {key: value for key, value in hydra.sweeper.items() if key != "_target_"}
    if sweeper.is_space(task):
        assert multirun.translate(module, task, options, None).space
    else:
        cfg = sweeper.translate(module, task, options, None)
        assert Trainings(cfg.training, cfg.fidelity).flops_per_step
    return [word for word in words if not word.startswith("hydra")]


WRONG = ["hydra.sweeper.strategy=kgg", "hydra.sweeper.stategy=kg", "model=pico,nnano", "train.steps=50,x", "lr=1"]


@pytest.mark.parametrize("change", WRONG)
def test_a_sweepers_line_is_refused_for_any_word_of_it(change: str) -> None:
    module, words = next((m, a) for m, a in COMPOSED if "hydra/sweeper=mixbo" in a and m == "src.apps.mixbo.train")
    key = change.partition("=")[0]
    line = [word for word in words if word != "-m" and word.partition("=")[0] != key]
    with pytest.raises((ConfigError, HydraException)):
        swept(module, [*line, change])


def test_the_keys_in_the_table_of_features_exist() -> None:
    table = (ROOT / "README.md").read_text().partition("| | keys |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([a-z_.*]+)", row.split("|")[2]) for row in table.splitlines() if row.startswith("| ") and "---" not in row]
    assert len(rows) > 8 and all(rows)
    known = {key for module in ("src.apps.gssm.train", "src.apps.mixbo.train") for key in all_keys(entry_of(module).schema)}
    for key in [key for row in rows for key in row]:
        assert key in known or (key.endswith(".*") and key.removesuffix(".*") in known), key


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS}))
def test_help_answers(module: str) -> None:
    out = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert out.returncode == 0 and out.stdout.strip(), out.stderr


TRAININGS = [
    (m, a) for m, a in COMPOSED if m in ("src.apps.gssm.train", "src.apps.mixbo.train") and "-m" not in a and "experiment1" not in str(a)
]


@pytest.mark.parametrize(("module", "args"), TRAININGS, ids=[" ".join([m, *a]) for m, a in TRAININGS])
def test_training_runs(module: str, args: list[str], tmp_path: Path) -> None:
    more = [*SMALL, f"run_dir={tmp_path / 'run'}"]
    if module == "src.apps.mixbo.train":
        more += [f"data.cache={tmp_path / 'corpora'}", "data.domain_bytes=262144"]
    args = [arg for arg in args if not arg.startswith("train.steps=")]
    out = subprocess.run([sys.executable, "-m", module, *args, *more], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "run" / "result.json").is_file()
