"""The section on byte-level text: bits per byte of every held-out domain, beside gzip and xz on the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import frames
from .format import fixed, plus_minus
from .frames import Row
from .page import Cell, Chip, Column, Figure, Panels, Section, Table
from .runs import Run
from .traces import TOKENS, Trace, curve, level, points

COLUMNS = (
    Column("Text", numeric=False),
    Column("Run", numeric=False),
    Column("Model", "bits/byte, ± s.e."),
    Column("gzip", "bits/byte"),
    Column("xz", "bits/byte"),
)


def text_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """One panel a domain and a table; None if no run reports bits per byte."""
    rows = frames.text_losses(runs)
    if not rows:
        return None
    splits = list(dict.fromkeys(row["split"] for row in rows))
    rows.sort(key=lambda row: splits.index(row["split"]))
    seen = [record["bits_per_byte"] for run in runs for split in splits for record in points(run, split, "bits_per_byte")]
    top = 1.1 * max([*seen, *(row[key] for row in rows for key in ("gzip", "xz") if row[key] is not None)], default=8.0)
    panels = [_panel(runs, split, rows, hue, top) for split in splits if any(points(run, split, "bits_per_byte") for run in runs)]
    caption = (
        "Held-out files only; a random byte has 8 bits. Dashed: gzip, dotted: xz, on the same bytes. A compressor starts from nothing "
        "and sees all of the text; the model has learned from other files but sees only its context."
    )
    return Section("Text, by domain", [Panels(panels, caption), Table(COLUMNS, [_cells(row, hue) for row in rows])])


def _cells(row: Row, hue: Mapping[str, str]) -> list[Cell]:
    model = plus_minus(row["bits_per_byte"], row["bits_per_byte_se"])
    return [row["text"], Chip(row["run"], hue[row["run"]]), model, fixed(row["gzip"], 3), fixed(row["xz"], 3)]


def _panel(runs: Sequence[Run], split: str, rows: Sequence[Row], hue: Mapping[str, str], top: float) -> Figure:
    here = [row for row in rows if row["split"] == split]
    traces: list[Trace] = []
    for run in runs:
        records = points(run, split, "bits_per_byte")
        if records:
            traces.append(curve(run.name, records, "bits_per_byte", hue[run.name], "bits per byte", ".3f"))
    end = max(x for trace in traces for x in trace["x"])
    for key, dash in (("gzip", "dash"), ("xz", "dot")):
        value = next((row[key] for row in here if row[key] is not None), None)
        if value is not None:
            traces.append(level(key, key, end, value, "var(--muted)", dash, "bits per byte"))
    layout = {"xaxis": {**TOKENS, "nticks": 5}, "yaxis": {"range": [0, top]}}
    return Figure(traces, layout, title=f"{here[0]['text']}, bits per byte", height=250)
