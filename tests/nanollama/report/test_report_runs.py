from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from src.nanollama.config import ConfigError
from src.nanollama.report import find_runs, read_run


def test_finds_runs_below_a_folder_once_and_in_natural_order(tmp_path: Path, gssm_run) -> None:
    for name in ("10", "9", "a"):
        gssm_run(tmp_path / "sweep" / name)
    (tmp_path / "sweep" / "9" / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "sweep" / "9" / "checkpoints" / "5" / "result.json").write_text("{}")
    runs = find_runs([tmp_path, tmp_path / "sweep" / "9"])
    assert [run.name for run in runs] == ["9", "10", "a"]
    assert all(run.status == "ok" and not run.problems for run in runs)


def test_names_tell_runs_of_different_folders_apart(tmp_path: Path, gssm_run) -> None:
    paths = [gssm_run(tmp_path / where / "same") for where in ("one", "two")]
    assert [run.name for run in find_runs(paths)] == ["one/same", "two/same"]
    assert [run.name for run in find_runs(paths[:1])] == ["same"]


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run in this folder"):
        find_runs([tmp_path])
    with pytest.raises(ConfigError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_status_without_result(tmp_path: Path, gssm_run) -> None:
    path = gssm_run(tmp_path / "run")
    (path / "result.json").unlink()
    assert read_run(path).status == "unfinished"  # started elsewhere
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    (path / "env.json").write_text(json.dumps(here))
    assert read_run(path).status == "running"
    process = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(process, 0)
    (path / "env.json").write_text(json.dumps({**here, "pid": process}))
    assert read_run(path).status == "killed"


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "result.json", "difficulty.json"])
@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe\x00", b""])
def test_damaged_files_are_named_and_do_not_raise(tmp_path: Path, gssm_run, name: str, content: bytes) -> None:
    path = gssm_run(tmp_path / "run")
    (path / name).write_bytes(content)
    run = read_run(path)
    assert [problem for problem in run.problems if problem.startswith(name)] and len(run.records) > 0


def test_torn_records(tmp_path: Path, gssm_run) -> None:
    path = gssm_run(tmp_path / "run")
    whole = (path / "metrics.jsonl").read_text()
    count = len(read_run(path).records)
    (path / "metrics.jsonl").write_text(whole + '{"step": 99, "spl')
    assert len(read_run(path).records) == count and not read_run(path).problems  # killed while writing: normal
    (path / "metrics.jsonl").write_text('garbage\n[1]\n{"step": "x", "split": "train"}\n' + whole)
    run = read_run(path)
    assert len(run.records) == count and run.problems == ("metrics.jsonl: 3 unreadable lines left out",)
