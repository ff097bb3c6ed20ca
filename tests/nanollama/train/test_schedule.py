"""Schedules against their formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.config.schema import OptimConfig
from src.nanollama.train.schedule import decay_start, lr_ratio


def test_warmup_reaches_one_at_its_last_step() -> None:
    cfg = OptimConfig(schedule="constant", warmup=4)
    assert [lr_ratio(cfg, s, 100) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_passes_through_its_middle_and_ends_at_min_ratio() -> None:
    cfg = OptimConfig(schedule="cosine", warmup=0, min_ratio=0.2)
    assert lr_ratio(cfg, 0, 100) == 1
    assert lr_ratio(cfg, 50, 100) == pytest.approx(0.6)
    assert lr_ratio(cfg, 25, 100) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr_ratio(cfg, 100, 100) == pytest.approx(0.2)


def test_linear_passes_through_its_middle_and_ends_at_min_ratio() -> None:
    cfg = OptimConfig(schedule="linear", warmup=20, min_ratio=0.2)
    assert [lr_ratio(cfg, s, 100) for s in (20, 60, 100)] == pytest.approx([1, 0.6, 0.2])
    assert decay_start(cfg, 100) == 0  # every step depends on the length


def test_wsd_is_constant_until_its_decay() -> None:
    cfg = OptimConfig(schedule="wsd", warmup=10, decay=0.2, min_ratio=0)
    assert decay_start(cfg, 100) == 80
    assert {lr_ratio(cfg, s, 100) for s in range(10, 81)} == {1.0}
    assert lr_ratio(cfg, 90, 100) == pytest.approx(0.5)


@given(st.sampled_from(["constant", "linear", "cosine", "wsd"]), st.integers(0, 50), st.integers(1, 500), st.floats(0, 1), st.data())
def test_ratio_stays_between_zero_and_one(schedule, warmup, steps, share, data) -> None:
    cfg = OptimConfig(schedule=schedule, warmup=warmup, decay=share, min_ratio=share)
    assert 0 <= lr_ratio(cfg, data.draw(st.integers(0, steps)), steps) <= 1


@given(st.integers(20, 200), st.integers(1, 400))
def test_before_its_decay_a_run_is_a_prefix_of_every_longer_one(steps, more) -> None:
    for schedule in ("constant", "wsd"):
        cfg = OptimConfig(schedule=schedule, warmup=5)
        for step in range(decay_start(cfg, steps)):
            assert lr_ratio(cfg, step, steps) == lr_ratio(cfg, step, steps + more)
