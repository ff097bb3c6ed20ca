"""light.csv: appends on resume, drops what is past the checkpoint, survives a torn line; the clock adds up."""

import json
import signal
import time
from dataclasses import replace

import pytest
import torch

from src.nanollama.config import Interrupted
from src.nanollama.profiler.light import COLUMNS, PHASES, Clock, Light, read_light

RECORD = {"step": 10, "tokens_per_s": 100.0, "mfu_causal": None, "split": "train"}
MEMORY = {"memory_allocated": None, "memory_reserved": None, "host_rss": 7}


def write(path, resume_step: int, steps: list[int]) -> None:
    light = Light(path, resume_step)
    for step in steps:
        light.write({**RECORD, "step": step}, dict.fromkeys(PHASES, 0.5), 10, MEMORY)
    light.close()


def test_a_resumed_run_appends_and_drops_rows_past_its_checkpoint(tmp_path) -> None:
    path = tmp_path / "light.csv"
    write(path, 0, [10, 20, 30])
    with path.open("a") as file:
        file.write("0,40,1.0,12")  # torn
    write(path, 20, [30, 40])
    write(path, 40, [50])
    rows = read_light(path)
    assert [(r["segment"], r["step"]) for r in rows] == [("0", "10"), ("0", "20"), ("1", "30"), ("1", "40"), ("2", "50")]
    assert path.read_text().count("segment") == 1 and tuple(rows[0]) == COLUMNS
    assert float(rows[0]["data_s"]) == 0.05 and rows[0]["mfu_causal"] == ""


def test_a_run_from_the_start_again_starts_the_file_again(tmp_path) -> None:
    write(tmp_path / "light.csv", 0, [10])
    write(tmp_path / "light.csv", 0, [10])
    assert [r["step"] for r in read_light(tmp_path / "light.csv")] == ["10"]


def test_laps_share_out_all_of_the_time() -> None:
    clock = Clock(torch.device("cpu"))
    began = time.perf_counter()
    clock.start()
    for phase, seconds in [("data", 0.02), ("forward", 0.04), ("data", 0.02)]:
        time.sleep(seconds)
        clock.lap(phase)
    total = time.perf_counter() - began
    read = clock.read()
    assert sum(read.values()) == pytest.approx(total, rel=0.1)
    assert read["data"] >= 0.04 and read["forward"] >= 0.04 and read["backward"] == 0
    assert sum(clock.read().values()) == 0


def test_a_training_writes_its_phases_and_its_ranks(tmp_path) -> None:
    from test_loop import StopAt
    from toy_training import ToyConfig, run_toy

    with pytest.raises(Interrupted):
        run_toy(tmp_path, ToyConfig(), StopAt(9, signal.SIGINT))
    run_toy(tmp_path, ToyConfig())
    rows = read_light(tmp_path / "light.csv")
    assert [int(r["step"]) for r in rows] == [3, 6, 9, 12] and rows[-1]["segment"] == "1"
    for row in rows:
        parts = {phase: float(row[f"{phase}_s"]) for phase in PHASES}
        assert min(parts["forward"], parts["backward"], parts["optimizer"], parts["data"]) > 0 and parts["graph"] == 0
        assert int(row["host_rss"]) > 1 << 20
    (rank,) = json.loads((tmp_path / "ranks.json").read_text())["ranks"]
    assert rank["rank"] == 0 and rank["device"] == "cpu" and 0 < rank["host_memory_available"] <= rank["host_memory"]


def test_light_can_be_left_out(tmp_path) -> None:
    from toy_training import ToyConfig, run_toy

    run_toy(tmp_path, replace(ToyConfig(), profiler=replace(ToyConfig().profiler, light=False)))
    assert not (tmp_path / "light.csv").exists()
