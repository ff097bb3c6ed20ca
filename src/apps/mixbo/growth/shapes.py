"""Shapes of the model that grows, as configs of its training: what is valid, and what it costs by arithmetic."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from src.nanollama.config import ConfigError, quoted
from src.nanollama.config.compose import compose_node, typed
from src.nanollama.config.explain import all_keys
from src.nanollama.config.main import entry_of
from src.nanollama.model.sizing import num_params
from src.nanollama.profiler import flops

from ..options import TrainingConfig
from .moves import Direction, Point, Value, check
from .names import SEED, STEPS, ours, settings, short
from .options import GrowthConfig
from .state import Overrides

# What every trial gets before the user's own settings: one evaluation, at the end (the final loss on fixed sequences decides; the best
# of many evaluations would flatter), and no second copy of the metrics. Only those that the command has.
BASE = {"eval.period": 0, "checkpoint.keep": 1, "metrics.tensorboard": False}


class Shapes:
    """The baseline's training and everything that may become of it. Composed and checked when built, before anything is trained."""

    def __init__(self, training: TrainingConfig, growth: GrowthConfig) -> None:
        from omegaconf import OmegaConf

        self.training, self.growth, self.entry = training, growth, entry_of(training.script)
        schema = self.entry.schema
        known = set(all_keys(schema))
        base = {key: value for key, value in BASE.items() if key in known}
        self.baseline = base | settings(growth.baseline, schema, "growth.baseline")
        argv = [f"config={training.config}"] if training.config else []
        node, _ = compose_node(self.entry, [*argv, *training.overrides])
        self._values: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
        self.config = cache(self._config)
        first = self.config((), ())
        keys = [ours(name, schema, "growth.param_names") for name in growth.param_names]
        if len(set(keys)) != len(keys):
            raise ConfigError(f"growth.param_names: {list(growth.param_names)} name one setting twice")
        steps = growth.increments if len(growth.increments) > 1 else growth.increments * len(keys)
        self.directions = tuple(Direction(key, step) for key, step in zip(keys, steps, strict=True))
        self.start: Point = tuple((key, _value(first, key)) for key in keys)
        for direction in self.directions:
            check(direction, self.start)
        self.steps, self.seed = int(_at(first, STEPS)), int(_at(first, SEED))
        self.config(self.start, ())

    def overrides(self, given: Mapping[str, Any]) -> Overrides:
        """``growth.override`` under our keys; tried on the baseline. Raises ConfigError for what it may not change."""
        found = settings(given, self.entry.schema, "growth.override")
        for direction in self.directions:
            if direction.key in found:
                raise ConfigError(f"growth.override: {short(direction.key)} is a direction of the growth; only the training may change")
        if SEED in found:
            raise ConfigError("growth.override: the seeds belong to the search; growth.baseline sets the first")
        overrides = tuple(found.items())
        self.config(self.start, overrides)
        return overrides

    def _config(self, point: Point, overrides: Overrides) -> Any:
        from omegaconf import OmegaConf

        values = copy.deepcopy(self._values)
        for key, value in {**self.baseline, **dict(overrides), **dict(point)}.items():
            _set(values, key, value)
        try:
            return typed(self.entry, OmegaConf.create(values))
        except ConfigError as error:
            origin = "growth.baseline" if point in ((), getattr(self, "start", ())) else "shape"
            raise ConfigError(f"{origin}: {error}") from error

    def params(self, point: Point, overrides: Overrides) -> float:
        """Number of parameters, without building the model; ConfigError for a shape that cannot be."""
        return float(num_params(self.config(point, overrides).model))

    def flops(self, point: Point, overrides: Overrides) -> float:
        """FLOPs of one step."""
        cfg = self.config(point, overrides)
        return float(flops.training(cfg.model, cfg.data.seq_len) * cfg.data.seq_len * cfg.data.batch_size)

    def trained_steps(self, overrides: Overrides) -> int:
        """Length of a cohort's trainings."""
        return int(dict(overrides).get(STEPS, self.steps))  # type: ignore[arg-type]

    def words(self, point: Point, overrides: Overrides) -> list[str]:
        """A shape in a cohort as words of the training's command line."""
        file = [f"config={self.training.config}"] if self.training.config else []
        settings_ = {**self.baseline, **dict(overrides), **dict(point)}
        return [*file, *self.training.overrides, *(f"{key}={word(value)}" for key, value in settings_.items())]

    def command(self, point: Point, overrides: Overrides, seed: int, run_dir: Path) -> tuple[str, ...]:
        """The command line of one training; ``seed`` counts from the baseline's."""
        own = [f"{SEED}={self.seed + seed}", f"run_dir={quoted(run_dir)}"]
        return (sys.executable, "-m", self.training.script, *self.words(point, overrides), *own)


def word(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(word(entry) for entry in value)}]"
    return repr(value) if isinstance(value, (int, float)) else quoted(value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        values = values.setdefault(part, {})
    values[leaf] = list(value) if isinstance(value, tuple) else value


def _at(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        if not hasattr(cfg, part):
            raise ConfigError(f"training.script: this command has no setting {key}, which growth needs")
        cfg = getattr(cfg, part)
    return cfg


def _value(cfg: Any, key: str) -> Value:
    value = _at(cfg, key)
    if value is None:
        raise ConfigError(f"growth.param_names: {short(key)} has no value in the baseline; give it one in growth.baseline")
    return tuple(value) if isinstance(value, (list, tuple)) else value  # type: ignore[no-any-return]
