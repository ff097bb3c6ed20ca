"""The README's commands are accepted as written, and the trainings among them really run, cut down."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from src.nanollama.config import compose
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
    if any(arg.startswith("hydra/sweeper") for arg in args):
        args = [arg for arg in args if not arg.startswith(("hydra", "model=", "train.steps="))]
    jobs = expand([arg for arg in args if arg != "-m"]) if "-m" in args else [args]
    for job in jobs:
        assert compose(entry, [arg for arg in job if arg != "-m"])


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
