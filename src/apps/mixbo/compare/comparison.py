"""What is compared between strategies: regret where it is known, else each study's own prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.nanollama.report.page import series_colour

from ..style import Trace, plain
from .runs import SweepRun
from .stats import Reached, Steps, median_cost, quartiles

SHARES = (0.5, 0.2, 0.1)  # of the uniform mixture's regret: the thresholds
FLOOR = 1e-6  # a regret of zero has no place on a logarithmic axis


class Comparison:
    """The runs by label, and what is compared: regret where all know it, else each study's own prediction."""

    def __init__(self, runs: Sequence[SweepRun]) -> None:
        self.runs = list(runs)
        self.labels = list(dict.fromkeys(run.label for run in runs))
        self.colour = {label: series_colour(i) for i, label in enumerate(self.labels)}
        self.known = all(run.answers[-1].get("regret") is not None and run.uniform_regret for run in runs)
        self.reference = next((label for label in self.labels if label.split(",")[0] == "kg"), self.labels[0])

    def of(self, label: str) -> list[SweepRun]:
        """The runs of one strategy."""
        return [run for run in self.runs if run.label == label]

    def curve(self, run: SweepRun) -> Steps:
        """(cost, regret or predicted value) after every trial."""
        key = "regret" if self.known else "predicted"
        return [(row["spent_full_runs"], max(row[key], FLOOR) if self.known else row[key]) for row in run.answers]

    def curves(self, label: str) -> list[Steps]:
        """Of every run of a strategy."""
        return [self.curve(run) for run in self.of(label)]

    def reached(self, label: str, share: float) -> Reached | None:
        """Median cost to come, for good, within a share of the uniform mixture's regret; None where regrets are not known."""
        if not self.known:
            return None
        return median_cost(self.curves(label), [share * (run.uniform_regret or 0.0) for run in self.of(label)])

    def final(self, label: str) -> tuple[float, float, float]:
        """Quartiles over runs of the last value."""
        low, middle, high = np.quantile([curve[-1][1] for curve in self.curves(label)], [0.25, 0.5, 0.75])
        return float(low), float(middle), float(high)

    def summary(self) -> list[dict[str, Any]]:
        """One entry a strategy, for ``compare.json``."""
        entries = []
        for label in self.labels:
            low, middle, high = self.final(label)
            entry: dict[str, Any] = {"strategy": label, "runs": len(self.of(label)), "measure": "regret" if self.known else "predicted"}
            entry |= {
                "median": middle,
                "quartiles": [low, high],
                "spent_full_runs": float(np.median([run.spent for run in self.of(label)])),
            }
            for share in SHARES if self.known else ():
                found = self.reached(label, share)
                assert found is not None
                entry[f"full_runs_to_{100 * share:.0f}_percent"] = {
                    "median": found.cost,
                    "lower_bound": found.bound,
                    "reached": found.reached,
                }
            entries.append(entry)
        return entries


def band(name: str, colour: str, costs: np.ndarray, curves: Sequence[Steps], form: str) -> list[Trace]:
    """Median line and quartile band of curves."""
    low, middle, high = quartiles(curves, costs)
    keep = np.isfinite(middle)
    edge = {
        "x": costs[keep],
        "mode": "lines",
        "line": {"width": 0, "shape": "hv"},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }
    bands: list[Trace] = [edge | {"y": low[keep]}, edge | {"y": high[keep], "fill": "tonexty", "fillcolor": f"{colour}/0.13"}]
    line = {
        "x": costs[keep],
        "y": middle[keep],
        "name": name,
        "legendgroup": name,
        "mode": "lines",
        "line": {"color": colour, "width": 2.25, "shape": "hv"},
    }
    hover = f"<b>{plain(name)}</b><br>%{{x:.3~g}} full runs: %{{y:{form}}}<extra></extra>"
    return [*(bands if len(curves) > 1 else []), line | {"hovertemplate": hover}]
