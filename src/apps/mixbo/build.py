"""From a sweep's config to the problem it poses and whoever carries out its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from src.nanollama.config import ConfigError
from src.nanollama.config.explain import nearest
from src.nanollama.launcher.pool import JobPool

from .config import SweepConfig
from .jobs import local_pool
from .objectives import Objective
from .objectives.training import Trainings
from .options import SimulatorConfig
from .problem import Fidelities, Metric, Problem
from .protocol import Done
from .records import Record, Suggestion
from .runners import Runner, SimulatedRunner, TrainingRunner
from .space import MixtureSpace
from .strategies import GREEDY
from .suggest import suggest


def build(cfg: SweepConfig, trials: Path, pool: Callable[[], JobPool] | None = None) -> tuple[Problem, Runner[Record]]:
    """The problem and the runner; ``trials`` is the folder of the trials' run folders.

    ``pool`` opens the pool that trains; None: this machine's. Raises ConfigError before anything is trained.
    """
    if cfg.strategy.name == GREEDY:
        raise ConfigError(f"{trials.parent} is a growth, which has no mixtures: look at it with python -m src.apps.mixbo.view")
    if cfg.objective == "training":
        trainings = Trainings(cfg.training, cfg.fidelity)
        if cfg.cost.continuation and not trainings.continuable:
            raise ConfigError(
                f"optim.schedule={trainings.optim.schedule}: the rate depends on a run's length from its start on, so no trial can be "
                "continued for more steps; take constant or wsd, or cost.continuation=false to train every trial from scratch"
            )
        problem = replace(_problem(cfg, trainings, None), decay=trainings.decay)
        return problem, TrainingRunner(trials, trainings, pool() if pool else local_pool(cfg.pool))
    objective = _table(cfg) if cfg.objective == "table" else _simulator(cfg)
    return _problem(cfg, objective, objective), SimulatedRunner(trials, objective)


def suggesting(problem: Problem, seed: int) -> Callable[[Sequence[Record]], Suggestion | Done]:
    """What the controller asks: the strategy's next trial."""
    return lambda records: suggest(problem, records, seed, len(records))


def _problem(cfg: SweepConfig, source: Objective | Trainings, objective: Objective | None) -> Problem:
    choices = getattr(objective, "choices", None)
    space = MixtureSpace.from_config(replace(cfg.space, domains=source.domains), choices)
    available = getattr(objective, "available", None)
    held = cfg.strategy.model_size
    if held is not None and held not in source.fidelities.sizes:
        raise ConfigError(f"strategy.model_size = {held!r}; {nearest(held, source.fidelities.sizes)}")
    return Problem(space, source.fidelities, source.metric, source.flops_per_step, cfg.cost, cfg.surrogate, cfg.strategy, available)


def _simulator(cfg: SweepConfig) -> Objective:
    from .objectives.emulator import Emulator
    from .objectives.simulator import DEFAULT_SIZES, DEFAULT_STEPS, Simulator

    options, asked = cfg.simulator, cfg.fidelity
    if options.path:
        emulator = Emulator(Path(options.path).expanduser(), options.metric, asked.steps, options.noise, options.seed)
        if asked.model_size and tuple(asked.model_size) != emulator.fidelities.sizes:
            raise ConfigError(f"fidelity.model_size: this emulator has {list(emulator.fidelities.sizes)}; leave it out to use them all")
        return emulator
    if options.metric != SimulatorConfig.metric:
        raise ConfigError(f"simulator.metric = {options.metric!r} chooses among an emulator's metrics; name the emulator in simulator.path")
    sizes = asked.model_size or tuple(DEFAULT_SIZES)
    unknown = [size for size in sizes if size not in DEFAULT_SIZES]
    if unknown:
        raise ConfigError(f"fidelity.model_size: {unknown[0]!r} is not a size of the simulator, which has {', '.join(DEFAULT_SIZES)}")
    fidelities = Fidelities(tuple(sizes), tuple(DEFAULT_SIZES[size] for size in sizes), tuple(asked.steps or DEFAULT_STEPS))
    return Simulator(options, MixtureSpace.from_config(cfg.space), fidelities)


def _table(cfg: SweepConfig) -> Objective:
    from .objectives.table import Table

    if not cfg.table.path:
        raise ConfigError("table.path is missing: name the CSV of finished runs")
    metric = Metric(cfg.table.outputs, tuple(1 / len(cfg.table.outputs) for _ in cfg.table.outputs), cfg.table.maximise)
    return Table(Path(cfg.table.path).expanduser(), cfg.space.domains, metric, cfg.table.parameters, cfg.table.flops_per_step)
