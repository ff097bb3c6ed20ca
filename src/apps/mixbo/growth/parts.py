"""The parts of a growth, put together before anything trains."""

from __future__ import annotations

from pathlib import Path

from src.nanollama.config import ConfigError, RunFolder

from ..config import SweepConfig, identity
from ..controller import Limits
from ..jobs import open_pool
from ..parts import Parts
from ..runners import TrainingRunner
from ..study import Study
from .commands import Commands
from .export import check_owner
from .problem import open_growth
from .shapes import Shapes
from .trials import Growing, GrowthRecord, Wanted
from .watch import GrowthProgress, GrowthWatch


def growth(cfg: SweepConfig, run: RunFolder) -> Parts[Wanted, GrowthRecord]:
    """A greedy growth. Raises ConfigError before anything is trained."""
    if cfg.cluster.torchrun:
        raise ConfigError("cluster.torchrun=true: a growth measures and trains its shapes in one process each; leave it out")
    shapes, name = Shapes(cfg.training, cfg.growth), identity(cfg)
    shapes.overrides(cfg.growth.override)
    if cfg.growth.results_file:
        check_owner(Path(cfg.growth.results_file), name)
    study = growth_study(cfg, run.path)
    if cfg.storage:
        study.claim(run.path)
    growing = open_growth(shapes, study, cfg.growth.override)
    runner = TrainingRunner(run.path / "trials", Commands(shapes), open_pool(cfg.pool, cfg.cluster, run.path))
    limits = Limits.of(cfg.budget, growing.first_flops)
    progress = GrowthProgress(run.path)
    watch = GrowthWatch(cfg, run, growing, study, name, progress)
    return Parts(growing.ask, study, runner, limits, watch, progress)


def growth_study(cfg: SweepConfig, folder: Path) -> Study[Wanted, GrowthRecord]:
    """The study in a growth's folder."""
    name = identity(cfg)
    return Study(f"{cfg.name}-{name}", cfg.storage or Study.sqlite(folder), Growing(), name)
