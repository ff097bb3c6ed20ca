"""Difficulty as people read it: a table, a YAML snippet, and a page with profile, maps and iso-difficulty curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.nanollama.report.format import fixed, plus_minus, significant
from src.nanollama.report.page import Cell, Column, Figure, Page, Panels, Prose, Section, Table, series_colour

from .measure_config import CalibrateConfig, DifficultyConfig

Row = Mapping[str, Any]

MAPPED = {
    "gzip_legacy": "gzip, legacy: bytes per token",
    "bigram_loss": "bigram loss, nats per token",
    "bayes_loss": "Bayes loss, nats per token",
}
LOG_AXIS = {"type": "log", "dtick": 1}
GRAPH_ERROR = "± is the standard error over graph seeds."


def settings_table(rows: Sequence[Row]) -> Table:
    """One line a setting."""
    several = len(rows[0]["graph_seeds"]) > 1
    grams = sorted((key for key in rows[0] if key.startswith("ngram_") and not key.endswith("_graphs")), key=_number)
    columns = [
        Column("setting", numeric=False),
        Column("alpha_X"),
        Column("alpha_Z"),
        Column("gzip_legacy", "bytes/token"),
        Column("gzip_norm.", "1 = noise"),
        Column("unigram", "nats"),
        Column("bigram", "nats"),
        *(Column(f"{_number(key)}-gram", "nats") for key in grams),
        Column("Bayes", "nats"),
        Column("share of ln V"),
    ]
    cells: list[list[Cell]] = []
    for row in rows:
        measured = ["gzip_legacy", "gzip_normalised", "unigram_loss", "bigram_loss", *grams]
        spread = [plus_minus(row[key], row.get(f"{key}_se_graphs")) if several else fixed(row[key]) for key in measured]
        loss_se = row.get("bayes_loss_se_graphs") if several else row["bayes_loss_se"]
        alphas = [significant(row["alpha_X"]), significant(row["alpha_Z"])]
        mark = "≤ " if _bounded(row) else ""
        cells.append([row["name"], *alphas, *spread, mark + plus_minus(row["bayes_loss"], loss_se), mark + fixed(row["bayes_share"], 3)])
    return Table(columns, cells, caption=_effort(rows[0]) + (f" {GRAPH_ERROR}" if several else ""))


def as_text(table: Table) -> str:
    """A table for a terminal."""
    lines = [[column.title for column in table.columns], [column.unit for column in table.columns]]
    lines += [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    texts = [
        "  ".join(
            text.rjust(width) if column.numeric else text.ljust(width)
            for text, width, column in zip(line, widths, table.columns, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*(text for text in texts if text), *([table.caption] if table.caption else [])])


def setups_yaml(setups: Mapping[str, Row]) -> str:
    """Entries of ``setups`` (alpha_X, alpha_Z, difficulty, ..), to paste in a config."""
    lines = ["setups:"]
    for name, setup in setups.items():
        entries = (f"{key}: {_yaml(value, 4 if key == 'difficulty' else 6)}" for key, value in setup.items())
        lines.append(f"  {name}: {{{', '.join(entries)}}}")
    return "\n".join(lines) + "\n"


def _yaml(value: float | None, digits: int) -> str:
    return "null" if value is None else str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def difficulty_page(rows: Sequence[Row], cfg: DifficultyConfig) -> Page:
    """Table, then profiles, or maps when the config asks for one."""
    page = Page(f"Difficulty of {cfg.name}", "What makes these sequences hard, by several measures that need not agree.")
    if not cfg.map.active:
        notes = [Prose(note) for note in bayes_notes(rows)]
        return page.add(Section("Measures", [settings_table(rows), *notes]), Section("Profile", [profile(rows)]))
    return page.add(Section("Maps", [maps(rows)]), Section("Numbers", [settings_table(rows)], collapsed=True))


def bayes_notes(rows: Sequence[Row]) -> list[str]:
    """Sentences on Bayes losses that are not exact."""
    notes = []
    for row in rows:
        if "bayes_note" in row:
            lower = f"; at least {plus_minus(row['bayes_lower'], row['bayes_lower_se'])}" if _bounded(row) else ""
            notes.append(f"{row['name']}: {row['bayes_note']}. In its place: {row['bayes_estimator']}{lower}")
    return list(dict.fromkeys(notes))


def _bounded(row: Row) -> bool:
    """Whether the Bayes loss is an upper bound."""
    return "bayes_lower" in row


def calibration_page(rows: Sequence[Row], found: Row, cfg: CalibrateConfig) -> Page:
    """Solutions, the iso-difficulty curve, and the other measures of each solution."""
    columns = [Column("graph seed"), Column(str(found["free"])), Column("target"), Column("found"), Column("on fresh sequences")]
    cells = []
    for s in found["solutions"]:
        values = plus_minus(s["value"], s["se"]), plus_minus(s["check"], s["check_se"])
        cells.append([str(s["graph_seed"]), significant(s["alpha"], 6), fixed(s["target"]), *values])
    page = Page(f"Calibration of {cfg.name}", f"{found['free']} such that {cfg.solve.measure} has the wanted value.")
    page.add(Section("Solutions", [Table(columns, cells)]))
    if any(found["curves"].values()):
        wanted = f"that of {cfg.solve.like}" if cfg.solve.like else f"{cfg.solve.target:g}"
        page.add(Section("Equal difficulty", [iso_curve(found["curves"], cfg.solve.measure, wanted)]))
    return page.add(Section("All measures", [settings_table(rows)]), Section("Profile", [profile(rows)]))


def profile(rows: Sequence[Row]) -> Figure:
    """Best loss by the number of tokens seen, and what counting achieves."""
    traces: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        windows = sorted((k for k in row if k.startswith("window_") and not k.endswith("_graphs")), key=_number)
        colour = series_colour(i)
        if windows:
            traces.append({
                "x": [_number(k) for k in windows], "y": [row[k] for k in windows], "name": f"{row['name']}: best possible",
                "mode": "lines+markers", "line": {"color": colour}, "hovertemplate": "last %{x} tokens: %{y:.4f}<extra></extra>",
            })  # fmt: skip
        counted = {0: "unigram_loss", 1: "bigram_loss"} | {_number(k) - 1: k for k in row if k.startswith("ngram_") and k[6:].isdigit()}
        widths = [k for k in sorted(counted) if k]
        traces.append({
            "x": widths, "y": [row[counted[k]] for k in widths], "name": f"{row['name']}: counting n-grams", "mode": "markers",
            "marker": {"color": colour, "symbol": "square-open", "size": 9}, "hovertemplate": "%{x} tokens: %{y:.4f}<extra></extra>",
        })  # fmt: skip
        if row["bayes_loss"] is not None:
            past = "whole past, upper bound" if _bounded(row) else "whole past"
            traces.append({
                "x": [1, max([16, *map(_number, windows)])], "y": [row["bayes_loss"]] * 2, "name": f"{row['name']}: {past}",
                "mode": "lines", "line": {"color": colour, "dash": "dash"}, "hovertemplate": "whole past: %{y:.4f}<extra></extra>",
            })  # fmt: skip
    seen = {"type": "log", "dtick": "D2", "tickformat": "~s", "title": {"text": "tokens seen before the predicted one"}}
    layout = {"xaxis": seen, "yaxis": {"rangemode": "tozero"}}
    caption = "Where the line meets the dashed one, a longer context is worth nothing; counting falls behind where contexts become rare."
    return Figure(traces, layout, caption, title="loss, nats per token")


def maps(rows: Sequence[Row]) -> Panels:
    """Each measure over (alpha_X, alpha_Z): a heat map, or a curve where one of them has a single value. ``rows``: as of ``survey``."""
    axes = {key: list(dict.fromkeys(row[key] for row in rows)) for key in ("alpha_X", "alpha_Z")}
    figures = []
    for key, title in MAPPED.items():
        values = [row[key] for row in rows]
        if any(value is None for value in values):
            continue
        if key == "bayes_loss":
            title = f"upper bound on the {title}" if any(map(_bounded, rows)) else f"exact {title}"
        draw = heat_map if all(len(axis) > 1 for axis in axes.values()) else section
        figures.append(draw(axes, values, title))
    caption = "Small alpha_X: latents are easy to infer from tokens. Small alpha_Z: latents are easy to predict from the past."
    return Panels(figures, caption)


def heat_map(axes: Mapping[str, Sequence[float]], values: Sequence[float], title: str) -> Figure:
    """``values`` with alpha_Z fastest, as colours."""
    xs, zs = axes["alpha_X"], axes["alpha_Z"]
    trace = {
        "type": "heatmap", "x": xs, "y": zs, "z": [[values[i * len(zs) + j] for i in range(len(xs))] for j in range(len(zs))],
        "colorscale": [[0, "var(--wash)"], [1, "var(--c1)"]], "colorbar": {"thickness": 10, "outlinewidth": 0}, "showlegend": False,
        "hovertemplate": "alpha_X %{x:.3g}<br>alpha_Z %{y:.3g}<br>%{z:.4f}<extra></extra>",
    }  # fmt: skip
    layout = {"xaxis": {**LOG_AXIS, "title": {"text": "alpha_X"}}, "yaxis": {**LOG_AXIS, "title": {"text": "alpha_Z"}}}
    return Figure([trace], layout, title=title, height=300)


def section(axes: Mapping[str, Sequence[float]], values: Sequence[float], title: str) -> Figure:
    """``values`` over the axis that has several points."""
    key = max(axes, key=lambda key: len(axes[key]))
    trace = {
        "x": axes[key], "y": values, "mode": "lines+markers", "line": {"color": series_colour(0)}, "showlegend": False,
        "hovertemplate": f"{key} %{{x:.3g}}<br>%{{y:.4f}}<extra></extra>",
    }  # fmt: skip
    return Figure([trace], {"xaxis": {**LOG_AXIS, "title": {"text": key}}, "yaxis": {}}, title=title, height=300)


def iso_curve(curves: Mapping[int, Sequence[tuple[float, float]]], measure: str, target: str) -> Figure:
    """(alpha_X, alpha_Z) of equal difficulty, one curve a graph seed."""
    traces = [
        {
            "x": [x for x, _ in points], "y": [z for _, z in points], "name": f"graph seed {seed}", "mode": "lines+markers",
            "line": {"color": series_colour(i)}, "hovertemplate": "alpha_X %{x:.4g}<br>alpha_Z %{y:.4g}<extra></extra>",
        }
        for i, (seed, points) in enumerate(curves.items())
    ]  # fmt: skip
    caption = f"All points have {measure} = {target}; where a point is missing, none in the interval was found."
    layout = {"xaxis": {**LOG_AXIS, "title": {"text": "alpha_X"}}, "yaxis": {"type": "log", "dtick": "D2", "minorloglabels": "complete"}}
    return Figure(traces, layout, caption, title="alpha_Z")


def _number(key: str) -> int:
    return int(key.rsplit("_", 1)[1])


def _effort(row: Row) -> str:
    kind = "upper bounds (≤) on the Bayes loss" if _bounded(row) else "exact losses"
    known = f"; {kind} on {row['sequences']} sequences of {row['seq_len']} predictions" if row["bayes_loss"] is not None else ""
    return f"gzip and n-grams on {row['tokens']} tokens{known}; ln V = {row['log_vocab']:.4f}."


