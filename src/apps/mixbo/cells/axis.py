"""One searched key in Hydra's sweep grammar: ``choice(a, b)``, ``range(1, 7)``, ``interval(0, 1)``, ``tag(log, interval(1e-4, 1e-2))``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.nanollama.config import ConfigError, quoted
from src.nanollama.config.compose import flatten

Value = bool | int | float | str | list[Any] | dict[str, Any] | None


@dataclass(frozen=True)
class Axis:
    """A key and what it may be: one of ``values``, or a number from ``low`` to ``high`` (whole if ``integer``, log-uniform if ``log``)."""

    key: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def sample(self, rng: np.random.Generator) -> Value:
        """A random point."""
        if self.values:
            return self.values[int(rng.integers(len(self.values)))]
        if self.log:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return int(rng.integers(int(self.low), int(self.high), endpoint=True)) if self.integer else float(rng.uniform(self.low, self.high))


def parse(key: str, text: object) -> Axis:
    """Read ``key: text`` of a space. Text that is no sweep stands for itself, as the only value.

    Raises:
        ConfigError: not of Hydra's grammar, or a sweep with no meaning here (glob, empty, upside down, from 0 on a log scale).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    if not isinstance(text, str):
        return Axis(key, (plain(text),))
    try:
        found = OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException as error:
        raise ConfigError(f"space.{key}: {text!r} is not of Hydra's sweep grammar: {' '.join(str(error).split())}") from error
    if isinstance(found, ChoiceSweep):
        return Axis(key, tuple(plain(value) for value in found.list))
    if isinstance(found, RangeSweep):
        steps = [float(number) for number in (found.start or 0, found.stop or 0, found.step)]
        if steps[2] <= 0 or steps[1] <= steps[0]:
            raise ConfigError(f"space.{key}: {text} is empty; range(start, stop) goes up from start to below stop")
        numbers = np.arange(*steps).tolist()
        whole = all(isinstance(number, int) for number in (found.start, found.stop, found.step))
        return Axis(key, tuple(int(number) for number in numbers) if whole else tuple(numbers))
    if isinstance(found, IntervalSweep):
        return _interval(key, text, found)
    if isinstance(found, Glob):
        raise ConfigError(f"space.{key}: {text}: only choice, range and interval make a space")
    return Axis(key, (plain(found),))


def _interval(key: str, text: str, found: Any) -> Axis:
    low, high, log = float(found.start), float(found.end), "log" in found.tags
    if not low < high or (log and low <= 0) or found.tags - {"log"}:
        raise ConfigError(f"space.{key}: {text}: an interval goes up from a number, above 0 with tag(log, ...), and takes no other tag")
    whole = isinstance(found.start, int) and isinstance(found.end, int)
    if whole and log:
        raise ConfigError(f"space.{key}: {text}: write whole numbers on a log scale as choice(...)")
    return Axis(key, (), low, high, log, whole)


def plain(value: Any) -> Value:
    """A value of Hydra's parser as Python's own."""
    if type(value).__name__ == "QuotedString":
        return str(value.text)
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(inner) for key, inner in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def override(key: str, value: Value) -> str:
    """``key=value`` for Hydra, taken literally."""
    if isinstance(value, str):
        return f"{key}={quoted(value)}"
    if isinstance(value, list):
        return f"{key}=[{','.join(override('', inner)[1:] for inner in value)}]"
    return f"{key}={json.dumps(value)}"


def parse_space(space: Mapping[str, object]) -> dict[str, Axis]:
    """Every axis of a space, whose keys may be dotted or nested (as the command line nests them; it wins over a file)."""
    if not space:
        raise ConfigError("space is empty: map keys to values in Hydra's sweep grammar, e.g. space: {optim.lr: 'choice(1e-3, 3e-3)'}")
    return {key: parse(key, text) for key, text in flatten(space).items()}
