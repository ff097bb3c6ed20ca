"""Find the data mixture that is best for the largest model, from small and short runs.

python -m src.apps.mixbo.sweep                                     # real trainings on this machine
python -m src.apps.mixbo.sweep objective=simulator strategy=kg     # a simulated study, in seconds
"""

from __future__ import annotations

from contextlib import closing
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
    from .runners import SimulatedRunner
    from .study import Study
    from .truth import Truth
    from .watch import Watch

    torch.set_num_threads(1)
    problem, runner = build(cfg, run.path / "trials")
    limits = Limits.of(cfg.budget, problem)
    name = identity(cfg)
    study = Study(f"{cfg.name}-{name}", cfg.storage or Study.sqlite(run.path), problem, name)
    truth = Truth(problem, runner.objective) if isinstance(runner, SimulatedRunner) else None

    # One thread: the matrices are small, and the machine's cores belong to the trials.
    with (
        threadpool_limits(1),
        stop_flag() as stop,
        Progress(problem, limits, run.path) as progress,
        closing(Watch(cfg, run, problem, study, truth, progress)) as watch,
    ):
        reason = Controller(problem, study, runner, cfg.seed, limits, watch).run(stop)
        watch(study.records())
    progress.conclude(watch.answers, reason)
    return {**watch.answers, "stopped_because": reason}


if __name__ == "__main__":
    sweep()
