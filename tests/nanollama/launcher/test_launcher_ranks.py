"""Several ranks, one run folder."""

from __future__ import annotations

import re
import time

from src.nanollama.config import read_result
from src.nanollama.launcher.__main__ import main as launcher

SCRIPT = "script=tests.nanollama.launcher.toy"


def torchrun(run, *overrides):
    return launcher([SCRIPT, "launcher=bash", "torchrun=True", "cluster.nproc=2", f"run_dir={run}", *overrides])


def test_ranks_share_one_folder_and_log_apart(tmp_path):
    assert torchrun(tmp_path / "r", "text=both") == 0
    result = read_result(tmp_path / "r")
    assert (result["rank"], result["world"], result["text"]) == (0, 2, "both")
    assert {p.name for p in (tmp_path / "r/logs").iterdir()} == {"rank_0.log", "rank_1.log"}
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_failing_rank_is_shown_first_and_ends_the_others(tmp_path, capfd):
    began = time.monotonic()
    assert torchrun(tmp_path / "r", "end=raise", "end_rank=1") == 3
    assert time.monotonic() - began < 40  # the other rank waits a minute for it; importing torch twice takes its time too
    error = capfd.readouterr().err
    first = re.search(r"^(rank|Traceback|ended|RuntimeError).*", error, re.M)
    assert first and first[0].startswith("rank 1 on") and "told to raise" in error
    result = read_result(tmp_path / "r")
    assert result["status"] == "error" and result["message"].startswith("rank 1 on") and "told to raise" in result["message"]
    assert "told to raise" in (tmp_path / "r/logs/rank_1.log").read_text()
    assert "ended because rank 1 failed" in (tmp_path / "r/logs/rank_0.log").read_text()
