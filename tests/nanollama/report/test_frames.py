from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from src.nanollama.report import find_runs, frames


def test_summary_is_what_result_says(tmp_path: Path, gssm_run) -> None:
    path = gssm_run(tmp_path / "run", floor=1.7)
    result = json.loads((path / "result.json").read_text())
    (row,) = frames.summary(find_runs([path]))
    for key in ("parameters", "steps", "tokens", "loss", "bayes_loss", "excess_loss", "excess_loss_se", "wall_s"):
        assert row[key] == result[key], key
    assert row["tokens_per_s"] == pytest.approx(30_155)  # median over steps 10, 20, .. 300 of 30,000 + step
    assert row["status"] == "ok" and row["problems"] == ""


def test_summary_of_an_unfinished_run_goes_as_far_as_its_records(tmp_path: Path, gssm_run) -> None:
    path = gssm_run(tmp_path / "run", steps=50)
    (path / "result.json").unlink()
    (row,) = frames.summary(find_runs([path]))
    assert (row["steps"], row["tokens"], row["loss"]) == (50, 50 * 4096, None)


def test_a_failure_says_why(tmp_path: Path, gssm_run) -> None:
    path = gssm_run(tmp_path / "run")
    (path / "result.json").write_text(json.dumps({"status": "error", "message": "Traceback ...\n  line\nKeyError: 'x'\n"}))
    (row,) = frames.summary(find_runs([path]))
    assert row["status"] == "error" and row["problems"] == "KeyError: 'x'"


def test_curves_keep_every_record(tmp_path: Path, gssm_run) -> None:
    path = gssm_run(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert frames.curves(find_runs([path])) == [{"run": "run", **line} for line in lines]


def test_text_losses_pair_model_and_compressors(tmp_path: Path, text_run) -> None:
    rows = {row["text"]: row for row in frames.text_losses(find_runs([text_run(tmp_path / "run")]))}
    assert set(rows) == {"python", "cpp", "prose", "web", "data"}
    fall = 5 * (1 + 300 / 20) ** -0.7
    assert rows["prose"]["bits_per_byte"] == pytest.approx(2.9 + fall)
    assert rows["prose"]["bits_per_byte_se"] == pytest.approx(0.01 / math.log(2))  # .01 nats per byte
    assert (rows["prose"]["gzip"], rows["prose"]["xz"]) == (pytest.approx(3.4), pytest.approx(3.15))


def test_difficulty_and_settings(tmp_path: Path, gssm_run, difficulty_run) -> None:
    difficulty_run(tmp_path / "d", floor=1.25, alpha_X=0.05)
    gssm_run(tmp_path / "a", train={"steps": 10, "seed": 0})
    gssm_run(tmp_path / "b", train={"steps": 20, "seed": 0})
    runs = find_runs([tmp_path])
    (row,) = frames.difficulty(runs)
    assert (row["run"], row["alpha_X"], row["bayes_loss"], row["gzip_legacy"]) == ("d", 0.05, 1.25, 0.748)
    found = {"settings": [{"name": "x", "alpha_X": 1e-3, "bayes_loss": 1.5}, {"name": "y", "alpha_X": 0.1, "bayes_loss": None}]}
    (tmp_path / "d" / "difficulty.json").write_text(json.dumps(found))
    rows = frames.difficulty(find_runs([tmp_path / "d"]))
    assert [(row["setting"], row["alpha_X"], row["bayes_loss"]) for row in rows] == [("d: x", 1e-3, 1.5), ("d: y", 0.1, None)]
    keys, rows = frames.differing_settings([run for run in runs if run.name != "d"])
    assert keys == ["train.steps"] and [row["train.steps"] for row in rows] == [10, 20]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    assert [frames.number(value) for value in (1, 2.5, math.nan, math.inf, True, "3", None)] == [1.0, 2.5, None, None, None, None, None]
