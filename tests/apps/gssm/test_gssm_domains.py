"""A mixture of setups: every domain keeps its own law, floor and validation split, and mixbo can sweep over its weights."""

import numpy as np
import pytest

from src.apps.gssm.config import TRAIN, domain
from src.apps.gssm.source import Domains, Law, OnFly
from src.nanollama.config import ConfigError, compose

ARGS = ["experiment=mixture", "model=pico", "data.seq_len=24"]


def test_samples_and_floors_are_those_of_the_domains_alone() -> None:
    cfg = compose(TRAIN, [*ARGS, "data.weights=[0,1,0]"])
    mixed = Domains(cfg)
    alone = OnFly(domain(cfg, "predict"), Law(domain(cfg, "predict")))
    assert np.array_equal(mixed.batch("train", 5, 9), alone.batch("train", 5, 9))
    held_out = mixed.held_out(6)
    assert list(held_out) == ["valid/infer", "valid/predict", "valid/noise"]
    assert np.array_equal(held_out["valid/predict"].floor, alone.held_out(6)["valid"].floor)
    assert mixed.floor() == alone.floor()


def test_the_floor_is_the_weighted_mean_and_orders_the_domains() -> None:
    cfg = compose(TRAIN, ARGS)
    mixed = Domains(cfg)
    floors = [source.floor().mean for source in mixed.sources.values()]
    assert floors[1] < floors[0] < floors[2] < np.log(32)
    assert mixed.floor().mean == pytest.approx(np.dot(cfg.data.weights, floors))


def test_weights_are_checked() -> None:
    for weights, word in (("[.5,.5]", "2 weights for 3 domains"), ("[.5,.5,.5]", "sum to 1")):
        with pytest.raises(ConfigError, match=word):
            compose(TRAIN, [*ARGS, f"data.weights={weights}"])
    with pytest.raises(ConfigError, match="setups"):
        compose(TRAIN, ["experiment=debug", "data.weights=[1]"])


def test_mixbo_sees_the_domains() -> None:
    assert TRAIN.domains(compose(TRAIN, ARGS)) == ("infer", "predict", "noise")
