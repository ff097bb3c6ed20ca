"""Points of the search (the values of all directions) and the steps that lead from one to another. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from src.nanollama.config import ConfigError

from .names import LAYERS, short

Value = int | float | tuple[int, ...]
Point = tuple[tuple[str, Value], ...]  # (key, value) of every direction, in the order of the directions


@dataclass(frozen=True)
class Direction:
    """A setting that may grow, and by how much at least. For a per-layer setting ``step`` may hold one increment a layer."""

    key: str
    step: int | float | tuple[int | float, ...]

    def of(self, index: int | None) -> int | float:
        """The increment, of layer ``index`` for a per-layer setting."""
        if not isinstance(self.step, tuple):
            return self.step
        assert index is not None
        return self.step[min(index, len(self.step) - 1)]  # a layer that was added grows like the last


@dataclass(frozen=True)
class Move:
    """One step away from a point. ``direction``: the key, with the layer of a per-layer setting; joint moves have several."""

    kind: Literal["grow", "joint", "undo"]
    direction: str
    label: str
    point: Point


def value_of(point: Point, key: str) -> Value:
    """The value of a direction."""
    return dict(point)[key]


def replaced(point: Point, changes: Mapping[str, Value]) -> Point:
    """The point with some values changed."""
    return tuple((key, changes.get(key, value)) for key, value in point)


def grow(direction: Direction, point: Point, multiple: int, duplicate: str = "dup_middle") -> list[Move]:
    """The moves by ``multiple`` increments: one, or one for each layer of a per-layer setting (or of ``dup_each``)."""
    value = value_of(point, direction.key)
    if direction.key == LAYERS:
        return _more_layers(direction, point, multiple, duplicate)
    if isinstance(value, tuple):
        return [_element(direction, point, index, multiple) for index in range(len(value))]
    return [_move("grow", direction.key, point, {direction.key: _plus(value, multiple * direction.of(None))})]


def undo(direction: Direction, point: Point, start: Point, multiple: int) -> list[Move]:
    """The moves back towards ``start``; none where the value is there already. Added layers go from the middle."""
    value, least = value_of(point, direction.key), value_of(start, direction.key)
    if direction.key == LAYERS:
        assert isinstance(value, int) and isinstance(least, int)
        fewer = max(least, value - multiple * int(direction.of(None)))
        lists = {key: _drop(v, value - fewer) for key, v in point if isinstance(v, tuple)}
        return [_move("undo", LAYERS, point, {LAYERS: fewer, **lists})] if fewer < value else []
    if isinstance(value, tuple):
        floor = least if isinstance(least, tuple) else (least,)
        found = []
        for index, entry in enumerate(value):
            back = max(entry - multiple * int(direction.of(index)), min(int(f) for f in floor))
            if back < entry:
                found.append(_at("undo", direction.key, point, index, back))
        return found
    back_to = _plus(value, -multiple * direction.of(None))
    lowest = max(back_to, least) if direction.of(None) > 0 else min(back_to, least)  # type: ignore[type-var]
    return [_move("undo", direction.key, point, {direction.key: lowest})] if lowest != value else []


def together(moves: Sequence[Move], point: Point) -> Move:
    """One move that makes all of ``moves``, which change different settings."""
    changes = {key: value for move in moves for key, value in move.point if value != value_of(point, key)}
    labels = " + ".join(move.label for move in moves)
    return Move("joint", " + ".join(move.direction for move in moves), labels, replaced(point, changes))


def independent(a: Move, b: Move, point: Point) -> bool:
    """Whether two moves change different settings, so that they can be made together."""
    return not (changed(a.point, point) & changed(b.point, point))


def changed(new: Point, old: Point) -> set[str]:
    """Keys whose values differ."""
    return {key for (key, value), (_, before) in zip(new, old, strict=True) if value != before}


def check(direction: Direction, point: Point) -> None:
    """Raise ConfigError unless the direction's value is a number, or a list with an increment for each entry."""
    value = value_of(point, direction.key)
    name = f"growth.param_names: {short(direction.key)}"
    entries = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(entry, (int, float)) and not isinstance(entry, bool) for entry in entries):
        raise ConfigError(f"{name} has the value {value!r} in the baseline, which is no number (or list of numbers) that could grow")
    if isinstance(direction.step, tuple):
        if not isinstance(value, tuple):
            raise ConfigError(f"growth.increments: {short(direction.key)} is one number, so it takes one increment, not {direction.step}")
        if len(direction.step) != len(value):
            raise ConfigError(f"growth.increments: {short(direction.key)} has {len(value)} entries, but {len(direction.step)} increments")
    steps = direction.step if isinstance(direction.step, tuple) else (direction.step,)
    if not all(steps):
        raise ConfigError(f"growth.increments: the increment of {short(direction.key)} is 0, so nothing would change")
    if all(isinstance(entry, int) for entry in entries) and not all(float(step).is_integer() for step in steps):
        raise ConfigError(f"growth.increments: {short(direction.key)} counts in whole numbers, its increment is {direction.step}")


# --- one value -------------------------------------------------------------------------------------------------------------------


def _more_layers(direction: Direction, point: Point, multiple: int, duplicate: str) -> list[Move]:
    layers = value_of(point, LAYERS)
    assert isinstance(layers, int)
    added = multiple * int(direction.of(None))
    lists = {key: value for key, value in point if isinstance(value, tuple)}
    where = range(layers) if duplicate == "dup_each" and lists else [(layers - 1) // 2]
    moves = []
    for index in where:
        longer: dict[str, Value] = {key: (*v[:index], *[v[index]] * (added + 1), *v[index + 1 :]) for key, v in lists.items()}
        name = LAYERS if len(where) == 1 else f"{LAYERS}@{index}"
        moves.append(_move("grow", name, point, {LAYERS: layers + added, **longer}))
    return moves


def _element(direction: Direction, point: Point, index: int, multiple: int) -> Move:
    value = value_of(point, direction.key)
    assert isinstance(value, tuple)
    return _at("grow", direction.key, point, index, int(_plus(value[index], multiple * direction.of(index))))


def _at(kind: Literal["grow", "undo"], key: str, point: Point, index: int, entry: int) -> Move:
    value = value_of(point, key)
    assert isinstance(value, tuple)
    new = (*value[:index], entry, *value[index + 1 :])
    name = f"{short(key)}[{index}]"
    return Move(kind, f"{key}[{index}]", f"{name} {value[index]}→{entry}", replaced(point, {key: new}))


def _move(kind: Literal["grow", "undo"], direction: str, point: Point, changes: Mapping[str, Value]) -> Move:
    key = direction.partition("@")[0]
    layer = f" at {direction.partition('@')[2]}" if "@" in direction else ""
    label = f"{short(key)} {_shown(value_of(point, key))}→{_shown(changes[key])}{layer}"
    return Move(kind, direction, label, replaced(point, changes))


def _plus(value: Value, step: int | float) -> int | float:
    assert not isinstance(value, tuple)
    return value + round(step) if isinstance(value, int) else float(f"{value + step:.12g}")  # .1 + .2 is .3 here


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _drop(value: tuple[int, ...], count: int) -> tuple[int, ...]:
    for _ in range(count):
        middle = (len(value) - 1) // 2
        value = (*value[:middle], *value[middle + 1 :])
    return value


def pairs(moves: Sequence[Move], point: Point) -> Iterator[Move]:
    """Every two of ``moves`` that can be made together."""
    for i, a in enumerate(moves):
        for b in moves[i + 1 :]:
            if independent(a, b, point):
                yield together([a, b], point)
