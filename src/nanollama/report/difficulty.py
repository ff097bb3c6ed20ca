"""The section on what makes data hard: several measures that do not agree, and the exact floor."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from . import frames
from .format import fixed, plus_minus, significant
from .frames import Row, number
from .page import Block, Cell, Chip, Column, Figure, Section, Table
from .runs import Run
from .traces import Trace, is_training

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
RUNGS = 12  # settings that the ladder has room for
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
    by_name = {run.name: run for run in runs}
    for row in rows:
        twin = next((run for run in runs if is_training(run) and _same_data(by_name[row["run"]], row, run)), None)
        row["colour"] = hue[twin.name] if twin else "var(--faint)"
        row["trained"] = number(twin.result.get("loss")) if twin else None
    blocks: list[Block] = [Table(COLUMNS, [_cells(row, str(by_name[row["run"]].path)) for row in rows])]
    if len(rows) <= RUNGS:
        caption = "The gap between bigram and exact floor is what a model can only gain by inferring the latent states. "
        blocks.append(_ladder(rows, caption + disagreement(rows)))
    return Section("Difficulty of the data", blocks)


def _cells(row: Row, path: str) -> list[Cell]:
    alphas = [significant(row[key]) for key in ("alpha_X", "alpha_Z")]
    measures = [fixed(row[key], 3) for key in ("gzip_legacy", "gzip_normalised", "unigram_loss", "bigram_loss")]
    return [Chip(row["setting"], row["colour"], path), *alphas, *measures, plus_minus(row["bayes_loss"], row["bayes_loss_se"])]


def _same_data(measured: Run, row: Row, trained: Run) -> bool:
    """Whether a training's sequences come from the very distribution that was measured: same graph, concentrations and kernels."""
    graph = all(measured.config.get(key) == trained.config.get(key) for key in ("gssm", "graph_seed"))
    return graph and "gssm" in trained.config and all(row[key] == number(trained.config.get(key)) for key in ("alpha_X", "alpha_Z"))


def disagreement(rows: Sequence[Row]) -> str:
    """A sentence on the pair of data sets that gzip and the exact floor compare most differently; empty below a factor of 1.15."""
    worst, sentence = 1.15, ""
    for one, other in itertools.combinations([row for row in rows if row["gzip_legacy"] and row["bayes_loss"]], 2):
        gzip, floor = (one[key] / other[key] for key in ("gzip_legacy", "bayes_loss"))
        if max(gzip / floor, floor / gzip) > worst:
            worst = max(gzip / floor, floor / gzip)
            sentence = (
                f"gzip sees {one['setting']} and {other['setting']} at {one['gzip_legacy']:.2f} and {other['gzip_legacy']:.2f} "
                f"bytes per token; their floors are {one['bayes_loss']:.2f} and {other['bayes_loss']:.2f} nats per token."
            )
    return sentence


def _ladder(rows: Sequence[Row], caption: str) -> Figure:
    names = [html.escape(row["setting"], quote=False) for row in rows]
    traces: list[Trace] = []
    for row, name in zip(rows, names, strict=True):
        known = [row[key] for key, *_ in LADDER if row[key] is not None]
        span = [min(known), max(known)] if known else []
        line = {"color": "var(--rule)", "width": 2}
        traces.append({"x": span, "y": [name] * 2, "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False})
    for key, label, symbol, size, colour in LADDER:
        if all(row[key] is None for row in rows):
            continue
        paint: Any = colour or [row["colour"] for row in rows]
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
