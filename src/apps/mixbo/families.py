"""Compare families of architectures at equal numbers of parameters: equal trials in every cell, the best of each on fresh seeds.

    python -m src.apps.mixbo.families experiment=phase1_small     # a laptop
    python -m src.apps.mixbo.families experiment=phase1_sweep     # 7 families x 6 sizes
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from src.nanollama.config import RunFailed, RunFolder, main

from .cells.config import CELLS, CellsConfig
from .cells.trial import Trial

if TYPE_CHECKING:
    from .jobs import Launch


@main(CELLS)
def families(cfg: CellsConfig, run: RunFolder, launch: Launch | None = None) -> dict[str, Any]:
    """Tune every cell by successive halving, train the best settings again, write tables and the report. The same command resumes."""
    from src.nanollama.config import write_csv, write_json

    from .cells.halving import Runs, check_cells, loss_of, promoted, rungs
    from .cells.propose import propose, waves
    from .cells.results import cell_rows, summary, write_report

    check_cells(cfg)
    runs, levels = Runs(cfg, run.path, launch), rungs(cfg)
    results: dict[Trial, dict[str, Any]] = {}
    for numbers in waves(cfg):
        losses = {trial: loss_of(result) for trial, result in results.items()}
        results |= runs.rung(propose(cfg, numbers, losses), levels[0], None)
    rows = cell_rows(cfg, results, levels[0])
    for before, steps in itertools.pairwise(levels):
        write_csv(run.path / "trials.csv", rows)
        chosen = promoted({trial: loss_of(result) for trial, result in results.items()}, cfg.halving.eta)
        results = runs.rung(chosen, steps, before)
        rows += cell_rows(cfg, results, steps)
    write_csv(run.path / "trials.csv", rows)
    chosen = promoted({trial: loss_of(result) for trial, result in results.items()}, len(results) + 1)
    if not chosen:
        raise RunFailed("no trial of any cell trained to its end; trials.csv has their messages", status="error")
    found = summary(cfg, runs.final(chosen) if cfg.seeds else {trial: [results[trial]] for trial in chosen})
    write_json(run.path / "cells.json", {"cells": found})
    report = write_report(run.path, cfg)
    print(f"report: {report}")
    return {"cells": len(found), "trials": len(rows)}


if __name__ == "__main__":
    families()
