"""Trials of a growth as they are asked for, stored and read again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..protocol import Status
from .moves import Point
from .state import Ask, Cost, Measured, Overrides, Probe, Results

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Kind = Literal["train", "probe"]


@dataclass(frozen=True)
class Wanted:
    """A training of one shape, or a probe of several. ``label``: what is tried, for people."""

    kind: Kind
    points: tuple[Point, ...]
    cohort: int
    overrides: Overrides
    round: int
    label: str
    seed: int = 0
    flops: float = 0.0


@dataclass(frozen=True)
class GrowthRecord:
    """A stored trial."""

    number: int
    status: Status
    wanted: Wanted
    measured: Measured
    costs: tuple[Cost, ...] = ()  # probe: of each point
    flops: float = 0.0
    message: str = ""
    parent: None = field(default=None, init=False)


class Growing:
    """How trials of a growth are stored: the shape as parameters, everything else as attributes. A probe has no objective."""

    maximise = False

    def parameters(self, asked: Wanted) -> dict[str, tuple[Any, BaseDistribution]]:
        """The values of all directions; per-layer ones one by one."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if asked.kind == "probe":
            return {}
        found: dict[str, tuple[Any, BaseDistribution]] = {}
        for key, value in asked.points[0]:
            entries = {f"{key}.{i}": entry for i, entry in enumerate(value)} if isinstance(value, tuple) else {key: value}
            for name, entry in entries.items():
                wide = 10**12
                found[name] = entry, IntDistribution(-wide, wide) if isinstance(entry, int) else FloatDistribution(-wide, wide)
        return found

    def attributes(self, asked: Wanted) -> dict[str, Any]:
        """JSON under one key each."""
        return {
            "kind": asked.kind,
            "points": json.dumps(asked.points),
            "cohort": asked.cohort,
            "overrides": json.dumps(asked.overrides),
            "round": asked.round,
            "label": asked.label,
            "seed": asked.seed,
            "flops": asked.flops,
        }

    def record(self, number: int, status: Status, parameters: Mapping[str, Any], attributes: Mapping[str, Any]) -> GrowthRecord:
        """A stored trial; parameters repeat what the attributes say."""
        points = tuple(as_pairs(point) for point in json.loads(attributes["points"]))
        overrides = as_pairs(json.loads(attributes["overrides"]))
        wanted = Wanted(
            attributes["kind"], points, attributes["cohort"], overrides, attributes["round"], attributes["label"],
            attributes["seed"], attributes["flops"],
        )  # fmt: skip
        curve = attributes.get("curve") or [[0, [None]]]
        known = {key: attributes.get(key) for key in ("params", "vram", "iter", "best_iter")}
        measured = Measured(attributes.get("status", "running"), curve[-1][1][0], **known)
        costs = tuple(Cost(*entry) for entry in attributes.get("costs", ()))
        charged = attributes.get("charged_flops", wanted.flops)
        return GrowthRecord(number, status, wanted, measured, costs, charged, attributes.get("message", ""))

    def value(self, values: tuple[float, ...]) -> float:
        """The final held-out loss."""
        return values[0]


def as_pairs(plain: Sequence[Sequence[Any]]) -> Point:
    """A point (or overrides) from JSON."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in plain)


def results(records: Iterable[GrowthRecord], target: str) -> Results:
    """What has ended, in order of the trials' numbers.

    Where a probe failed, what the trainings before it measured of themselves has to do: coarser, since others ran beside them.
    """
    trainings: dict[Ask, Measured] = {}
    probes: dict[Probe, Mapping[Point, Cost]] = {}
    for record in sorted(records, key=lambda record: record.number):
        wanted = record.wanted
        if record.status == "running":
            continue
        if wanted.kind == "train":
            trainings[Ask(wanted.points[0], wanted.cohort, wanted.seed)] = record.measured
            continue
        probe = Probe(wanted.points, wanted.cohort)
        if record.status == "ok":
            probes[probe] = dict(zip(wanted.points, record.costs, strict=True))
        elif probe not in probes:
            probes[probe] = {point: cost for point in probe.points if (cost := _by_trainings(trainings, point, probe.cohort, target))}
    return Results(trainings, probes)


def _by_trainings(trainings: Mapping[Ask, Measured], point: Point, cohort: int, target: str) -> Cost | None:
    runs = [one for ask, one in trainings.items() if ask.point == point and ask.cohort == cohort]
    values = [value for one in runs if (value := getattr(one, target, None)) is not None]
    if not values:
        return None
    middle = statistics.median(values)
    return Cost(middle, statistics.median(abs(value - middle) for value in values))
