"""Predicted against observed: is the surrogate right, and does it know when it is not?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.nanollama.report import Figure, Panels, Section

from ..fitting import fit
from ..observations import rows
from ..recommend import Z95
from ..records import finished
from ..style import Trace, size_colour
from ..surrogate import Surrogate, arrays
from .folder import Sweep

# benchmarks/RESULTS.md
NARROW = "somewhat too narrow: of 90 % intervals 67 to 92 % held on simulated data, fewest where small models mislead"
MOST = 150  # runs left out one at a time: each costs a factorisation


@dataclass(frozen=True)
class Prediction:
    """A value that was predicted without having been seen, in the metric's own units; ``sd`` includes the observation noise."""

    trial: int
    model_size: str
    mean: float
    sd: float
    observed: float

    @property
    def covered(self) -> bool:
        """Whether the 95 % interval holds the value."""
        return abs(self.observed - self.mean) <= Z95 * self.sd


def one_step_ahead(sweep: Sweep) -> list[Prediction]:
    """What each suggestion predicted for itself, and what came out."""
    noise = sweep.surrogate.noise_variance if sweep.surrogate else 0.0
    return [
        Prediction(t.record.number, t.record.model_size, sweep.own(t.predicted_mean), (t.predicted_sd**2 + noise) ** 0.5, t.value)
        for t in sweep.trials
        if t.value is not None and t.predicted_mean is not None and t.predicted_sd is not None
    ]


def leave_one_out(sweep: Sweep) -> list[Prediction]:
    """The last value of each trial from all trials that do not belong to its run, with the hyper-parameters of all."""
    problem, records = sweep.problem, finished(sweep.records)
    checkpoints = problem.surrogate.checkpoints
    x, y, pending = arrays(problem, records, (checkpoints, 2.0))
    fitted = fit(*arrays(problem, records, ((checkpoints + 1) // 2, 4.0))[:2], problem.space.dim, problem.surrogate)
    roots: dict[int, int] = {}
    for record in records:
        roots[record.number] = roots.get(record.parent, record.number) if record.parent is not None else record.number
    found = []
    for record in records[-MOST:]:
        others = x[:, -1] != roots[record.number]
        if not others.any():
            continue
        surrogate = Surrogate(problem, x[others], y[others], pending, fitted)
        size = problem.fidelities.index(record.model_size)
        step, values = record.curve[-1]
        basis = surrogate.basis(rows(problem, np.array(record.weights), size, float(step)))
        sd = float(surrogate.variance_of_run(basis)[0] + surrogate.noise_variance) ** 0.5
        observed = sweep.own(float(problem.metric.objective(values)))
        found.append(Prediction(record.number, record.model_size, sweep.own(float(basis.mean[0])), sd, observed))
    return found


def calibration_section(sweep: Sweep) -> Section | None:
    """Each trial predicted without its own run, and each suggestion's own prediction."""
    if sweep.surrogate is None or len(finished(sweep.records)) < 3:
        return None
    left_out, ahead = leave_one_out(sweep), one_step_ahead(sweep)
    panels = [
        _scatter(sweep, left_out, "leave one run out: observed"),
        _residuals(sweep, left_out, "leave one run out: observed − predicted"),
    ]
    said = _coverage("Leaving a run out", left_out)
    if ahead:
        panels.append(_residuals(sweep, ahead, "one step ahead: observed − predicted"))
        said += " " + _coverage("At the time of each suggestion", ahead)
    caption = (
        f"Bars are 95 % intervals and should cross the line 19 times out of 20 (but they are {NARROW}). "
        "Left out: predicted from all other runs, with the final hyper-parameters. "
        "One step ahead: what the study predicted for each trial before it was run."
    )
    return Section("Predicted against observed", [Panels(panels, caption)], said)


def _coverage(when: str, predictions: Sequence[Prediction]) -> str:
    inside = sum(p.covered for p in predictions)
    error = float(np.sqrt(np.mean([(p.observed - p.mean) ** 2 for p in predictions])))
    return f"{when}, {inside} of {len(predictions)} values fell into their 95 % interval; the error is {error:.4f} (root mean square)."


def _by_size(sweep: Sweep, predictions: Sequence[Prediction]) -> list[tuple[str, str, list[Prediction]]]:
    groups = [
        (size, size_colour(i), [p for p in predictions if p.model_size == size]) for i, size in enumerate(sweep.problem.fidelities.sizes)
    ]
    return [group for group in groups if group[2]]


def _dots(name: str, colour: str) -> Trace:
    return {"name": name, "mode": "markers", "marker": {"size": 6, "color": colour}}


def _scatter(sweep: Sweep, predictions: Sequence[Prediction], title: str) -> Figure:
    span = [f([v for p in predictions for v in (p.observed, p.mean)]) for f in (min, max)]
    traces: list[Trace] = [
        {"x": span, "y": span, "mode": "lines", "line": {"color": "var(--faint)", "width": 1}, "hoverinfo": "skip", "showlegend": False}
    ]
    for size, colour, group in _by_size(sweep, predictions):
        traces.append(
            _dots(size, colour)
            | {
                "x": [p.mean for p in group],
                "y": [p.observed for p in group],
                "error_x": _bars(group, colour),
                "text": [f"trial {p.trial}" for p in group],
                "hovertemplate": "<b>%{text}</b><br>predicted %{x:.4f}<br>observed %{y:.4f}<extra></extra>",
            }
        )
    return Figure(
        traces, {"xaxis": {"title": {"text": f"predicted {sweep.metric}"}, "nticks": 6}, "yaxis": {"nticks": 6}}, title=title, height=300
    )


def _residuals(sweep: Sweep, predictions: Sequence[Prediction], title: str) -> Figure:
    traces: list[Trace] = []
    for size, colour, group in _by_size(sweep, predictions):
        traces.append(
            _dots(size, colour)
            | {
                "x": [p.trial for p in group],
                "y": [p.observed - p.mean for p in group],
                "error_y": _bars(group, colour),
                "hovertemplate": "<b>trial %{x}</b><br>%{y:+.4f}<extra></extra>",
            }
        )
    line: Mapping[str, object] = {"zeroline": True, "zerolinecolor": "var(--faint)", "nticks": 6}
    numbers = [p.trial for p in predictions]
    whole = {"dtick": 1} if max(numbers) - min(numbers) < 6 else {}  # there is no trial 11.5
    return Figure(traces, {"xaxis": {"title": {"text": "trial"}, **whole}, "yaxis": line}, title=title, height=300)


def _bars(group: Sequence[Prediction], colour: str) -> dict[str, object]:
    return {"type": "data", "array": [Z95 * p.sd for p in group], "color": f"{colour}/0.45", "thickness": 1.25, "width": 0}
