"""Configs of the GSSM app. No torch here: the launcher reads these to check a config before it submits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.explain import nearest
from src.nanollama.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    Int,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    Positive,
    PositiveFloat,
    ProfilerConfig,
    TrainConfig,
    config,
)
from src.nanollama.data.mixture import check_weights
from src.nanollama.train.resolve import VOLATILE, resolve_training

from . import graph
from .node import NodeConfig

EXPERIMENTS = "src/apps/gssm/configs"


@config
class SetupConfig:
    """A pair of concentrations, as ``calibrate`` prints it. ``difficulty`` is a note on what they were chosen for."""

    alpha_X: PositiveFloat | None  # None: every node it is meant for has its own
    alpha_Z: PositiveFloat | None
    graph_seed: Int | None = None  # None: that of the whole config
    difficulty: PositiveFloat | None = None


@config
class GssmDataConfig(DataConfig):
    """Where sequences come from: drawn on the fly without end, or a finite set in files that ``src.apps.gssm.data`` wrote."""

    source: Literal["onfly", "files"] = "onfly"
    path: str | None = None  # files: the folder they lie in
    sequences: Positive | None = None  # files: train on the first so many; None: on all that are there
    weights: tuple[float, ...] | None = None  # onfly: mix all ``setups`` as domains, in their order; evaluate each apart


@config
class GssmConfig:
    """Config of every command that has to do with one graph."""

    name: str = "gssm"
    run_dir: str | None = None
    gssm: tuple[NodeConfig, ...] = ()
    alpha_X: PositiveFloat | None = None
    alpha_Z: PositiveFloat | None = None
    setups: dict[str, SetupConfig] = field(default_factory=dict)  # alternatives to alpha_X and alpha_Z; ``setup`` picks one
    setup: str | None = None
    graph_seed: Int = 0  # draws the kernels; train.seed draws the model and, on the fly, the data stream
    model: ModelConfig = field(default_factory=ModelConfig)
    data: GssmDataConfig = field(default_factory=GssmDataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def resolve(cfg: GssmConfig) -> GssmConfig:
    """Take the chosen setup, derive the vocabulary, complete the model's shape. Idempotent."""
    if not cfg.gssm:
        raise ConfigError("gssm is empty: name a config (experiment=debug, config=FILE) or list the nodes of the graph under gssm")
    if cfg.data.source == "files" and not cfg.data.path:
        raise ConfigError("data.source=files needs data.path, the folder that python -m src.apps.gssm.data wrote")
    if cfg.data.weights is not None:
        return _resolve_mixture(cfg)
    cfg = _with_setup(cfg, cfg.setup)
    built = graph.build(cfg.gssm, cfg.alpha_X, cfg.alpha_Z)
    return resolve_training(cfg, built.vocab_size, "the observed node " + " x ".join(n.name for n in built.observed))


def _resolve_mixture(cfg: GssmConfig) -> GssmConfig:
    if cfg.setup or cfg.data.source != "onfly" or not cfg.setups:
        raise ConfigError("data.weights mixes all setups on the fly: give setups, and neither setup nor data.source=files")
    try:
        check_weights(cfg.data.weights or (), list(cfg.setups))
    except ConfigError as error:
        raise ConfigError(f"data.weights: {error}") from error
    built = [graph.build(cfg.gssm, setup.alpha_X, setup.alpha_Z) for setup in cfg.setups.values()]
    return resolve_training(cfg, built[0].vocab_size, "the graph's observed nodes")


def domain(cfg: GssmConfig, name: str) -> GssmConfig:
    """The config of one domain of a mixture alone."""
    return _with_setup(replace(cfg, data=replace(cfg.data, weights=None)), name)


def _with_setup(cfg: GssmConfig, name: str | None) -> GssmConfig:
    """The config with the concentrations of setup ``name`` in force; its data lie in a folder of that name below ``data.path``."""
    if name is None:
        if cfg.setups and cfg.alpha_X is None and cfg.alpha_Z is None:
            raise ConfigError(f"setups has {', '.join(cfg.setups)}; choose one with setup=NAME, or set alpha_X and alpha_Z")
        return replace(cfg, setups={})
    if name not in cfg.setups:
        raise ConfigError(f"setup={name}: no such entry of setups; {nearest(name, list(cfg.setups)) if cfg.setups else 'setups is empty'}")
    chosen = cfg.setups[name]
    data = replace(cfg.data, path=str(Path(cfg.data.path) / name)) if cfg.data.path else cfg.data
    seed = cfg.graph_seed if chosen.graph_seed is None else chosen.graph_seed
    return replace(cfg, alpha_X=chosen.alpha_X, alpha_Z=chosen.alpha_Z, graph_seed=seed, setups={}, setup=None, data=data)


def resolve_onfly(cfg: GssmConfig) -> GssmConfig:
    """As ``resolve``; the data are drawn on the fly."""
    if cfg.data.source != "onfly":
        raise ConfigError(f"data.source={cfg.data.source}: train_onfly draws its data on the fly; read files with src.apps.gssm.train")
    return resolve(cfg)


def data_sets(cfg: GssmConfig) -> Iterator[GssmConfig]:
    """The resolved configs of the data sets that ``src.apps.gssm.data`` is asked for: one, or one for each setup."""
    names = [cfg.setup] if cfg.setup or not cfg.setups else list(cfg.setups)
    for name in names:
        yield resolve(_with_setup(cfg, name))


def resolve_data(cfg: GssmConfig) -> GssmConfig:
    """Check every data set that is asked for."""
    if not cfg.data.path or not cfg.data.sequences:
        raise ConfigError("data.path (the folder to write) and data.sequences (to train on) are needed; it holds out eval.sequences")
    for _ in data_sets(cfg):
        pass
    return cfg


def _entry(name: str, check: Callable[[Any], Any], ranks: bool = False) -> Entry:
    return Entry(name, GssmConfig, check, EXPERIMENTS, VOLATILE, domains=lambda cfg: tuple(cfg.setups), ranks=ranks)


TRAIN = _entry("gssm_train", resolve, ranks=True)
TRAIN_ONFLY = _entry("gssm_train", resolve_onfly, ranks=True)
DATA = _entry("gssm_data", resolve_data)
