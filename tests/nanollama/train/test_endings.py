"""However a training ends, its ``result.json`` says how far it came and what that cost."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from toy_training import Counting, ToyConfig, run_toy

from src.nanollama.config import Entry, read_result
from src.nanollama.config.folder import open_folder
from src.nanollama.config.main import execute

ENTRY = Entry("toy", ToyConfig)


class Breaking(Counting):
    """Stops, or fails to give, the batch of step 7."""

    def __init__(self, how: str) -> None:
        self.how = how

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        if split == "train" and start == 7 * 4:
            if self.how == "oom":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGINT if self.how == "interrupted" else signal.SIGTERM)
        return super().batch(split, start, count)


@pytest.mark.parametrize("status", ["ok", "nan", "interrupted", "requeue", "oom"])
def test_every_ending_says_what_it_cost(status, tmp_path) -> None:
    cfg = ToyConfig(run_dir=str(tmp_path / "run"))
    if status == "nan":
        cfg = replace(cfg, optim=replace(cfg.optim, lr=1e30, clip=None), train=replace(cfg.train, max_skipped=2))
    source = Counting() if status in ("ok", "nan") else Breaking(status)
    folder = open_folder(ENTRY, cfg, [])
    execute(lambda cfg, run: run_toy(run.path, cfg, source, run=run), cfg, folder)
    result = read_result(tmp_path / "run") or {}
    whole = run_toy(tmp_path / "whole", ToyConfig())
    assert result["status"] == status
    assert 0 < result["steps"] <= 12 and (status == "ok" or result["steps"] < 12)
    assert result["flops"] == pytest.approx(whole["flops"] * result["steps"] / 12)
    assert result["tokens"] == result["steps"] * 48
