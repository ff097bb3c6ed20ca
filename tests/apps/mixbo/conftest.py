"""Small simulated sweeps, run once, for the tests of what is made of their folders."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from src.apps.mixbo.config import SWEEP
from src.apps.mixbo.sweep import sweep
from src.nanollama.config import compose
from src.nanollama.config.folder import open_folder
from src.nanollama.config.main import execute

SMALL = (
    "objective=simulator",
    "space.domains=[a,b,'<i>c']",
    "fidelity.model_size=[20M,400M,1B]",
    "fidelity.steps=[2000,8000]",
    "simulator.noise=0.002",
)


def run_sweep(folder: Path, *argv: str) -> Path:
    """What the command does, in this process; returns the sweep's folder."""
    arguments = [*SMALL, f"run_dir={folder}", *argv]
    cfg = compose(SWEEP, arguments)
    assert execute(inspect.unwrap(sweep), cfg, open_folder(SWEEP, cfg, arguments)) == 0
    return folder


@pytest.fixture(scope="session")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``sweeps(name, *overrides)``: the folder of a small sweep, run when first asked for. Copy it before changing it."""
    root, known = tmp_path_factory.mktemp("sweeps"), {}

    def make(name: str, *argv: str) -> Path:
        if name not in known:
            known[name] = run_sweep(root / name, *argv)
        return known[name]

    return make


@pytest.fixture(scope="session")
def kg(sweeps: Callable[..., Path]) -> Path:
    """A knowledge-gradient sweep of 12 trials: the design and four suggestions."""
    return sweeps("kg", "strategy=kg", "strategy.design=0", "budget.trials=12")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A user's folder with three domains."""
    root = tmp_path_factory.mktemp("corpus")
    for domain, text in {"count": "0123456789 ", "alpha": "abcdefghij ", "mixed": "a1b2c3d4e5 "}.items():
        (root / "texts" / domain).mkdir(parents=True)
        for i in range(12):
            (root / "texts" / domain / f"{i}.txt").write_text(f"{domain} {i} " + text * 80 + str(i))
    return root
