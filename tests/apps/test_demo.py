"""The demo as a user runs it, in its short form: every command for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from src.apps import demo
from src.nanollama.config import ConfigError, RunFailed, read_result


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "src.apps.demo", "--quick", f"run_dir={folder}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_quick_demo_does_the_whole_job(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = start(folder)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    found = {name: demo.read_difficulty(folder, name) for name in ("infer", "predict", "matched")}
    gap = abs(found["matched"]["bayes_loss"] - found["predict"]["bayes_loss"])
    assert gap <= found["predict"]["bayes_loss_se"] < 0.1 < found["infer"]["bayes_loss"] - found["predict"]["bayes_loss"]
    assert "equal within its standard error" in output and f"{found['infer']['bayes_loss']:.4f}" in output
    for name in ("infer", "predict", "matched", "text"):
        result = read_result(folder / "train" / name)
        assert result and result["status"] == "ok" and result["steps"] == demo.QUICK.steps
        records = [json.loads(line) for line in (folder / "train" / name / "metrics.jsonl").read_text().splitlines()]
        keys = {"loss", "tokens_per_s", "grad_norm", "lr"} | ({"bayes_loss", "excess_loss"} if name != "text" else set())
        assert all(keys <= record.keys() for record in records if record["split"] == "train")
        assert any((folder / "train" / name / "tb").iterdir())
    best = json.loads((folder / "sweep" / "best.json").read_text())
    assert best["trials"] == 3 and best["steps"] == 4 and sum(best["weights"].values()) == pytest.approx(1.0)
    assert f"best mixture for nano at step 4 by 3 trials: {demo.tell_sweep(folder).partition(': ')[2]}" in output
    page = (folder / "report.html").read_text()
    assert all(title in page for title in ("The best mixture for nano", "Which fidelities were bought, and when"))
    assert str(folder / "report.html") in output and demo.TITLE in page
    assert all(f"train/{name}" in page for name in ("infer", "predict", "matched", "text"))
    assert (folder / "logs" / "train-infer.log").read_text().startswith("$ python -m src.apps.gssm.train experiment=debug alpha_X=1e-3")


def test_interrupting_ends_every_command(tmp_path: Path) -> None:
    process = start(tmp_path / "demo")
    logs = tmp_path / "demo" / "logs"
    wait_for(lambda: logs.is_dir() and any(logs.iterdir()))
    children = children_of(process.pid)
    assert children
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in output
    assert not [child for child in children if alive(child)]


def test_an_interrupt_while_a_command_starts_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_all([step("difficulty/any", "src.apps.gssm.difficulty", "experiment=debug")], tmp_path)
    assert started and all(process.poll() is not None for process in started)


def test_a_failing_step_stops_the_demo_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    marker = tmp_path / "later"
    bad = step("train/bad", "src.apps.gssm.train", "experiment=debug", "train.steps=0")
    later = step("later", "src.apps.gssm.train", f"run_dir={marker}", after=("train/bad",))
    with pytest.raises(RunFailed, match=r"train/bad failed: (.|\n)*error: .*train\.steps = 0(.|\n)*log: .*train-bad\.log"):
        demo.run_all([bad, later], tmp_path)
    assert not marker.exists()


def test_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes --quick and run_dir"):
        demo.place(["--fast"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        demo.place([f"run_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"cannot make the folder .*: Not a directory; give a writable place"):
        demo.place([f"run_dir={tmp_path / 'file' / 'below'}"])
    assert demo.place([f"run_dir={tmp_path / 'new'}"]) == tmp_path / "new"


def step(name: str, module: str, *arguments: str, after: tuple[str, ...] = ()) -> demo.Step:
    return demo.Step(name, module, lambda folder: arguments, lambda folder: "", after)


def wait_for(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
