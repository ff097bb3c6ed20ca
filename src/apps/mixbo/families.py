"""Compare families of architectures at equal numbers of parameters: equal trials in every cell, the best of each on fresh seeds.

    python -m src.apps.mixbo.families experiment=phase1_small     # a laptop
    python -m src.apps.mixbo.families experiment=phase1_sweep     # 7 families x 6 sizes
"""

from __future__ import annotations

from typing import Any

from src.nanollama.config import RunFailed, RunFolder, main

from .cells.config import CELLS, CellsConfig


@main(CELLS)
def families(cfg: CellsConfig, run: RunFolder) -> dict[str, Any]:
    """Tune every cell by successive halving, train the best settings again, write tables and the report. The same command resumes."""
    from src.nanollama.config import write_csv, write_json

    from .cells.halving import Runs, check_cells, loss_of, promoted, rungs, trials
    from .cells.results import cell_rows, summary, write_report

    check_cells(cfg)
    runs, chosen, before = Runs(cfg, run.path), trials(cfg), None
    rows: list[dict[str, Any]] = []
    for steps in rungs(cfg):
        results = runs.rung(chosen, steps, before)
        rows += cell_rows(cfg, results, steps)
        write_csv(run.path / "trials.csv", rows)
        losses = {trial: loss_of(result) for trial, result in results.items()}
        chosen, before = promoted(losses, cfg.halving.eta if steps < cfg.steps else len(losses)), steps
    if not chosen:
        raise RunFailed("no trial of any cell trained to its end; trials.csv has their messages", status="error")
    found = summary(cfg, runs.final(chosen) if cfg.seeds else {trial: [results[trial]] for trial in chosen})
    write_json(run.path / "cells.json", {"cells": found})
    report = write_report(run.path, cfg)
    print(f"report: {report}")
    return {"cells": len(found), "trials": len(rows)}


if __name__ == "__main__":
    families()
