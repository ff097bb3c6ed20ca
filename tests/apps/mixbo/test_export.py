"""Spaces in Hydra's grammar, their export to wandb, and the way of every value back: agent, command line, Hydra."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from src.apps.mixbo.cells.axis import Axis, override, parse, parse_space
from src.apps.mixbo.cells.config import CELLS
from src.apps.mixbo.export.macros import expand, overrides
from src.apps.mixbo.export.wandb import check_survives, dump, sweep, violations
from src.nanollama.config import ConfigError, compose
from src.nanollama.config.compose import as_dict
from src.nanollama.config.main import entry_of

ROOT = Path(__file__).parents[3]
SPACE = {
    "model": "choice(pico, nano)",
    "optim.lr": "tag(log, interval(1e-5, 1e-2))",
    "optim.weight_decay": "choice(0.0, 0.01, 1e-6)",
    "optim.momentum": "interval(0.5, 1)",
    "data.batch_size": "range(2, 9, 2)",
    "data.seq_len": "int(interval(16, 64))",
    "train.precision": "choice(fp32, bf16)",
    "metrics.tensorboard": "choice(true, false)",
    "optim.betas": "choice([0.9, 0.95], [0.8, 0.99])",
    "optim.warmup": 3,
}


def space_file(folder: Path, space: dict, **more) -> str:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({"space": space, "cells": [], "overrides": ["experiment=debug"], **more}))
    return str(file)


def sampled(spec: dict, rng: np.random.Generator) -> object:
    """What a sweep's server might pick for one parameter, as JSON brings it to an agent."""
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return spec["values"][int(rng.integers(len(spec["values"])))]
    low, high = spec["min"], spec["max"]
    if spec["distribution"] == "int_uniform":
        return int(rng.integers(low, high, endpoint=True))
    if spec["distribution"] == "uniform":
        return float(rng.uniform(low, high))
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def at(config: dict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def same(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_every_sampled_value_arrives_with_its_type(tmp_path: Path) -> None:
    cfg = compose(CELLS, [space_file(tmp_path, SPACE)])
    written = yaml.safe_load(dump(sweep(cfg)))  # what the service would read
    assert written["parameters"]["optim.lr"] == {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}
    assert written["parameters"]["optim.weight_decay"]["values"] == [0.0, 0.01, 1e-6]
    assert written["parameters"]["optim.warmup"] == {"value": 3}
    rng = np.random.default_rng(0)
    for _ in range(6):
        parameters = {key: sampled(spec, rng) for key, spec in written["parameters"].items()}
        argv = expand(written["command"], written["program"], parameters)
        assert argv[:5] == ["/usr/bin/env", "WANDB_MODE=online", "python", "-m", "src.apps.gssm.train"]
        found = as_dict(compose(entry_of(argv[4]), overrides(argv)))
        preset = yaml.safe_load((ROOT / "configs" / "model" / f"{parameters.pop('model')}.yaml").read_text())
        assert found["model"]["emb_dim"] == preset["emb_dim"]
        for key, value in parameters.items():
            assert same(at(found, key), value), (key, value, at(found, key))


@given(value=st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=8)))
@settings(max_examples=150, deadline=None)
def test_a_value_survives_or_is_refused(value: object) -> None:
    """No value is exported that Hydra would read as another one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        check_survives("key", value)  # type: ignore[arg-type]
    except ConfigError:
        return
    (argument,) = expand(["${args_no_hyphens}"], "p", {"key": value})
    back = OverridesParser.create().parse_override(argument)
    assert not back.is_sweep_override() and same(back.value(), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null,3", "null cannot pass"),
        ("choice({b: 1}, {b: 2})", "a mapping cannot pass"),
        ("choice('a=b', c)", "'=' or ','"),
        ("choice('a,b', c)", "'=' or ','"),
        ("choice('5', '6')", "would arrive as 5"),
        ("choice('true', x)", "would arrive as True"),
        ("glob(*)", "only choice, range and interval"),
        ("choice(", "not of Hydra's sweep grammar"),
        ("range(5, 1)", "is empty"),
        ("interval(1, 0)", "goes up"),
        ("tag(log, interval(0, 1))", "above 0"),
        ("tag(fast, interval(0, 1))", "no other tag"),
    ],
)
def test_refusals_name_key_and_reason(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"space.train.precision: .*") as caught:
        sweep(compose(CELLS, [space_file(tmp_path, {"train.precision": text})]))
    assert message in str(caught.value)


def test_unknown_keys_and_empty_spaces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
        compose(CELLS, [space_file(tmp_path, {"optim.lrr": "choice(1, 2)"})])
    with pytest.raises(ConfigError, match="space is empty"):
        compose(CELLS, [space_file(tmp_path, {})])
    with pytest.raises(ConfigError, match=r"cells: model.family has to be in space"):
        compose(CELLS, [space_file(tmp_path, {"optim.lr": "choice(1, 2)"}, cells=["model.family"])])
    with pytest.raises(ConfigError, match=r"wandb.method=grid"):
        sweep(compose(CELLS, [space_file(tmp_path, {"optim.lr": "interval(0, 1)"}), "wandb.method=grid"]))


GOOD = {"program": "p.py", "method": "bayes", "metric": {"name": "loss/valid", "goal": "minimize"}, "parameters": {"a": {"values": [1, 2]}}}
BAND = {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bayesian"}, "method"),
        ({"metric": None}, "need metric.name"),
        ({"metric": {"name": "x", "goal": "max"}}, "metric.goal"),
        ({"program": None}, "program"),
        ({"parameters": {}}, "empty"),
        ({"parameters": {"a": {"value": 1, "values": [1]}}}, "exactly one"),
        ({"parameters": {"a": {"values": []}}}, "not empty"),
        ({"parameters": {"a": {"min": 0, "max": "1e-4"}}}, "must be numbers"),
        ({"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "min > 0"),
        ({"parameters": {"a": {"distribution": "int_uniform", "min": 0.5, "max": 3}}}, "whole numbers"),
        ({"parameters": {"a": {"distribution": "wild", "min": 0, "max": 1}}}, "is none of"),
        ({"early_terminate": {**BAND, "min_iter": 3}}, "min_iter is ignored"),
        ({"early_terminate": {"type": "hyperband"}}, "either min_iter"),
        ({"early_terminate": BAND, "scheduler": {}}, "exclude each other"),
        ({"early_terminate": BAND, "metric": {"name": "final/test_accuracy", "goal": "maximize"}}, "never acts"),
    ],
)
def test_the_published_rules(change: dict, message: str) -> None:
    assert not violations({**GOOD, "early_terminate": BAND})
    (said,) = violations({**GOOD, **change})
    assert message in said


def test_bands_are_counted_in_evaluations(tmp_path: Path) -> None:
    more = {"steps": 900, "halving": {"eta": 3, "min_steps": 100}, "overrides": ["experiment=debug", "eval.period=100"]}
    cfg = compose(CELLS, [space_file(tmp_path, {"optim.lr": "choice(1e-3, 1e-2)"}, **more)])
    assert sweep(cfg)["early_terminate"] == {"type": "hyperband", "max_iter": 9, "s": 2, "eta": 3}
    more["overrides"] = ["experiment=debug"]
    with pytest.raises(ConfigError, match=r"add eval\.period=N"):
        sweep(compose(CELLS, [space_file(tmp_path, {"optim.lr": "choice(1e-3, 1e-2)"}, **more)]))


def test_small_numbers_are_numbers_in_the_file() -> None:
    text = dump({"a": [1e-4, 1e-5, 1e22, 3, True, "1e-4"]})
    back = yaml.safe_load(text)["a"]
    assert [type(value) for value in back] == [float, float, float, int, bool, str]


@pytest.mark.parametrize("value", ["a b", "it's", "x=1,y", "5", "null", "", 0.1, 3, True, None, [1, "a,b"]])
def test_our_own_command_lines_carry_anything(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    back = OverridesParser.create().parse_override(override("key", value))  # type: ignore[arg-type]
    found = parse("key", override("key", value).partition("=")[2]).values  # type: ignore[arg-type]
    assert not back.is_sweep_override() and same(found[0], value)


def test_samples_stay_inside() -> None:
    rng = np.random.default_rng(0)
    axes = parse_space({"a": "tag(log, interval(1e-4, 1))", "b": "int(interval(1, 3))", "c": {"d": "x,y"}})
    assert set(axes) == {"a", "b", "c.d"}
    drawn = [axes["a"].sample(rng) for _ in range(400)]
    assert min(drawn) >= 1e-4 and max(drawn) <= 1 and 0.3 < np.mean([value < 1e-2 for value in drawn]) < 0.7
    assert {axes["b"].sample(rng) for _ in range(50)} == {1, 2, 3}
    assert Axis("k", ("x", "y")) == parse("k", "choice(x, y)") == parse("k", "x,y")


def test_the_command(tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "src.apps.mixbo.export", *argv], capture_output=True, text=True, timeout=120, cwd=ROOT)

    done = run("wandb", "phase1_sweep", f"out={tmp_path / 'sweep.yaml'}")
    assert done.returncode == 0 and "wandb sweep" in done.stdout, done.stderr
    written = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert len(written["parameters"]["model.family"]["values"]) == 7 and written["early_terminate"]["eta"] == 3
    bad = run("wandb", "phase1_sweep", "wandb.metric=final/test_accuracy")
    assert bad.returncode == 2 and "never acts" in bad.stderr
    assert run("excel", "phase1_sweep").returncode == 2
