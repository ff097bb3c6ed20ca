"""Words, colours and axes that the pages share."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from src.nanollama.report.page import series_colour

from .problem import Fidelities

Trace = dict[str, Any]

BEST = "var(--c2)"  # the recommended mixture, everywhere
GOOD = "var(--c1)"
FULL_RUNS: Mapping[str, Any] = {
    "title": {"text": "cost so far, in full runs of the largest model"},
    "type": "log",
    "dtick": "D2",
    "tickformat": "~g",
}
LOG: Mapping[str, Any] = {"type": "log", "dtick": "D2", "tickformat": "~g"}
# opacity of one colour, so that a map reads on light and on dark paper
SEQUENTIAL = [[0.0, f"{GOOD}/0.04"], [1.0, f"{GOOD}/0.95"]]
COUNTS = [[0.0, f"{GOOD}/0.06"], [1.0, f"{GOOD}/0.5"]]  # no stronger: numbers stand on it
CLOSE_IS_STRONG = [[0.0, f"{GOOD}/0.95"], [0.25, f"{GOOD}/0.5"], [1.0, f"{GOOD}/0.03"]]
DIVERGING = [[0.0, "var(--c2)/0.6"], [0.5, "var(--c2)/0.0"], [0.5, "var(--c1)/0.0"], [1.0, "var(--c1)/0.55"]]


def size_colour(index: int) -> str:
    """The colour of a model size."""
    return series_colour(index)


def plain(text: str) -> str:
    """A name as text: plotly reads a subset of HTML."""
    return html.escape(text, quote=False)


def mixture(weights: Mapping[str, float], least: float = 0.005) -> str:
    """``50 % prose, 30 % python, 20 % data``: shares from large to small."""
    shares = sorted(((w, d) for d, w in weights.items() if w >= least), reverse=True)
    return ", ".join(f"{100 * w:.0f} % {d}" for w, d in shares)


def some_steps(fidelities: Fidelities, most: int = 6) -> list[int]:
    """At most ``most`` of the steps, evenly in their logarithm, with the last."""
    steps = fidelities.steps
    if len(steps) <= most:
        return list(steps)
    ratio = (steps[-1] / steps[0]) ** (1 / (most - 1))
    wanted = [steps[-1] / ratio**k for k in range(most)]
    return sorted({min(steps, key=lambda step: abs(step - w)) for w in wanted})


def cells(
    fidelities: Fidelities,
    steps: Sequence[int],
    z: Sequence[Sequence[float | None]],
    text: Sequence[Sequence[str]],
    hover: str,
    **heat: Any,
) -> tuple[list[Trace], dict[str, Any]]:
    """A map of the fidelity grid: one row a size, the largest on top, one column a step. ``z`` and ``text`` as [size][step]."""
    trace: Trace = {
        "type": "heatmap",
        "x": [str(step) for step in steps],
        "y": [plain(size) for size in fidelities.sizes],
        "z": z,
        "text": text,
        "texttemplate": "%{text}",
        "textfont": {"size": 11.5, "color": "var(--ink)"},
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
        "hoverongaps": False,
        "hovertemplate": f"<b>%{{y}} at step %{{x}}</b><br>{hover}<extra></extra>",
        **heat,
    }
    layout = {
        "xaxis": {"title": {"text": "step"}, "type": "category", "showline": False, "ticks": ""},
        "yaxis": {"type": "category", "showgrid": False},
    }
    return [trace], layout
