"""The answer in words, the mixtures it is to be compared with, and how it came about over the cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from src.nanollama.arrays import Array
from src.nanollama.report import Block, Chip, Column, Figure, Section, Table
from src.nanollama.report.format import fixed, plus_minus
from src.nanollama.report.page import COLOURS, series_colour

from ..baseline import difference
from ..recommend import Z95
from ..records import Record, same
from ..style import BEST, FULL_RUNS, GOOD, LOG, Trace, mixture, plain
from .calibration import NARROW
from .folder import Sweep


def answer_in_words(sweep: Sweep) -> str:
    """Two or three sentences: what to train on, how good that will be, and how sure that is."""
    answer = sweep.answer
    if not answer.get("weights"):
        return f"No trial has a result yet, so there is no mixture to recommend for {sweep.target}."
    low, high = answer["interval"]
    said = (
        f"For {sweep.target}, train on {mixture(answer['weights'])}. The predicted {sweep.metric} is {answer['predicted']:.4f}, "
        f"with a 95 % interval from {low:.4f} to {high:.4f}. "
    )
    if answer["tested"]:
        said += "This mixture was tested at that size and step. "
    elif _at_target(sweep):
        said += "This very mixture has not been tested at that size and step. "
    else:
        said += "Nothing has been measured at that size and step yet: the level is an extrapolation. "
    gain = answer.get("gain_over_baseline") or 0.0
    if gain > 0:
        said += f"It is predicted to be {gain:.4f} better than the {_baseline(sweep)} ({mixture(answer['baseline'])})."
    return said.strip()


def answer_section(sweep: Sweep) -> Section | None:
    """The recommended mixture beside others, as bars and with numbers."""
    if sweep.surrogate is None:
        return None
    rows = _compared(sweep)
    caption = (
        "Differences between mixtures are known far better than the level that all share, which has to be extrapolated as long as little "
        "was run at the largest size: judge a mixture by the column of differences. "
        f"Intervals are {NARROW}."
    )
    return Section("The mixture", [_bars(sweep, rows), _table(sweep, rows, caption)])


def _at_target(sweep: Sweep) -> list[Record]:
    """Trials that ended well there."""
    size, step = sweep.problem.fidelities.target
    name = sweep.problem.fidelities.sizes[size]
    return [r for r in sweep.records if r.status == "ok" and r.model_size == name and r.steps == step]


def _baseline(sweep: Sweep) -> str:
    """What the fallback of the recommendation is."""
    baseline = sweep.answer["baseline"]
    if any(same(record.weights, [baseline[d] for d in sweep.problem.space.domains]) for record in _at_target(sweep)):
        return "best tested there"
    return "best single domain" if max(baseline.values()) > 1 - 1e-6 else "best tested mixture"


def _compared(sweep: Sweep) -> list[tuple[str, Array]]:
    """Name and mixture of what the recommendation is held against, each once."""
    domains = sweep.problem.space.domains
    rows = [("recommended", sweep.best)]
    baseline = sweep.answer.get("baseline")
    if baseline:
        rows.append((_baseline(sweep), np.array([baseline[d] for d in domains])))
    rows.append(("uniform", sweep.problem.space.centroid()))
    if sweep.truth:
        rows.append(("true optimum" if sweep.truth.exact else "best there is (by search)", sweep.truth.optimum))
    first = [next(i for i, (_, v) in enumerate(rows) if same(w, v, 1e-4)) for _, w in rows]
    return [row for i, row in enumerate(rows) if first[i] == i or (sweep.truth and i == len(rows) - 1)]


def _bars(sweep: Sweep, rows: list[tuple[str, Array]]) -> Figure:
    names = [name for name, _ in rows]
    traces: list[Trace] = []
    for i, domain in enumerate(sweep.problem.space.domains):
        shares = [100 * float(w[i]) for _, w in rows]
        # Beyond the palette's length colours come back, a shade lighter
        colour = series_colour(i) + ("" if i < COLOURS else "/0.5")
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": shares,
                "y": names,
                "name": domain,
                "legendgroup": domain,
                "marker": {"color": colour, "line": {"width": 1, "color": "var(--paper)"}},
                "text": [f"{share:.0f}" if share >= 4 else "" for share in shares],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "textfont": {"color": "var(--paper)", "size": 12},
                "hovertemplate": f"%{{y}}<br>{plain(domain)} %{{x:.1f}} %<extra></extra>",
            }
        )
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": {"title": {"text": "share of the training data, %"}, "range": [0, 100], "showline": False},
        "yaxis": {"autorange": "reversed", "showgrid": False},
    }
    return Figure(traces, layout, height=90 + 42 * len(rows))


def _table(sweep: Sweep, rows: list[tuple[str, Array]], caption: str) -> Table:
    surrogate = sweep.surrogate
    assert surrogate is not None
    mixtures = np.array([w for _, w in rows])
    basis = surrogate.at_target(mixtures)
    sd = np.sqrt(surrogate.variance(basis))
    gain, gain_sd = difference(surrogate, mixtures, sweep.best)
    columns = [
        Column("Mixture", numeric=False),
        *(Column(d, "%") for d in sweep.problem.space.domains[:8]),
        Column("Predicted", f"{sweep.metric}, 95 %"),
        Column("Worse by", "± sd"),
    ]
    if sweep.truth:
        columns += [Column("True value"), Column("Regret")]
    cells = []
    for i, (name, w) in enumerate(rows):
        own = sweep.own(float(basis.mean[i]))
        row: list[str | Chip] = [name, *(f"{100 * share:.1f}" for share in w[:8]), f"{own:.4f} ± {Z95 * sd[i]:.4f}"]
        row.append("–" if i == 0 else plus_minus(-float(gain[i]), float(gain_sd[i])))
        if sweep.truth:
            row += [fixed(sweep.truth.value(w.tolist())), fixed(sweep.truth.regret(w.tolist()))]
        cells.append(row)
    return Table(columns, cells, caption)


# --- over the cost ------------------------------------------------------------------------------------------------------------------


def cost_section(sweep: Sweep) -> Section | None:
    """Predicted value of the recommendation against the cost so far, and its true regret where that is known."""
    rows = [row for row in sweep.history if row.get("predicted") is not None]
    if not rows:
        return None
    blocks: list[Block] = [_value_figure(sweep)]
    if any(row.get("regret") is not None for row in rows):
        blocks.append(_regret_figure(sweep))
    return Section("The answer over the cost", blocks)


def _value_figure(sweep: Sweep) -> Figure:
    rows = [row for row in sweep.history if row.get("predicted") is not None]
    x = [row["spent_full_runs"] for row in rows]
    edge = {"x": x, "mode": "lines", "line": {"width": 0, "shape": "hv"}, "hoverinfo": "skip", "showlegend": False}
    traces: list[Trace] = [
        edge | {"y": [row["low"] for row in rows]},
        edge | {"y": [row["high"] for row in rows], "fill": "tonexty", "fillcolor": f"{BEST}/0.14"},
        _line(x, [row["predicted"] for row in rows], "predicted at the target, 95 % interval", BEST),
    ]
    if any(row.get("true_value") is not None for row in rows):
        traces.append(_line(x, [row["true_value"] for row in rows], "its true value", GOOD))
    if sweep.truth:
        level = {"x": [x[0], x[-1]], "y": [sweep.own(sweep.truth.best)] * 2, "name": "best there is", "mode": "lines", "hoverinfo": "y"}
        traces.append(level | {"line": {"color": "var(--muted)", "width": 1.5, "dash": "dash"}})
    seen = _observed_at_target(sweep)
    if seen:
        traces.append(
            {
                "x": [at for at, _, _ in seen],
                "y": [value for _, value, _ in seen],
                "name": "measured at the target",
                "mode": "markers",
                "marker": {"symbol": "circle-open", "size": 8, "color": "var(--ink)", "line": {"width": 1.5}},
                "text": [f"trial {number}" for _, _, number in seen],
                "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
            }
        )
    caption = (
        "After each trial: the mixture that the study would have recommended had it stopped there, by its predicted value for the largest "
        "model at the last step. The level is an extrapolation until something has been measured there."
    )
    layout = {"xaxis": FULL_RUNS, "yaxis": {"range": _span(rows, seen)}}
    return Figure(traces, layout, caption, f"{sweep.metric} of the recommended mixture for {sweep.target}", 400)


def _span(rows: list[Mapping[str, Any]], seen: list[tuple[float, float, int]]) -> list[float]:
    """Of the vertical axis: from the last answer before anything was measured at the target, or the second half while nothing was.

    Earlier guesses and their intervals would leave no room for anything else.
    """
    guesses = sum(row["spent_full_runs"] < seen[0][0] for row in rows) if seen else 0
    settled = rows[guesses - 1 if guesses else len(rows) // 2 :]
    values = [row[key] for row in settled for key in ("predicted", "true_value") if row.get(key) is not None]
    values += [value for _, value, _ in seen] + [rows[-1]["low"], rows[-1]["high"]]
    pad = 0.08 * (max(values) - min(values)) or 1.0
    return [min(values) - pad, max(values) + pad]


def _line(x: list[float], y: list[float | None], name: str, colour: str) -> Trace:
    return {
        "x": x,
        "y": y,
        "name": name,
        "mode": "lines",
        "line": {"color": colour, "width": 2, "shape": "hv"},
        "hovertemplate": f"{name}<br>%{{x:.3~g}} full runs: %{{y:.4f}}<extra></extra>",
    }


def _observed_at_target(sweep: Sweep) -> list[tuple[float, float, int]]:
    """Cost when it was known, value and number of every trial that reached the target."""
    name, step = sweep.problem.fidelities.sizes[-1], sweep.problem.fidelities.steps[-1]
    ended = {row["trial"]: row["spent_full_runs"] for row in sweep.history}
    return [
        (ended[trial.record.number], trial.value, trial.record.number)
        for trial in sweep.trials
        if trial.value is not None and trial.record.number in ended and trial.record.model_size == name and trial.record.steps == step
    ]


def _regret_figure(sweep: Sweep) -> Figure:
    rows = [row for row in sweep.history if row.get("regret") is not None]
    assert sweep.truth is not None
    x = [row["spent_full_runs"] for row in rows]
    floor = 1e-6  # zero has no place on a logarithmic axis
    traces = [_line(x, [max(row["regret"], floor) for row in rows], "recommended mixture", BEST)]
    uniform = sweep.truth.regret(sweep.problem.space.centroid().tolist())
    if uniform:
        for share, dash in ((1.0, "dash"), (0.1, "dot")):
            name = "uniform mixture" if share == 1 else "10 % of that"
            level = {"x": [x[0], x[-1]], "y": [share * uniform] * 2, "name": name, "mode": "lines", "hoverinfo": "y+name"}
            traces.append(level | {"line": {"color": "var(--muted)", "width": 1.5, "dash": dash}})
    best = "the exact optimum" if sweep.truth.exact else "the best mixture that a dense search found"
    return Figure(
        traces,
        {"xaxis": FULL_RUNS, "yaxis": LOG},
        f"How much worse the recommended mixture truly is than {best}; the study never sees this.",
        f"regret in {sweep.metric}",
        320,
    )
