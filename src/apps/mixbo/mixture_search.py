"""The parts of a search for the best mixture, put together before anything runs."""

from __future__ import annotations

from src.nanollama.config import RunFolder

from .build import build, suggesting
from .config import SweepConfig, identity
from .controller import Limits
from .jobs import Launch, open_pool
from .parts import Parts
from .progress import Progress
from .records import Record, Suggestion
from .runners import SimulatedRunner
from .study import Study
from .suggest import first_flops
from .truth import Truth
from .watch import Watch


def mixture_search(cfg: SweepConfig, run: RunFolder, launch: Launch | None = None) -> Parts[Suggestion, Record]:
    """A search for the best mixture. Raises ConfigError before anything is trained."""
    problem, runner = build(cfg, run.path / "trials", lambda: open_pool(cfg.pool, cfg.cluster, run.path, launch))
    limits = Limits.of(cfg.budget, first_flops(problem, cfg.seed), problem.full_run)
    name = identity(cfg)
    study = Study(f"{cfg.name}-{name}", cfg.storage or Study.sqlite(run.path), problem, name)
    if cfg.storage:
        study.claim(run.path)
    study.records()  # raises where they are of other domains than the corpus has now
    truth = Truth(problem, runner.objective) if isinstance(runner, SimulatedRunner) else None
    progress = Progress(problem, limits, run.path)
    watch = Watch(cfg, run, problem, study, truth, progress)
    return Parts(suggesting(problem, cfg.seed), study, runner, limits, watch, progress)
