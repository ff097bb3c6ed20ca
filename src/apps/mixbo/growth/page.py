"""The report of a growth as one page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from src.nanollama.report import Column, Figure, Page, Prose, Section, Status, Table
from src.nanollama.report.format import UNKNOWN, fixed, plus_minus, si, significant
from src.nanollama.report.page import Cell, series_colour

from .names import short
from .screen import UNITS, fit_lines, headline, law_words, noise_lines
from .state import Round
from .story import Story, failures, shape_words


def growth_page(story: Story, facts: Sequence[str] = ()) -> Page:
    """Every section that has something to show."""
    best = story.best
    shape = ", ".join(f"{name} {value}" for name, value in shape_words(story.state.incumbent).items())
    lead = f"The model grew to {shape}"
    lead += f": loss {best.loss:.4f} with {si(best.params)} parameters." if best else "; nothing has been measured yet."
    page = Page("Which way to grow", lead, [headline(story), *facts, time.strftime("%d %B %Y, %H:%M").lstrip("0")])
    makers: tuple[Callable[[Story], Section | None], ...] = (path_section, fit_section, heat_section, rounds_section, failures_section)
    return page.add(*(section for make in makers if (section := make(story)) is not None))


def path_section(story: Story) -> Section | None:
    """The incumbents."""
    if not story.path:
        return None
    names = [short(key) for key, _ in story.state.incumbent]
    results = (Column("Parameters"), Column("Loss", "nats, ± se"), Column("1 / exp(loss)"))
    columns = [Column("Step"), *(Column(name) for name in names), *results]
    rows: list[list[Cell]] = []
    before: dict[str, str] = {}
    for number, one in enumerate(story.path):
        words = shape_words(one.point)
        cells: list[Cell] = [f"▲ {words[n]}" if before and before[n] != words[n] else words[n] for n in names]
        error = None if math.isnan(one.error) else one.error
        rows.append([str(number), *cells, si(one.params), plus_minus(one.loss, error), fixed(math.exp(-one.loss), 5)])
        before = words
    return Section("Path", [Table(columns, rows)], " ".join(noise_lines(story)))


def fit_section(story: Story) -> Section | None:
    """Loss against parameters, with everything that was tried."""
    mine = [one for one in story.measurements if one.cohort == story.state.cohort]
    if not mine:
        return None
    traces = [
        {"x": [one.params for one in mine], "y": [one.loss for one in mine], "name": "tried", "mode": "markers",
         "marker": {"color": series_colour(0), "size": 6}, "text": [", ".join(shape_words(one.point).values()) for one in mine]},
        {"x": [one.params for one in story.path], "y": [one.loss for one in story.path], "name": "path", "mode": "lines+markers",
         "line": {"color": series_colour(1)}},
    ]  # fmt: skip
    if story.law and not story.law.doubt:
        low, high = min(one.params for one in mine), max(one.params for one in mine)
        x = [low * (high / low) ** (i / 60) for i in range(61)]
        curve = [float(story.law.loss(value)) for value in x]
        traces.append({"x": x, "y": curve, "name": "fit", "mode": "lines", "line": {"color": series_colour(2), "dash": "dash"}})
    layout = {"xaxis": {"title": {"text": "parameters"}, "type": "log", "tickformat": "~s"}, "yaxis": {}}
    caption = law_words(story.law) if story.law else "Too few sizes for a curve."
    lines = [Prose(line) for line in fit_lines(story)[1 if story.law else 0 :]]
    return Section("Loss against parameters", [Figure(traces, layout, caption, "held-out loss, nats per token"), *lines])


def heat_section(story: Story) -> Section | None:
    """Which direction was worth how much in which round."""
    chapters = [chapter for chapter in story.chapters if any(arm.ratio is not None for arm in chapter.table.arms)]
    if not chapters:
        return None
    rows = list(dict.fromkeys(short(arm.move.direction) for chapter in chapters for arm in chapter.table.arms))
    values: list[list[float | None]] = [[_ratio(chapter, row) for chapter in chapters] for row in rows]
    trace = {
        "type": "heatmap", "x": [f"round {chapter.number}" for chapter in chapters], "y": rows, "z": values,
        "text": [[UNKNOWN if v is None else f"{v:.2g}" for v in line] for line in values], "texttemplate": "%{text}", "showscale": False,
        "colorscale": [[0.0, "var(--c2)/0.5"], [0.5, "var(--c1)/0.0"], [1.0, "var(--c1)/0.7"]], "zmid": 0, "xgap": 2, "ygap": 2,
    }  # fmt: skip
    unit, upstream = UNITS[story.policy.options.efficiency_target], story.policy.options.rule == "upstream"
    shown = "Gained score, 1 / exp(loss)," if upstream else "Lower confidence bound of the gain"
    caption = f"{shown} per cost ({unit}); only what is above 0 may be accepted."
    return Section("Efficiency", [Figure([trace], {"yaxis": {"autorange": "reversed"}}, caption, "direction", 80 + 32 * len(rows))])


def _ratio(chapter: Round, row: str) -> float | None:
    found = [arm.ratio for arm in chapter.table.arms if short(arm.move.direction) == row and arm.ratio is not None]
    return max(found) if found and math.isfinite(max(found)) else None


def rounds_section(story: Story) -> Section:
    """Every round's candidates."""
    unit, upstream = UNITS[story.policy.options.efficiency_target], story.policy.options.rule == "upstream"
    columns = [
        Column("Round"), Column("Candidate", numeric=False), Column("Seeds"), Column("Loss", "nats"),
        Column("Δ score") if upstream else Column("Gain", "nats, ± se"), Column("Cost", unit),
        Column("Efficiency") if upstream else Column("LCB / cost"), Column("Verdict", numeric=False),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for chapter in story.chapters:
        for arm in chapter.table.arms:
            numbers = [fixed(arm.loss), plus_minus(arm.gain, arm.error), significant(arm.cost), significant(arm.ratio, 3)]
            bold = "accepted" if chapter.chosen == arm.move else arm.verdict
            rows.append([str(chapter.number), arm.move.label, str(arm.seeds), *numbers, bold])
        rows.append([str(chapter.number), *[""] * 6, f"→ {chapter.action}"])  # in the column that wraps
    return Section("Rounds", [Table(columns, rows)])


def failures_section(story: Story) -> Section | None:
    """Trials that came to nothing."""
    found = failures(story)
    columns = [Column("Trial"), Column("Candidate", numeric=False), Column("Status", numeric=False), Column("Message", numeric=False)]
    rows: list[list[Cell]] = [
        [str(r.number), r.wanted.label, Status(r.measured.status), r.message.strip().splitlines()[-1] if r.message else ""] for r in found
    ]
    return Section("Failures", [Table(columns, rows)]) if rows else None
