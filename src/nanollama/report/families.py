"""The section on families of architectures: what each reaches at equal size, and how large another would have to be."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.compose import flatten
from .format import UNKNOWN, fixed, si
from .frames import number
from .page import Cell, Column, Figure, Section, Table
from .runs import Run
from .traces import Trace

COLUMNS = (
    Column("Family", numeric=False),
    Column("Parameters"),
    Column("Seeds"),
    Column("Loss", "nats/token, 95 % interval"),
    Column("Accuracy"),
    Column("To the best other", "nats/token at this size"),
    Column("Equal loss", "parameters, best other / own"),
    Column("Pareto", "front", numeric=False),
)
UNCOMPARED = ("model", "run_dir", "name", "cluster", "metrics", "checkpoint", "profiler")  # not what a setting is told apart by
COMPARED = ("final/test_loss", "final/test_accuracy", "parameters", "tokens")  # of a result
CAPTION = (
    "A point is the mean over seeds of the cell's best setting, bars are 95 % intervals (Student's t; none with one seed). The dashed line "
    "is the Pareto front: nothing smaller is better. Accuracy per parameter, which every run also logs, mostly tells the smallest model."
)


@dataclass(frozen=True)
class Point:
    """One family at one size: mean loss over ``seeds`` runs with the half width of its 95 % interval, and mean accuracy."""

    family: str
    parameters: float
    seeds: int
    loss: float
    interval: float | None
    accuracy: float


def families_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """Table and figure; None with fewer than two families among the finished runs."""
    found = points(runs)
    if len({point.family for point in found}) < 2:
        return None
    front = pareto(found)
    rows = [_row(point, found, point in front) for point in found]
    colour = {str(family): hue[run.name] for run in reversed(runs) if (family := run.model.get("family"))}
    return Section("Families at equal numbers of parameters", [Table(COLUMNS, rows), _figure(found, front, colour)])


def points(runs: Sequence[Run]) -> list[Point]:
    """The cells of the comparison, by family, then size. Of each, the longest runs, and among them the setting of the lowest mean loss."""
    cells: dict[tuple[str, str], dict[tuple[float, str], list[Run]]] = {}
    for run in runs:
        family = run.model.get("family")
        if run.status != "ok" or not family or any(number(run.result.get(key)) is None for key in COMPARED):
            continue
        key = (str(family), str(run.model.get("target_params") or run.result["parameters"]))
        setting = (float(run.result["tokens"]), _setting(run))
        cells.setdefault(key, {}).setdefault(setting, []).append(run)
    found = []
    for (family, _), tried in cells.items():
        longest = max(tokens for tokens, _ in tried)
        found.append(min((_point(family, group) for (tokens, _), group in tried.items() if tokens == longest), key=lambda p: p.loss))
    order = list(dict.fromkeys(point.family for point in found))
    return sorted(found, key=lambda point: (order.index(point.family), point.parameters))


def _setting(run: Run) -> str:
    flat = flatten({key: value for key, value in run.config.items() if key not in UNCOMPARED})
    return repr(sorted((key, repr(value)) for key, value in flat.items() if key != "train.seed"))


def _point(family: str, runs: Sequence[Run]) -> Point:
    losses = [float(run.result["final/test_loss"]) for run in runs]
    accuracy = statistics.mean(float(run.result["final/test_accuracy"]) for run in runs)
    return Point(family, float(runs[0].result["parameters"]), len(runs), statistics.mean(losses), interval(losses), accuracy)


def interval(values: Sequence[float]) -> float | None:
    """Half width of the 95 % interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def pareto(found: Sequence[Point]) -> list[Point]:
    """The points to which no other of the same size or less is better, by size. What differs by less than 1 % is of the same size."""
    front = [p for p in found if not any(q.loss < p.loss and q.parameters < 1.01 * p.parameters for q in found)]
    return sorted(front, key=lambda point: point.parameters)


def loss_at(curve: Sequence[Point], parameters: float) -> float | None:
    """Loss of a family at a size between two of its own, linear in log size; None outside of what was trained (by more than 1 %)."""
    for point in curve:
        if abs(point.parameters / parameters - 1) < 0.01:
            return point.loss
    for low, high in itertools.pairwise(curve):
        if low.parameters <= parameters <= high.parameters:
            share = math.log(parameters / low.parameters) / math.log(high.parameters / low.parameters)
            return low.loss + share * (high.loss - low.loss)
    return None


def size_for(curve: Sequence[Point], loss: float) -> float | None:
    """The smallest size at which a family reaches a loss, linear in log size; None where it was not seen to cross it."""
    for low, high in itertools.pairwise(curve):
        if low.loss >= loss >= high.loss and low.loss > high.loss:
            share = (low.loss - loss) / (low.loss - high.loss)
            return low.parameters * (high.parameters / low.parameters) ** share
    return None


def others(point: Point, found: Sequence[Point]) -> list[list[Point]]:
    """The curves of the other families, each by size."""
    names = dict.fromkeys(p.family for p in found if p.family != point.family)
    return [[p for p in found if p.family == name] for name in names]


def equal_loss(point: Point, found: Sequence[Point]) -> str:
    """Size of the best other family at this point's loss, over its own; ``>`` or ``<`` where that is outside of what was trained."""
    sizes = [size for curve in others(point, found) if (size := size_for(curve, point.loss)) is not None]
    if sizes:
        factor = min(sizes) / point.parameters
        return f"{factor:.2f}"
    everyone = [p for curve in others(point, found) for p in curve]
    reached = [p.parameters for p in everyone if p.loss <= point.loss]
    if reached:
        return f"< {min(reached) / point.parameters:.2f}"
    return f"> {max(p.parameters for p in everyone) / point.parameters:.2f}"


def _row(point: Point, found: Sequence[Point], on_front: bool) -> list[Cell]:
    rivals = [loss for curve in others(point, found) if (loss := loss_at(curve, point.parameters)) is not None]
    spread = f" ± {fixed(point.interval)}" if point.interval is not None else ""
    gap = fixed(point.loss - min(rivals)) if rivals else UNKNOWN
    sizes = [point.family, si(point.parameters), str(point.seeds), fixed(point.loss) + spread, fixed(point.accuracy)]
    return [*sizes, gap, equal_loss(point, found), "yes" if on_front else ""]


def _figure(found: Sequence[Point], front: Sequence[Point], colours: Mapping[str, str]) -> Figure:
    traces: list[Trace] = []
    for name in dict.fromkeys(point.family for point in found):
        curve, colour = [point for point in found if point.family == name], colours[name]
        bars: dict[str, Any] = {"array": [point.interval or 0 for point in curve], "color": f"{colour}/0.6", "thickness": 1.25, "width": 0}
        traces.append({
            "x": [point.parameters for point in curve], "y": [point.loss for point in curve], "name": name, "mode": "lines+markers",
            "line": {"color": colour}, "marker": {"color": colour}, "error_y": bars,
        })  # fmt: skip
    line = {"color": "var(--ink)", "dash": "dash", "width": 1}
    traces.append({"x": [p.parameters for p in front], "y": [p.loss for p in front], "name": "Pareto front", "mode": "lines", "line": line})
    layout = {"xaxis": {"title": {"text": "parameters"}, "type": "log", "tickformat": "~s"}, "yaxis": {}}
    return Figure(traces, layout, CAPTION, "Held-out loss, nats per token", height=420)
