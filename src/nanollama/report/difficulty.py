"""The section on what makes data hard: several measures that do not agree, and the exact floor."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from . import frames
from .format import fixed, plus_minus, significant
from .frames import Row, number
from .page import Cell, Chip, Column, Figure, Section, Table
from .runs import Run
from .traces import Trace, is_training, same_data

COLUMNS = (
    Column("Data", numeric=False),
    Column("alpha_X", "small: easy to infer"),
    Column("alpha_Z", "small: easy to predict"),
    Column("gzip, legacy", "bytes/token"),
    Column("gzip, normalised", "1 = noise"),
    Column("Unigram", "nats/token"),
    Column("Bigram", "nats/token"),
    Column("Exact floor", "nats/token, ± s.e."),
)
# predictors from worst to best: key of the row, label, plotly symbol, size, colour (None: that of the run)
LADDER: tuple[tuple[str, str, str, int, str | None], ...] = (
    ("log_vocab", "uniform guess", "line-ns-open", 14, "var(--faint)"),
    ("unigram_loss", "unigram", "circle-open", 10, "var(--muted)"),
    ("bigram_loss", "bigram", "square-open", 10, "var(--muted)"),
    ("trained", "transformer, as trained here", "circle", 12, None),
    ("bayes_loss", "exact floor", "diamond", 11, "var(--ink)"),
)


def difficulty_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """A table and a ladder of losses, from guessing to Bayes-optimal; None without a ``difficulty.json``."""
    rows = frames.difficulty(runs)
    if not rows:
        return None
    measured = [run for run in runs if run.difficulty]
    for run, row in zip(measured, rows, strict=True):
        row["trained"] = _trained_loss(run, runs)
    cells = [_cells(run, row, hue) for run, row in zip(measured, rows, strict=True)]
    caption = "The gap between bigram and exact floor is what a model can only gain by inferring the latent states. " + disagreement(rows)
    return Section("Difficulty of the data", [Table(COLUMNS, cells), _ladder(rows, hue, caption)])


def _cells(run: Run, row: Row, hue: Mapping[str, str]) -> list[Cell]:
    alphas = [significant(row[key]) for key in ("alpha_X", "alpha_Z")]
    measures = [fixed(row[key], 3) for key in ("gzip_legacy", "gzip_normalised", "unigram_loss", "bigram_loss")]
    return [Chip(run.name, hue[run.name], str(run.path)), *alphas, *measures, plus_minus(row["bayes_loss"], row["bayes_loss_se"])]


def _trained_loss(measured: Run, runs: Sequence[Run]) -> float | None:
    """Final held-out loss of the first training on the same data."""
    losses = (number(run.result.get("loss")) for run in runs if is_training(run) and same_data(measured, run))
    return next((loss for loss in losses if loss is not None), None)


def disagreement(rows: Sequence[Row]) -> str:
    """A sentence on the pair of data sets that gzip and the exact floor compare most differently; empty below a factor of 1.15."""
    worst, sentence = 1.15, ""
    for one, other in itertools.combinations([row for row in rows if row["gzip_legacy"] and row["bayes_loss"]], 2):
        gzip, floor = (one[key] / other[key] for key in ("gzip_legacy", "bayes_loss"))
        if max(gzip / floor, floor / gzip) > worst:
            worst = max(gzip / floor, floor / gzip)
            sentence = (
                f"gzip sees {one['run']} and {other['run']} at {one['gzip_legacy']:.2f} and {other['gzip_legacy']:.2f} bytes per token; "
                f"their floors are {one['bayes_loss']:.2f} and {other['bayes_loss']:.2f} nats per token."
            )
    return sentence


def _ladder(rows: Sequence[Row], hue: Mapping[str, str], caption: str) -> Figure:
    names = [html.escape(row["run"], quote=False) for row in rows]
    traces: list[Trace] = []
    for row, name in zip(rows, names, strict=True):
        known = [row[key] for key, *_ in LADDER if row[key] is not None]
        span = [min(known), max(known)] if known else []
        line = {"color": "var(--rule)", "width": 2}
        traces.append({"x": span, "y": [name] * 2, "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False})
    for key, label, symbol, size, colour in LADDER:
        if all(row[key] is None for row in rows):
            continue
        paint: Any = colour or [hue[row["run"]] for row in rows]
        traces.append({
            "x": [row[key] for row in rows],
            "y": names,
            "name": label,
            "mode": "markers",
            "marker": {"symbol": symbol, "size": size, "color": paint, "line": {"width": 2 if "open" in symbol else 0, "color": paint}},
            "cliponaxis": False,
            "hovertemplate": f"<b>%{{y}}</b><br>{label} %{{x:.4f}}<extra></extra>",
        })  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "loss, nats per token"}, "rangemode": "tozero"},
        "yaxis": {"range": [len(rows) - 0.4, -0.6], "showgrid": False},
    }
    return Figure(traces, layout, caption, height=100 + 44 * len(rows))
