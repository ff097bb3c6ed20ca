"""Scaling laws of the excess loss over the exact floor.

    python -m src.nanollama.launcher src/apps/gssm/configs/scaling/model_size.yaml run_dir=runs/model_size
    python -m src.apps.gssm.scaling runs=[runs/model_size] x=parameters

Reads the ``result.json`` of every training below ``runs``, averages repetitions (other seeds), and fits E = c + a x^-b to each curve, with
95 % intervals, or says that the points do not determine it. Writes ``scaling.json`` and ``scaling.html``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.nanollama.config import ConfigError, RunFolder, main, write_json

from .power_law import fit
from .scaling_config import SCALING, ScalingConfig

if TYPE_CHECKING:
    from src.nanollama.report import Run


@main(SCALING)
def scaling(cfg: ScalingConfig, run: RunFolder) -> dict[str, Any]:
    """Read, fit, print a table, write the report."""
    from src.nanollama.report import find_runs

    from .pages import scaling_page

    found = laws(find_runs([Path(path) for path in cfg.runs]), cfg)
    write_json(run.path / "scaling.json", found)
    scaling_page(found).write(run.path / "scaling.html")
    print(table(found))
    print(f"\nreport: {run.path / 'scaling.html'}")
    return {"laws": {curve["name"]: curve["law"] for curve in found["curves"]}}


def laws(runs: Sequence[Run], cfg: ScalingConfig) -> dict[str, Any]:
    """Curves of (x, mean excess, standard error, repetitions), each with its law.

    Runs without an excess loss are left out, and named; so are repetitions whose mean is not positive. (Not single ones below zero: the
    mean of the others would be too high.)
    """
    points: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    runs_at: dict[tuple[str, float], list[str]] = defaultdict(list)
    left_out = []
    for key in cfg.by:
        if all(_lookup(one.config, key) is None for one in runs):
            raise ConfigError(f"by={key}: the config of none of the {len(runs)} runs has this key, or all leave it empty")
    for one in runs:
        x, excess = abscissa(one, cfg.x), excess_loss(one.result, cfg.loss)
        if x is None or excess is None:
            left_out.append(one.name)
            continue
        name = ", ".join(f"{key}={_lookup(one.config, key)}" for key in cfg.by) or "all runs"
        points[name][x].append((excess, float(one.result.get("excess_loss_se") or 0)))
        runs_at[name, x].append(one.name)
    for (name, x), names in runs_at.items():
        if sum(excess for excess, _ in points[name][x]) <= 0:
            left_out += names
            del points[name][x]
    points = {name: by_x for name, by_x in points.items() if by_x}
    if not points:
        raise ConfigError(f"none of the {len(runs)} runs has both a positive excess loss and a value for x={cfg.x}")
    curves = [_curve(name, by_x) for name, by_x in sorted(points.items())]
    return {"x": cfg.x, "loss": cfg.loss, "curves": curves, "left_out": left_out}


def _curve(name: str, by_x: Mapping[float, list[tuple[float, float]]]) -> dict[str, Any]:
    x = sorted(by_x)
    mean = [float(np.mean([excess for excess, _ in by_x[at]])) for at in x]
    se = [_error(by_x[at]) for at in x]
    law = fit(np.array(x), np.array(mean), np.array(se))
    described = {"problem": "one x only"} if law is None else {**vars(law), "text": str(law)}
    drawn = None if law is None else [float(law(np.array(at))) for at in np.geomspace(x[0], x[-1], 50)]
    return {"name": name, "x": x, "excess": mean, "se": se, "repetitions": [len(by_x[at]) for at in x], "law": described, "line": drawn}


def _error(repeated: Sequence[tuple[float, float]]) -> float:
    """Standard error of the mean over repetitions; of a single one, that of its evaluation."""
    values = [excess for excess, _ in repeated]
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else repeated[0][1]


def abscissa(run: Run, name: str) -> float | None:
    """What a run is plotted over; None if it does not say."""
    value = _lookup(run.config, "data.sequences") if name == "sequences" else run.result.get(name)
    return float(value) if value else None


def excess_loss(result: Mapping[str, Any], which: str) -> float | None:
    """Excess over the paired floor, at the end or where the held-out loss was lowest (on the same sequences, so with the same floor)."""
    if result.get("excess_loss") is None or which == "final":
        return result.get("excess_loss")
    return result["best"]["valid"] - result["bayes_loss"]


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def table(found: Mapping[str, Any]) -> str:
    """Points and laws for a terminal."""
    lines = []
    for curve in found["curves"]:
        lines.append(f"{curve['name']}: {curve['law'].get('text') or curve['law']['problem']}")
        for x, excess, se, count in zip(curve["x"], curve["excess"], curve["se"], curve["repetitions"], strict=True):
            lines.append(f"  {found['x']} {x:>12.4g}   excess {excess:.4f} ± {se:.4f}   ({count} run{'s' * (count > 1)})")
    if found["left_out"]:
        lines.append(f"left out, for want of a positive excess loss or of a value of {found['x']}: {', '.join(found['left_out'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    scaling()
