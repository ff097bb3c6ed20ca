"""Every trial: a table, learning curves, and the settings of the sweep."""

from __future__ import annotations

from src.nanollama.config.compose import as_dict
from src.nanollama.report import Chip, Column, Figure, Section, Status, Table
from src.nanollama.report.format import UNKNOWN, fixed, plus_minus, significant
from src.nanollama.report.page import Cell

from ..records import runs
from ..style import Trace, mixture, size_colour
from .folder import Sweep, Trial

SHOWN = 500  # newest trials in the table; trials.csv has all
CURVES = 200


def trials_section(sweep: Sweep) -> Section | None:
    """One row a trial, the newest last."""
    if not sweep.trials:
        return None
    columns = [
        Column("Trial"),
        Column("Size", numeric=False),
        Column("Step"),
        Column("Observed", sweep.metric),
        Column("Predicted", "± sd"),
        Column("Trust", "correlation"),
        Column("Acquisition"),
        Column("Cost", "full runs"),
        Column("Status", numeric=False),
        Column("Mixture", numeric=False),
    ]
    shown = sweep.trials[-SHOWN:]
    caption = f"The newest {SHOWN} of {len(sweep.trials)}; trials.csv has all." if len(shown) < len(sweep.trials) else ""
    return Section("All trials", [Table(columns, [_cells(sweep, trial) for trial in shown], caption)], collapsed=True)


def _cells(sweep: Sweep, trial: Trial) -> list[Cell]:
    record = trial.record
    predicted = UNKNOWN if trial.predicted_mean is None else plus_minus(sweep.own(trial.predicted_mean), trial.predicted_sd)
    origin = f" (continues {record.parent})" if record.parent is not None else ""
    weights = dict(zip(sweep.problem.space.domains, record.weights, strict=True))
    return [
        str(record.number),
        Chip(record.model_size, size_colour(sweep.problem.fidelities.index(record.model_size))),
        str(record.steps),
        fixed(trial.value),
        predicted,
        fixed(trial.rho, 2),
        significant(trial.acquisition, 3),
        significant(record.flops / sweep.problem.full_run, 3),
        Status(trial.status),
        mixture(weights) + origin,
    ]


def curves_section(sweep: Sweep) -> Section | None:
    """Objective over steps of every run."""
    found = [run for run in runs(sweep.records) if run.curve][-CURVES:]
    if not found:
        return None
    traces: list[Trace] = []
    metric, sizes = sweep.problem.metric, sweep.problem.fidelities.sizes
    for run in sorted(found, key=lambda run: sizes.index(run.model_size)):
        colour = size_colour(sizes.index(run.model_size))
        traces.append(
            {
                "x": [step for step, _ in run.curve],
                "y": [sweep.own(float(metric.objective(values))) for _, values in run.curve],
                "name": run.model_size,
                "legendgroup": run.model_size,
                "mode": "lines+markers",
                "line": {"color": f"{colour}/0.55", "width": 1.25},
                "marker": {"size": 3.5, "color": colour},
                "hovertemplate": f"<b>trial {run.numbers[-1]}, {run.model_size}</b><br>step %{{x}}: %{{y:.4f}}<extra></extra>",
            }
        )
    layout = {"xaxis": {"title": {"text": "step"}, "type": "log", "dtick": "D2", "tickformat": "~g"}, "yaxis": {}}
    return Section(
        "Learning curves", [Figure(traces, layout, "One line a run, with its continuations.", sweep.metric, 420)], collapsed=True
    )


def settings_section(sweep: Sweep) -> Section:
    """What was searched, and how."""
    asked = as_dict(sweep.cfg)
    parts = ("strategy", "surrogate", "cost", "budget", "space", sweep.cfg.objective)
    rows: list[list[Cell]] = [[f"{part}.{key}", str(value)] for part in parts for key, value in asked[part].items()]
    rows += [
        [
            "sizes (parameters)",
            ", ".join(f"{s} ({p:.3g})" for s, p in zip(sweep.problem.fidelities.sizes, sweep.problem.fidelities.parameters, strict=True)),
        ]
    ]
    rows += [["FLOPs of one full run of the largest model", f"{sweep.problem.full_run:.4g}"]]
    return Section("Settings", [Table([Column("Key", numeric=False), Column("Value", numeric=False)], rows)], collapsed=True)
