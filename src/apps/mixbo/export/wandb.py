"""A space in Hydra's sweep grammar as a sweep of Weights & Biases, whose agents run our own commands.

The service checks a sweep only when it is created, which needs a network; so the published rules are checked here, and every value is
sent on its way: agent, command line, Hydra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from src.nanollama.config import ConfigError

from ..cells.axis import Axis, Value, parse, parse_space
from ..cells.config import CellsConfig
from ..cells.halving import BASE, rungs

METHODS = ("grid", "random", "bayes")
BOUNDS = {  # distribution -> keys that it needs beside itself
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "log_uniform_values": {"min", "max"},
}


def sweep(cfg: CellsConfig) -> dict[str, Any]:
    """The sweep of a comparison's space. Raises ConfigError for what would not arrive as it was meant."""
    axes = parse_space(cfg.space)
    for axis in axes.values():
        for value in axis.values:
            check_survives(axis.key, value)
    if cfg.wandb.method == "grid" and any(not axis.values for axis in axes.values()):
        raise ConfigError("wandb.method=grid needs choices and ranges only; the space has an interval")
    found: dict[str, Any] = {
        "program": cfg.script.replace(".", "/") + ".py",
        "method": cfg.wandb.method,
        "metric": {"name": cfg.wandb.metric, "goal": cfg.wandb.goal},
        "command": [
            *("${env}", "WANDB_MODE=online", "${interpreter}", "-m", cfg.script),
            *(*BASE, *cfg.overrides, "metrics.wandb.active=true", f"train.steps={cfg.steps}", f"train.seed={cfg.seed}"),
            "${args_no_hyphens}",
        ],
        "parameters": {axis.key: _parameter(axis) for axis in axes.values()},
    }
    if cfg.wandb.run_cap:
        found["run_cap"] = cfg.wandb.run_cap
    if len(rungs(cfg)) > 1:
        found["early_terminate"] = _hyperband(cfg)
    problems = violations(found)
    if problems:
        raise ConfigError("the sweep is against the rules: " + "; ".join(problems))
    return found


def _parameter(axis: Axis) -> dict[str, Any]:
    if len(axis.values) == 1:
        return {"value": axis.values[0]}
    if axis.values:
        return {"values": list(axis.values)}
    if axis.integer:
        return {"distribution": "int_uniform", "min": int(axis.low), "max": int(axis.high)}
    return {"distribution": "log_uniform_values" if axis.log else "uniform", "min": axis.low, "max": axis.high}


def _hyperband(cfg: CellsConfig) -> dict[str, Any]:
    """Bands at our rungs. W&B counts how often the metric was logged, not training steps."""
    period = next((int(text.split("=")[1]) for text in reversed(cfg.overrides) if text.startswith("eval.period=")), 0)
    if not period or cfg.steps // period < cfg.halving.eta:
        raise ConfigError(
            f"halving.min_steps stops runs by their curve of {cfg.wandb.metric}, which is logged at evaluations: add eval.period=N to "
            f"overrides, with at least halving.eta={cfg.halving.eta} of them in steps={cfg.steps} (it has eval.period={period})"
        )
    return {"type": "hyperband", "max_iter": cfg.steps // period, "s": len(rungs(cfg)) - 1, "eta": cfg.halving.eta}


def dump(found: Mapping[str, Any]) -> str:
    """YAML that reads back as it was: in YAML 1.1 a number such as 1e-4, written by hand, would come back as text."""
    text = yaml.safe_dump(dict(found), sort_keys=False)
    assert yaml.safe_load(text) == found
    return text


def check_survives(key: str, value: Value) -> None:
    """Raise ConfigError, with the reason, unless ``value`` comes out of agent and command line as it went in."""
    reason = None
    if value is None:
        reason = "null cannot pass: an agent writes the text None. Leave the key out, or make it a choice of config groups"
    elif isinstance(value, dict):
        reason = "a mapping cannot pass: an agent writes it as Python, which Hydra does not read. Use dotted keys"
    elif isinstance(value, str) and any(sign in value for sign in "=,"):
        reason = "'=' or ',' in a text cannot pass: unquoted, Hydra reads them as its own. Put such values into a config file"
    elif not _same(value, back := _parsed(key, value)):
        reason = f"it would arrive as {back!r}. Write the value that is meant, or put it into a config file"
    if reason:
        raise ConfigError(f"space.{key}: {value!r}: {reason}")


def _parsed(key: str, value: Value) -> object:
    try:
        axis = parse(key, str(value))
    except ConfigError:
        return "an error"
    return axis.values[0] if len(axis.values) == 1 else "a sweep"


def _same(one: object, other: object) -> bool:
    """Equal, and of the same type all the way down."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


def violations(found: Mapping[str, Any]) -> list[str]:
    """What the published rules for sweeps forbid: one sentence each, none for a good one."""
    said = []
    method, metric, stop = found.get("method"), found.get("metric"), found.get("early_terminate")
    if method not in METHODS:
        said.append(f"method {method!r} is none of {', '.join(METHODS)}")
    if not found.get("program"):
        said.append("program is missing")
    if (method == "bayes" or stop is not None) and not (isinstance(metric, Mapping) and metric.get("name")):
        said.append("bayes and early_terminate need metric.name")
    if isinstance(metric, Mapping) and metric.get("goal", "minimize") not in ("minimize", "maximize"):
        said.append(f"metric.goal {metric['goal']!r} is neither minimize nor maximize")
    parameters = found.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        said.append("parameters is missing or empty")
    else:
        said += [f"{key}: {text}" for key, spec in parameters.items() if (text := _parameter_violation(spec))]
    if stop is not None:
        said += _stop_violations(stop, str((metric or {}).get("name", "")), "scheduler" in found)
    return said


def _parameter_violation(spec: Mapping[str, Any]) -> str | None:
    kinds = [kind for kind in ("value", "values", "min") if kind in spec]
    if len(kinds) != 1:
        return "exactly one of value, values, or min and max"
    if kinds == ["values"]:
        return None if isinstance(spec["values"], list) and spec["values"] else "values must be a list that is not empty"
    if kinds == ["value"]:
        return None
    kind = spec.get("distribution", "uniform")
    if kind not in BOUNDS or not spec.keys() >= BOUNDS[kind]:
        return f"distribution {kind!r} with min and max is none of {', '.join(BOUNDS)}"
    numbers = [spec["min"], spec["max"]]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers) or numbers[0] >= numbers[1]:
        return f"min and max must be numbers in this order, not {numbers}"
    if kind == "int_uniform" and not all(isinstance(n, int) for n in numbers):
        return "int_uniform needs whole numbers"
    return "log_uniform_values needs min > 0" if kind == "log_uniform_values" and numbers[0] <= 0 else None


def _stop_violations(stop: Mapping[str, Any], metric: str, scheduler: bool) -> list[str]:
    said = []
    if stop.get("type") != "hyperband":
        said.append("early_terminate.type must be hyperband")
    if ("min_iter" in stop) == ("max_iter" in stop and "s" in stop):
        said.append("early_terminate needs either min_iter, or max_iter and s: with both, min_iter is ignored without a word")
    if metric.startswith("final/"):
        said.append(f"early_terminate never acts on {metric}, which is logged once, at the end: take a curve such as loss/valid")
    if scheduler:
        said.append("early_terminate and scheduler exclude each other")
    return said
