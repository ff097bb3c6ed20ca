"""Find the data mixture that is best for the largest model, from small and short runs.

    python -m src.apps.mixbo.sweep                                     # real trainings on this machine
    python -m src.apps.mixbo.sweep objective=simulator strategy=kg     # a simulated study, in seconds
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from src.nanollama.config import RunFolder, main

from .config import SWEEP, SweepConfig, identity


@main(SWEEP)
def sweep(cfg: SweepConfig, run: RunFolder) -> dict[str, Any]:
    """Run or resume the study in ``run``; returns what ``best.json`` says."""
    import torch
    from threadpoolctl import threadpool_limits

    from src.nanollama.launcher.signals import stop_flag

    from .build import build
    from .controller import Controller, Limits
    from .progress import Progress
    from .recommend import recommend
    from .records import Record
    from .results import best, write_best, write_tables
    from .study import Study

    torch.set_num_threads(1)
    problem, runner = build(cfg, run.path / "trials")
    limits = Limits.of(cfg.budget, problem)
    name = identity(cfg)
    study = Study(f"{cfg.name}-{name}", cfg.storage or Study.sqlite(run.path), problem, name)
    answers: dict[str, Any] = {}
    told = -1

    def on_change(records: Sequence[Record]) -> None:
        nonlocal told
        write_tables(run.path, problem, study)
        ended = sum(record.status != "running" for record in records)
        if ended != told and (answer := recommend(problem, records)) is not None:
            told = ended
            answers.update(best(problem, records, answer))
            write_best(run.path, answers)
            run.summary.update(answers)
        progress.show(records, answers)

    # One thread: the matrices are small, and the machine's cores belong to the trials.
    with threadpool_limits(1), stop_flag() as stop, Progress(problem, limits, run.path) as progress:
        reason = Controller(problem, study, runner, cfg.seed, limits, on_change).run(stop)
    on_change(study.records())
    progress.conclude(answers, reason)
    return {**answers, "stopped_because": reason}


if __name__ == "__main__":
    sweep()
