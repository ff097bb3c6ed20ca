"""Which fidelities each strategy bought, when, and what it thought of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.nanollama.report import Block, Figure, Panels, Section
from src.nanollama.report.page import series_colour

from ..style import FULL_RUNS, Trace, plain
from .comparison import Comparison


def bought_section(c: Comparison) -> Section:
    """Shares of cost and trials by model size, and when which size was bought."""
    sizes = c.runs[0].problem.fidelities.sizes
    names = [plain(label) for label in c.labels]
    shares: list[Trace] = []
    for i, size in enumerate(sizes):
        totals = [_share(c, label, size) for label in c.labels]
        mark = {"color": series_colour(i), "line": {"width": 1, "color": "var(--paper)"}}
        hover = f"%{{y}}<br>{plain(size)}: %{{x:.1f}} % of the FLOPs<extra></extra>"
        bar: Trace = {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": totals,
            "name": size,
            "legendgroup": size,
            "marker": mark,
            "hovertemplate": hover,
        }
        shares.append(bar)
    when = [_when(c, label, sizes) for label in c.labels]
    layout = {
        "barmode": "stack",
        "bargap": 0.4,
        "xaxis": {"title": {"text": "share of the FLOPs, %"}, "range": [0, 100], "showline": False},
        "yaxis": {"autorange": "reversed", "showgrid": False},
    }
    caption = "Where the money went, by model size, over all sweeps of a strategy."
    blocks: list[Block] = [Figure(shares, layout, caption, height=90 + 40 * len(names))]
    blocks.append(Panels(when, "Every trial of every seed: when which size was bought."))
    return Section("What each strategy bought", blocks)


def _when(c: Comparison, label: str, sizes: Sequence[str]) -> Figure:
    """Every trial of a strategy by cost and model size."""
    x, y, text = [], [], []
    for run in c.of(label):
        chosen = {int(row["trial"]): row for row in run.trials}
        for row in run.history:
            trial = chosen.get(row["trial"])
            if trial:
                x.append(row["spent_full_runs"])
                y.append(plain(trial["model_size"]))
                text.append(f"seed {run.cfg.seed}, trial {row['trial']}: step {trial['steps']}")
    mark = {"size": 7, "color": f"{c.colour[label]}/0.35", "line": {"width": 1, "color": c.colour[label]}}
    dots = {"x": x, "y": y, "text": text, "mode": "markers", "marker": mark, "hovertemplate": "%{text}<extra></extra>", "name": label}
    names = [plain(size) for size in sizes]
    layout = {
        "xaxis": {**FULL_RUNS, "title": {"text": "cost so far, full runs"}, "range": _span(c)},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": names, "range": [-0.5, len(sizes) - 0.5]},
    }
    return Figure([dots], layout, title=label, height=90 + 28 * len(sizes), legend=False)


def _span(c: Comparison) -> list[float]:
    """Range of a logarithmic axis that holds every trial."""
    costs = [row["spent_full_runs"] for run in c.runs for row in run.history if row["spent_full_runs"] > 0]
    return [float(np.log10(min(costs))) - 0.1, float(np.log10(max(costs))) + 0.1]


def _share(c: Comparison, label: str, size: str) -> float:
    costs = [(row["model_size"], float(row.get("charged_flops") or row.get("flops") or 0)) for run in c.of(label) for row in run.trials]
    total = sum(cost for _, cost in costs)
    return 100 * sum(cost for name, cost in costs if name == size) / total if total else 0.0


def reasons_section(c: Comparison) -> Section | None:
    """Acquisition value and trust of each suggestion over the trials."""
    blocks: list[Block] = []
    trust = [trace for label in c.labels for trace in _over_trials(c, label, "rho")]
    if trust:
        lowest = min(float(value) for trace in trust for value in trace["y"])
        axis = {"range": [min(-0.03, lowest - 0.05), 1.05], "zeroline": True}
        caption = (
            "Posterior correlation of each bought trial with its mixture at the target: median and quartiles over seeds. "
            "A suggestion at the target itself has 1."
        )
        blocks.append(Figure(trust, {"xaxis": {"title": {"text": "trial"}}, "yaxis": axis}, caption, "trust in what was bought", 300))
    panels = []
    for label in c.labels:
        traces = _over_trials(c, label, "acquisition")
        if traces:
            layout = {"xaxis": {"title": {"text": "trial"}}, "yaxis": {"nticks": 5, "tickformat": "~g", "exponentformat": "e"}}
            panels.append(Figure(traces, layout, title=label, height=230, legend=False))
    if panels:
        caption = (
            "Acquisition value of each suggestion, in the units of its strategy (a logarithm for expected improvement, objective per full "
            "run for the knowledge gradient): what one expects to gain should fall over time."
        )
        blocks.append(Panels(panels, caption))
    return Section("Why: trust and acquisition over time", blocks) if blocks else None


def _over_trials(c: Comparison, label: str, key: str) -> list[Trace]:
    """Median and quartiles over seeds of a column of ``trials.csv``, by trial number."""
    values: dict[int, list[float]] = {}
    for run in c.of(label):
        for row in run.trials:
            if row.get(key):
                values.setdefault(int(row["trial"]), []).append(float(row[key]))
    if not values:
        return []
    x = sorted(values)
    low, middle, high = (np.array([np.quantile(values[n], q) for n in x]) for q in (0.25, 0.5, 0.75))
    colour = c.colour[label]
    edge = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": label}
    line = {"x": x, "y": middle, "name": label, "legendgroup": label, "mode": "lines", "line": {"color": colour, "width": 2}}
    hover = f"<b>{plain(label)}</b><br>trial %{{x}}: %{{y:.3~g}}<extra></extra>"
    return [edge | {"y": low}, edge | {"y": high, "fill": "tonexty", "fillcolor": f"{colour}/0.13"}, line | {"hovertemplate": hover}]
