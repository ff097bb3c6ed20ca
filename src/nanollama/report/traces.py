"""Curves of runs over training tokens, as plotly traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .frames import number
from .page import series_colour
from .runs import Run

Trace = dict[str, Any]
Record = Mapping[str, Any]

POINTS = 400  # of one curve that are drawn; more cannot be told apart at this width
TOKENS: Mapping[str, Any] = {"title": {"text": "training tokens"}, "tickformat": "~s", "rangemode": "tozero"}


def is_training(run: Run) -> bool:
    """Whether a folder is a training (or too damaged to tell) and not a measurement of data."""
    return bool(run.records) or not run.difficulty


def colours(runs: Sequence[Run]) -> dict[str, str]:
    """Run name -> colour, the same all over the page; grey for a folder that is no training.

    One a run, or one a family of architectures where every training is of one and some are of the same: eight hues that come back
    tell no run from another.
    """
    trained = [run for run in runs if is_training(run)]
    kinds = {run.name: run.model.get("family") for run in trained}
    if None in kinds.values() or not 1 < len(set(kinds.values())) < len(kinds):
        kinds = {name: name for name in kinds}
    order = list(dict.fromkeys(kinds.values()))
    return dict.fromkeys((run.name for run in runs), "var(--faint)") | {name: series_colour(order.index(kinds[name])) for name in kinds}


def thin(records: Sequence[Record]) -> Sequence[Record]:
    """At most POINTS of the records, evenly taken, with the first and the last."""
    if len(records) <= POINTS:
        return records
    return [records[round(i * (len(records) - 1) / (POINTS - 1))] for i in range(POINTS)]


def points(run: Run, split: str, *keys: str) -> list[Record]:
    """The run's records of a split in which ``tokens`` and all ``keys`` are finite numbers."""
    return [r for r in run.records if r["split"] == split and all(number(r.get(key)) is not None for key in ("tokens", *keys))]


def positive(records: Sequence[Record], key: str) -> list[Record]:
    """Those that a logarithmic plot can show."""
    return [record for record in records if record[key] > 0 and record["tokens"] > 0]


def curve(name: str, records: Sequence[Record], key: str, colour: str, label: str, form: str = ".4f") -> Trace:
    """``key`` of the records over training tokens. ``label`` and ``form`` (d3-format) are for what is shown on hover."""
    shown = thin(records)
    return {
        "x": [record["tokens"] for record in shown],
        "y": [record[key] for record in shown],
        "name": name,
        "legendgroup": name,
        "mode": "lines+markers" if len(shown) <= 60 else "lines",
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 5},
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{x:.4~s}} tokens<br>{label} %{{y:{form}}}<extra></extra>",
    }


def faint(trace: Trace, colour: str) -> Trace:
    """The style of the noisy training loss behind the held-out one; not in the legend."""
    return trace | {"mode": "lines", "line": {"color": f"{colour}/0.3", "width": 1.25}, "showlegend": False}


def level(name: str, group: str, end: float, value: float, colour: str, dash: str, label: str, count: int = 41) -> Trace:
    """A horizontal reference line from 0 to ``end`` tokens, of many points so that it can be hovered anywhere."""
    return {
        "x": [end * i / (count - 1) for i in range(count)],
        "y": [value] * count,
        "name": name,
        "legendgroup": group,
        "mode": "lines",
        "line": {"color": colour, "width": 1.5, "dash": dash},
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>{label} %{{y:.4f}}<extra></extra>",
    }
