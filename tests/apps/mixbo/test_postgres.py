"""Two studies at once on one PostgreSQL server. Skipped where no server is installed, or where it could only run as root."""

import gc
import inspect
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from src.apps.mixbo.build import build, suggesting
from src.apps.mixbo.config import SWEEP, SweepConfig, identity
from src.apps.mixbo.controller import Controller, Limits
from src.apps.mixbo.study import Study
from src.apps.mixbo.suggest import first_flops
from src.apps.mixbo.sweep import sweep
from src.nanollama.config import compose
from src.nanollama.config.main import run_command
from src.nanollama.launcher.signals import StopFlag


def tool(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, on the loopback interface."""
    pytest.importorskip("psycopg")
    initdb, pg_ctl = tool("initdb"), tool("pg_ctl")
    if not initdb or not pg_ctl:
        pytest.skip("no PostgreSQL server is installed (Debian package postgresql)")
    user: str | None = None
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd="/tmp", timeout=120)

    try:
        run(initdb, "-D", str(folder / "data"), "-A", "trust", "-U", "nanollama")
        options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
        run(pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    except (subprocess.CalledProcessError, PermissionError) as error:
        pytest.skip(f"this PostgreSQL cannot be started here: {error}")
    yield f"postgresql+psycopg://nanollama@127.0.0.1:{port}/postgres"
    run(pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


# Optuna drops the connection of the attempt that lost the race for the tables without closing it.
@pytest.mark.filterwarnings("ignore:.*Connection object.*:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_studies_at_once_decide_as_on_sqlite(server, tmp_path) -> None:
    argv = ["objective=simulator", "strategy=random", "space.domains=[a,b,c]", "budget.trials=6"]
    configs = [compose(SWEEP, [*argv, f"seed={seed}"]) for seed in (0, 1)]

    def run(cfg: SweepConfig, url: str | None, folder: Path) -> tuple:
        folder.mkdir()
        problem, runner = build(cfg, folder / "trials")
        with closing(Study(identity(cfg), url or Study.sqlite(folder), problem, identity(cfg))) as study:
            limits = Limits.of(cfg.budget, first_flops(problem, cfg.seed), problem.full_run)
            Controller(suggesting(problem, cfg.seed), study, runner, limits, lambda records: None).run(StopFlag())
            return study.records()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, configs, [server] * 2, [tmp_path / "pg0", tmp_path / "pg1"]))
    assert found == [run(cfg, None, tmp_path / f"lite{cfg.seed}") for cfg in configs]
    assert found[0] != found[1] and len(found[0]) == 6
    gc.collect()  # here, where its warning is expected


@pytest.mark.filterwarnings("ignore:.*Connection object.*:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sweep_keeps_its_password_to_itself(server, tmp_path, monkeypatch) -> None:
    """And the folder is the same sweep's when the password comes from elsewhere."""
    argv = ["objective=simulator", "strategy=random", "space.domains=[a,b,c]", "seed=7", f"run_dir={tmp_path / 'run'}"]
    for trials, url in ((2, server.replace("nanollama@", "nanollama:s3cret@")), (3, server)):
        line = [*argv, f"budget.trials={trials}", f"storage={url}", "metrics.wandb.active=true"]
        monkeypatch.setattr(sys, "argv", ["sweep", *line])
        assert run_command(SWEEP, inspect.unwrap(sweep), line) == 0
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert any(file.name.startswith("events.") for file in files) and any(file.suffix == ".wandb" for file in files)
        assert not [file for file in files if b"s3cret" in file.read_bytes()]
    assert len((tmp_path / "run/trials.csv").read_text().splitlines()) == 1 + 3
    gc.collect()
