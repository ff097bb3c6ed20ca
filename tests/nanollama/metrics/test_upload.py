"""Uploads to wandb, offline: what is written, and that repeating sends nothing twice."""

import json
from pathlib import Path

import pytest
from offline_wandb import written

from src.nanollama.config import RunFailed
from src.nanollama.config.schema import MetricsConfig, WandbConfig
from src.nanollama.metrics.sinks import Sinks, wandb_id
from src.nanollama.metrics.upload import main, upload

pytestmark = pytest.mark.filterwarnings("ignore")  # wandb's own


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = tmp_path / "a run"
    (path / "traces").mkdir(parents=True)
    (path / "traces" / "rank0.pt.trace.json.gz").write_bytes(b"trace")
    (path / "config.yaml").write_text("optim: {lr: 0.5}\n")
    add(path, 10)
    add(path, 20)
    return path


def add(path: Path, step: int, split: str = "train") -> None:
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "split": split, "tokens": step, "loss": step / 10, "mfu_causal": None}) + "\n")


def test_repeated_uploads_send_every_record_once(run) -> None:
    assert upload(run, "p") == {"records": 2, "traces": 1}
    assert upload(run, "p") == {"records": 0, "traces": 0}
    add(run, 30)
    add(run, 20, "valid")  # an evaluation that came late
    assert upload(run, "p") == {"records": 2, "traces": 0}
    rows = written(run)
    assert [(r["step"], r.get("loss/train"), r.get("loss/valid")) for r in rows] == [
        (10, 1, None),
        (20, 2, None),
        (30, 3, None),
        (20, None, 2),
    ]
    assert json.loads((run / "wandb" / "upload.json").read_text())["p"]["sent"] == {"train": [10, 20, 30], "valid": [20]}


def test_an_evaluation_that_comes_after_those_of_later_steps_is_sent(run) -> None:
    add(run, 20, "valid")
    assert upload(run, "p")["records"] == 3
    add(run, 10, "valid")  # failed at first, taken in by the resumed run
    assert upload(run, "p") == {"records": 1, "traces": 0}
    assert upload(run, "p") == {"records": 0, "traces": 0}


def test_another_project_gets_everything_and_each_only_once(run) -> None:
    assert upload(run, "p")["records"] == upload(run, "q")["records"] == upload(run, "q", "someone")["records"] == 2
    add(run, 30)
    assert [upload(run, "q")["records"], upload(run, "q")["records"], upload(run, "p")["records"]] == [1, 0, 1]


@pytest.mark.parametrize(("mode", "message"), [("disabled", "sends nothing"), ("of-line", "must be one of online, offline")])
def test_a_mode_that_sends_nothing_does_not_count_as_sent(mode: str, message: str, run, monkeypatch, capsys) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", mode)
        assert main([str(run)]) == 2 and message in capsys.readouterr().err
    assert upload(run, "nanollama")["records"] == 2


def test_without_a_login_the_training_says_what_to_do(run, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(run / "none"))
    with pytest.raises(RunFailed, match=r"No API key configured.*WANDB_MODE=offline"):
        Sinks(run, MetricsConfig(tensorboard=False, wandb=WandbConfig(active=True)), {})


def test_what_a_run_sent_while_it_trained_is_not_sent_again(run) -> None:
    """The earlier part of the run had no wandb, so that its records are made up for."""
    cfg = MetricsConfig(tensorboard=False, wandb=WandbConfig(active=True, project="p"))
    for step in (30, 40):
        sinks = Sinks(run, cfg, {}, resume_step=step - 10)
        sinks.write({"step": step, "split": "train", "tokens": step, "loss": step / 10})
        sinks.close()
    assert upload(run, "p") == {"records": 0, "traces": 1}
    assert upload(run, "p") == {"records": 0, "traces": 0}
    assert [row["step"] for row in written(run)] == [10, 20, 30, 40]


def test_a_run_that_wandb_ignored_is_uploaded_whole(run, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        Sinks(run, MetricsConfig(tensorboard=False, wandb=WandbConfig(active=True)), {}, resume_step=20).close()
    assert upload(run, "p")["records"] == 2


def test_a_failed_upload_is_tried_again_under_the_same_id(run, monkeypatch) -> None:
    import src.nanollama.metrics.upload as module

    ids = []

    def fails(run_dir, run_id, *rest):
        ids.append(run_id)
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(module, "_send", fails)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                upload(run, "p")
    assert upload(run, "p")["records"] == 2
    stored = (run / "wandb" / "id").read_text()
    assert ids == [stored, stored]


def test_folders_of_one_name_are_different_runs(tmp_path) -> None:
    ids = []
    for parent in ("a", "b"):
        (tmp_path / parent / "0").mkdir(parents=True)
        ids.append(wandb_id(tmp_path / parent / "0"))
    assert len(set(ids)) == 2 and ids == [wandb_id(tmp_path / parent / "0") for parent in ("a", "b")]


def test_a_folder_without_metrics_is_wrong_input(tmp_path, capsys) -> None:
    assert main([str(tmp_path)]) == 2 and "no metrics.jsonl" in capsys.readouterr().err
