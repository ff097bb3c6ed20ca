"""Tables and the report of a comparison in cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import CellsConfig
from .trial import Trial

Result = Mapping[str, Any]


def cell_rows(cfg: CellsConfig, results: Mapping[Trial, Result], steps: int) -> list[dict[str, Any]]:
    """One row a trial and rung."""
    return [
        {
            **dict(zip(cfg.cells, trial.cell, strict=True)),
            "trial": trial.number,
            **trial.setting,
            "steps": steps,
            "status": result["status"],
            **{key: result.get(key) for key in ("parameters", "final/test_loss", "final/test_accuracy", "message")},
        }
        for trial, result in results.items()
    ]


def summary(cfg: CellsConfig, final: Mapping[Trial, Sequence[Result]]) -> list[dict[str, Any]]:
    """One entry a cell: its best setting, and mean and standard deviation over the fresh seeds."""
    entries = []
    for trial, results in final.items():
        fine = [result for result in results if result["status"] == "ok"]
        losses = [result["final/test_loss"] for result in fine]
        entries.append({
            "cell": dict(zip(cfg.cells, trial.cell, strict=True)),
            "setting": dict(trial.setting),
            "seeds": len(fine),
            "parameters": fine[0]["parameters"] if fine else None,
            "test_loss": statistics.mean(losses) if losses else None,
            "test_loss_se": statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None,
            "test_accuracy": statistics.mean(result["final/test_accuracy"] for result in fine) if fine else None,
        })  # fmt: skip
        shown = f"{statistics.mean(losses):.4f}" if losses else "failed"
        shown += f" ({len(results) - len(fine)} of {len(results)} seeds failed)" if losses and len(fine) < len(results) else ""
        print("  ".join([*(f"{value!s:18s}" for value in trial.cell), shown, *(f"{k}={v}" for k, v in trial.setting.items())]), flush=True)
    return entries


def write_report(folder: Path, cfg: CellsConfig) -> Path:
    """The page of the final runs; of the tuning runs where there are none."""
    from src.nanollama.report import find_runs
    from src.nanollama.report.training import training_page

    runs = find_runs([folder / ("final" if cfg.seeds else "trials")])
    lead = "Tuning runs, all of them: the best of each cell owes something to luck."
    if cfg.seeds:
        lead = f"The best setting of each cell, trained again with {cfg.seeds} fresh seeds. Every cell was given the same trials."
    path = folder / "report.html"
    training_page(runs, "Families at equal numbers of parameters", lead).write(path)
    return path
