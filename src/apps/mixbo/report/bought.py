"""Which fidelities were bought, and when."""

from __future__ import annotations

import math

from src.nanollama.report import Figure, Panels, Section

from ..style import COUNTS, SEQUENTIAL, Trace, cells, mixture, plain, some_steps
from .folder import Sweep, Trial


def bought_section(sweep: Sweep) -> Section | None:
    """The trials in their order, by size and step, and what was spent where."""
    if not sweep.trials:
        return None
    return Section("Which fidelities were bought, and when", [_timeline(sweep), _maps(sweep)])


def _timeline(sweep: Sweep) -> Figure:
    fidelities = sweep.problem.fidelities
    traces: list[Trace] = []
    links: Trace = {
        "x": [],
        "y": [],
        "mode": "lines",
        "line": {"color": "var(--faint)", "width": 1},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    for trial in sweep.trials:
        if trial.record.parent is not None:
            links["x"] += [trial.record.parent, trial.record.number, None]
            links["y"] += [*2 * [plain(trial.record.model_size)], None]
    steps = some_steps(fidelities)
    kinds = [
        ("new run", "circle", [t for t in sweep.trials if t.record.parent is None and t.record.status != "failed"]),
        ("continued run", "diamond", [t for t in sweep.trials if t.record.parent is not None and t.record.status != "failed"]),
        ("failed", "x", [t for t in sweep.trials if t.record.status == "failed"]),
    ]
    for name, symbol, chosen in kinds:
        if chosen:
            traces.append(_dots(sweep, name, symbol, chosen))
    bar = {
        "title": {"text": "step", "side": "right", "font": {"size": 12.5, "color": "var(--muted)"}},  # on top it would touch a label
        "thickness": 10,
        "len": 0.9,
        "outlinewidth": 0,
        "tickfont": {"size": 12, "color": "var(--muted)"},
        "tickvals": [math.log(step) for step in steps],
        "ticktext": [str(step) for step in steps],
    }
    low = math.log(fidelities.steps[0]) if len(fidelities.steps) > 1 else 0.0
    layout = {
        "coloraxis": {"colorscale": SEQUENTIAL, "cmin": low, "cmax": math.log(fidelities.steps[-1]), "colorbar": bar},
        "xaxis": {"title": {"text": "trial"}, "range": [-0.8, len(sweep.trials) - 0.2]},
        "yaxis": {
            "type": "category",
            "categoryarray": [plain(size) for size in fidelities.sizes],
            "categoryorder": "array",
            "range": [-0.6, len(fidelities.sizes) - 0.4],
        },
    }
    caption = (
        "Every trial by model size; the stronger its colour, the more steps. "
        "A line joins a continued run to the trial whose checkpoint it took up."
    )
    return Figure([links, *traces], layout, caption, "model size", 110 + 38 * len(fidelities.sizes))


def _dots(sweep: Sweep, name: str, symbol: str, trials: list[Trial]) -> Trace:
    domains = sweep.problem.space.domains
    colour = {"color": "var(--bad)"} if symbol == "x" else {"color": [math.log(t.record.steps) for t in trials], "coloraxis": "coloraxis"}
    told = []
    for t in trials:
        value = t.status if t.value is None else f"{sweep.metric} {t.value:.4f}"
        weights = mixture(dict(zip(domains, t.record.weights, strict=True)))
        told.append(f"{plain(weights)}<br>{plain(value)}, {t.record.flops / sweep.problem.full_run:.3g} full runs")
    return {
        "x": [t.record.number for t in trials],
        "y": [plain(t.record.model_size) for t in trials],
        "name": name,
        "mode": "markers",
        "marker": {"symbol": symbol, "size": 12 if symbol == "diamond" else 11, "line": {"width": 1, "color": "var(--c1)"}, **colour},
        "customdata": [[t.record.steps, text] for t, text in zip(trials, told, strict=True)],
        "hovertemplate": "<b>trial %{x}: %{y}, step %{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
    }


def _maps(sweep: Sweep) -> Panels:
    """How many trials and which share of the cost each size and step took; steps between the shown ones count to the next one."""
    fidelities = sweep.problem.fidelities
    steps = some_steps(fidelities)
    count = {(size, step): 0 for size in fidelities.sizes for step in steps}
    flops = {key: 0.0 for key in count}
    for record in sweep.records:
        key = record.model_size, next((step for step in steps if step >= record.steps), steps[-1])
        count[key] += 1
        flops[key] += record.flops
    total = sum(flops.values()) or 1.0
    numbers = [[count[size, step] or None for step in steps] for size in fidelities.sizes]
    shares = [[100 * flops[size, step] / total or None for step in steps] for size in fidelities.sizes]
    figures = []
    for z, form, hover, title in (
        (numbers, "d", "%{z} trials", "number of trials"),
        (shares, ".1f", "%{z:.2f} % of the FLOPs", "share of the FLOPs, %"),
    ):
        text = [["" if value is None else format(value, form) for value in row] for row in z]
        data, layout = cells(
            fidelities, steps, z, text, hover, colorscale=COUNTS, zmin=0, zmax=max((v for row in z for v in row if v), default=1)
        )
        figures.append(Figure(data, layout, title=title, height=90 + 34 * len(fidelities.sizes)))
    return Panels(figures, "Many small runs, few large ones: the first map counts, the second weighs by cost.")
