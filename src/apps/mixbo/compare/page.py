"""The page that sets strategies side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from src.nanollama.report import Block, Chip, Column, Figure, Page, Section, Table
from src.nanollama.report.format import UNKNOWN, significant
from src.nanollama.report.page import Cell

from ..style import FULL_RUNS, LOG, Trace
from .bought import bought_section, reasons_section
from .comparison import FLOOR, SHARES, Comparison, band
from .runs import SweepRun
from .stats import at, grid, shared


def compare_page(runs: Sequence[SweepRun]) -> Page:
    """The page of ``python -m src.apps.mixbo.compare``."""
    c = Comparison(runs)
    facts = [f"{len(c.runs)} sweeps", f"{len(c.labels)} strategies", time.strftime("%d %B %Y, %H:%M").lstrip("0")]
    page = Page("Strategies side by side", lead(c), facts)
    sections = (_summary(c), _curves(c), _differences(c), bought_section(c), reasons_section(c), _all(c))
    return page.add(*(section for section in sections if section is not None))


def lead(c: Comparison) -> str:
    """Which strategy is ahead, in words."""
    seeds = "one seed each" if len(c.runs) == len(c.labels) else "medians over seeds"
    if not c.known:
        return (
            f"The predicted value of each study's recommendation against its cost, over {len(c.runs)} sweeps ({seeds}). "
            "The truth is not known here: each study judges itself, so trust only what was measured at the target."
        )
    found = {label: c.reached(label, SHARES[-1]) for label in c.labels}
    order = sorted(c.labels, key=lambda label: (found[label].bound, found[label].cost))  # type: ignore[union-attr]
    said = [f"{label} {found[label]}" for label in order]
    full = f"full runs of {c.runs[0].problem.fidelities.sizes[-1]}"
    goal = f"within {100 * SHARES[-1]:.0f} % of the uniform mixture's regret"
    return f"Cost to get {goal} and stay there, in {full}: {'; '.join(said)} ({seeds})."


def _summary(c: Comparison) -> Section:
    what = "regret" if c.known else "predicted"
    columns = [Column("Strategy", numeric=False), Column("Sweeps"), Column("Trials", "median"), Column("Spent", "full runs")]
    columns += [Column(f"Final {what}", "median"), Column("Quartiles")]
    columns += (
        [Column(f"To {100 * share:.0f} %", "full runs (sweeps)") for share in SHARES] if c.known else [Column("Best measured", "median")]
    )
    rows: list[list[Cell]] = []
    for label in c.labels:
        low, middle, high = c.final(label)
        runs = c.of(label)
        trials = np.median([run.history[-1]["trials"] for run in runs])
        row: list[Cell] = [Chip(label, c.colour[label]), str(len(runs)), f"{trials:.0f}", f"{np.median([run.spent for run in runs]):.3g}"]
        row += [significant(middle), f"{significant(low, 2)} … {significant(high, 2)}"]
        if c.known:
            row += [f"{found} ({found.reached}/{found.runs})" for share in SHARES if (found := c.reached(label, share))]
        else:
            measured = [run.measured()[-1][1] for run in runs if run.measured()]
            row.append(significant(float(np.median(measured))) if measured else UNKNOWN)
        rows.append(row)
    caption = (
        "Regret: how much worse than the optimum the recommended mixture truly is for the largest model at the last step. "
        "To 50 %: median cost from which on it stayed within half of the uniform mixture's regret, and how many sweeps got there; "
        "> is a lower bound, because too few did."
    )
    return Section("Summary", [Table(columns, rows, caption if c.known else "")])


def _curves(c: Comparison) -> Section:
    traces: list[Trace] = []
    for label in c.labels:
        curves = c.curves(label)
        traces += band(label, c.colour[label], grid(curves), curves, ".4~g")
    if not c.known:
        measured = [_measured(c, label) for label in c.labels]
        title = "predicted value of the recommended mixture"
        blocks: list[Block] = [Figure(traces, {"xaxis": FULL_RUNS, "yaxis": {}}, "Each study by its own posterior.", title, 420)]
        if any(measured):
            title = "best value measured at the target so far"
            figure = Figure([t for some in measured for t in some], {"xaxis": FULL_RUNS, "yaxis": {}}, title=title, height=380)
            blocks.append(figure)
        return Section("Value against cost", blocks)
    span = [min(t["x"][0] for t in traces if len(t["x"])), max(t["x"][-1] for t in traces if len(t["x"]))]
    uniform = float(np.median([run.uniform_regret or FLOOR for run in c.runs]))
    for share, dash in ((1.0, "dash"), (SHARES[-1], "dot")):
        name = "uniform mixture" if share == 1 else f"{100 * share:.0f} % of that"
        level = {"x": span, "y": [share * uniform] * 2, "name": name, "mode": "lines", "hoverinfo": "name+y"}
        traces.append(level | {"line": {"color": "var(--muted)", "width": 1.5, "dash": dash}})
    caption = "Median over seeds, with quartiles. A sweep that has stopped keeps its answer; a line begins when all its sweeps have one."
    return Section("Regret against cost", [Figure(traces, {"xaxis": FULL_RUNS, "yaxis": LOG}, caption, "regret", 460)])


def _measured(c: Comparison, label: str) -> list[Trace]:
    curves = [measured for run in c.of(label) if (measured := run.measured())]
    return band(label, c.colour[label], grid(curves), curves, ".4f") if curves else []


def _differences(c: Comparison) -> Section | None:
    """Every strategy against the reference on the same seeds, over the costs that all of these sweeps came to."""
    traces: list[Trace] = []
    for label in c.labels:
        partners = {run.seed: run for run in c.of(c.reference)} if label != c.reference else {}
        both = [(c.curve(run), c.curve(partners[run.seed])) for run in c.of(label) if run.seed in partners]
        costs = shared([curve for pair in both for curve in pair])
        if len(costs):
            mine, theirs = (np.array([at(curve, costs) for curve in side]) for side in zip(*both, strict=True))
            ratio = mine / theirs if c.known else mine - theirs
            traces += band(label, c.colour[label], costs, [list(zip(costs, row, strict=True)) for row in ratio], ".3~g")
    if not traces:
        return None
    axis = dict(LOG) if c.known else {"zeroline": True, "zerolinecolor": "var(--faint)"}
    how = "regret, divided by that of" if c.known else "predicted value, minus that of"
    maximise = c.runs[0].problem.metric.maximise and not c.known
    ahead = f"{c.reference} is ahead {'below' if maximise else 'above'} {1 if c.known else 0}"
    caption = f"Sweeps of the same seed, compared at the same cost, as far as all of them went: median and quartiles over pairs; {ahead}."
    figure = Figure(traces, {"xaxis": FULL_RUNS, "yaxis": axis}, caption, f"{how} {c.reference}", 360)
    return Section(f"Against {c.reference} over time", [figure])


def _all(c: Comparison) -> Section:
    columns = [
        Column("Strategy", numeric=False),
        Column("Seed"),
        Column("Trials"),
        Column("Spent", "full runs"),
        Column("Predicted"),
        Column("Regret"),
    ]
    columns.append(Column("Folder", numeric=False))
    rows: list[list[Cell]] = []
    for run in sorted(c.runs, key=lambda run: (c.labels.index(run.label), run.seed)):
        last = run.answers[-1]
        numbers = [
            str(run.cfg.seed),
            str(run.history[-1]["trials"]),
            f"{run.spent:.3g}",
            significant(last["predicted"], 5),
            significant(last["regret"]),
        ]
        rows.append([Chip(run.label, c.colour[run.label]), *numbers, str(run.folder)])
    return Section("All sweeps", [Table(columns, rows)], collapsed=True)
