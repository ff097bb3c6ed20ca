"""Configs of the commands that measure and calibrate difficulty. They take the same files as the trainings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import NamedTuple

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.schema import Count, Int, Positive, PositiveFloat, Several, config

from .config import EXPERIMENTS, GssmConfig
from .graph import Graph, build


@config
class MeasureConfig:
    """How much data each measure sees. Its own seed: measuring draws nothing that a training would."""

    tokens: Positive = 131_072  # gzip; and to fit, and again to score, each n-gram model
    sequences: Several = 256  # exact losses; each of data.seq_len predicted tokens; fewer where the filter is slow
    seed: Int = 0
    ngrams: tuple[Positive, ...] = (3,)
    windows: tuple[Positive, ...] = (1, 2, 4, 8, 16)  # left out where they would take minutes
    threads: Positive = 1


@config
class LogGrid:
    """``num`` concentrations from ``low`` to ``high``, evenly spaced on a log scale."""

    low: PositiveFloat = 1e-3
    high: PositiveFloat = 1.0
    num: Count = 0

    def values(self) -> list[float]:
        return [self.low * (self.high / self.low) ** (i / max(self.num - 1, 1)) for i in range(self.num)]


@config
class MapConfig:
    """Axes of a map of difficulty over (alpha_X, alpha_Z); an axis without points stays at the concentration in force."""

    alpha_X: LogGrid = field(default_factory=LogGrid)
    alpha_Z: LogGrid = field(default_factory=LogGrid)

    @property
    def active(self) -> bool:
        return self.alpha_X.num > 0 or self.alpha_Z.num > 0


@config
class DifficultyConfig(GssmConfig):
    """Config of ``src.apps.gssm.difficulty``: one setting, every entry of ``setups``, or a map."""

    measure: MeasureConfig = field(default_factory=MeasureConfig)
    graph_seeds: Positive = 1  # kernels drawn with graph_seed, graph_seed + 1, ..
    map: MapConfig = field(default_factory=MapConfig)


@config
class SolveConfig:
    """What to solve for, and within which bounds."""

    measure: str = "bayes_loss"  # any measure of src.apps.gssm.difficulty
    target: float | None = None  # its wanted value; or
    like: str | None = None  # an entry of setups, to be as difficult as
    free: str = "alpha_Z"  # alpha_X, alpha_Z, or the name of a node
    low: PositiveFloat = 1e-3
    high: PositiveFloat = 10.0
    tolerance: PositiveFloat | None = None  # None: a quarter of the standard error, .0001 to .005; .002 where there is none
    curve: Count = 7  # points of the iso-difficulty curve alpha_Z(alpha_X), from low to at most 1; 0: none


@config
class CalibrateConfig(GssmConfig):
    """Config of ``src.apps.gssm.calibrate``."""

    measure: MeasureConfig = field(default_factory=MeasureConfig)
    graph_seeds: Positive = 1
    solve: SolveConfig = field(default_factory=SolveConfig)


class Setting(NamedTuple):
    """What a law is drawn with, beside the nodes: the concentrations, and the graph seed (the first of several)."""

    alpha_X: float | None
    alpha_Z: float | None
    graph_seed: int


def settings(cfg: DifficultyConfig) -> dict[str, Setting]:
    """The settings to measure, by name: the points of the map, the one in force, or each of ``setups``."""
    if cfg.setup is None and cfg.setups and cfg.alpha_X is None and cfg.alpha_Z is None and not cfg.map.active:
        return {name: setup_of(cfg, name, "setup") for name in cfg.setups}
    chosen = in_force(cfg)
    if not cfg.map.active:
        return {cfg.setup or cfg.name: chosen}
    xs: Sequence[float | None] = cfg.map.alpha_X.values() or [chosen.alpha_X]
    zs: Sequence[float | None] = cfg.map.alpha_Z.values() or [chosen.alpha_Z]
    return {f"point {i}": Setting(*point, chosen.graph_seed) for i, point in enumerate(itertools.product(xs, zs))}


def in_force(cfg: GssmConfig) -> Setting:
    """The chosen setup, or what the whole config says."""
    return Setting(cfg.alpha_X, cfg.alpha_Z, cfg.graph_seed) if cfg.setup is None else setup_of(cfg, cfg.setup, "setup")


def setup_of(cfg: GssmConfig, name: str, key: str) -> Setting:
    """An entry of ``setups``; ``key`` is where the name was given."""
    if name not in cfg.setups:
        raise ConfigError(f"{key}={name}: no such entry of setups; there are: {', '.join(cfg.setups) or 'none'}")
    chosen = cfg.setups[name]
    return Setting(chosen.alpha_X, chosen.alpha_Z, cfg.graph_seed if chosen.graph_seed is None else chosen.graph_seed)


def resolve_difficulty(cfg: DifficultyConfig) -> DifficultyConfig:
    """Check the graph in every setting that will be measured."""
    _check_nodes(cfg)
    for setting in settings(cfg).values():
        build(cfg.gssm, setting.alpha_X, setting.alpha_Z)
    return cfg


def resolve_calibrate(cfg: CalibrateConfig) -> CalibrateConfig:
    """Put the chosen setup in force; check the graph, the target and the bracket."""
    _check_nodes(cfg)
    cfg = replace(cfg, **in_force(cfg)._asdict(), setup=None)
    solve = cfg.solve
    if (solve.target is None) == (solve.like is None):
        raise ConfigError("give solve.target=VALUE (of solve.measure), or solve.like=NAME (an entry of setups to be as difficult as)")
    if solve.like is not None:
        build(cfg.gssm, *setup_of(cfg, solve.like, "solve.like")[:2])
    if solve.low >= solve.high:
        raise ConfigError(f"solve.low={solve.low} is not below solve.high={solve.high}")
    low, high = map(family(cfg, solve.free), (solve.low, solve.high))
    if low == high:
        raise ConfigError(f"solve.free={solve.free}: no node takes it, all that it is meant for have their own alpha; name one of these")
    return cfg


def family(cfg: CalibrateConfig, free: str, fixed: float | None = None) -> Callable[[float], Graph]:
    """The graph as a function of its free concentration. ``fixed`` replaces alpha_X where alpha_Z is free, and alpha_Z where alpha_X is."""
    if free == "alpha_Z":
        return lambda alpha: build(cfg.gssm, cfg.alpha_X if fixed is None else fixed, alpha)
    if free == "alpha_X":
        return lambda alpha: build(cfg.gssm, alpha, cfg.alpha_Z if fixed is None else fixed)
    if free not in {node.name for node in cfg.gssm}:
        raise ConfigError(f"solve.free={free}: name alpha_X, alpha_Z or a node ({', '.join(node.name for node in cfg.gssm)})")
    return lambda alpha: build([replace(node, alpha=alpha) if node.name == free else node for node in cfg.gssm], cfg.alpha_X, cfg.alpha_Z)


def _check_nodes(cfg: GssmConfig) -> None:
    if not cfg.gssm:
        raise ConfigError("gssm is empty: name a config (experiment=debug, config=FILE) or list the nodes of the graph under gssm")


DIFFICULTY = Entry("gssm_difficulty", DifficultyConfig, resolve_difficulty, experiments=EXPERIMENTS)
CALIBRATE = Entry("gssm_calibrate", CalibrateConfig, resolve_calibrate, experiments=EXPERIMENTS)
