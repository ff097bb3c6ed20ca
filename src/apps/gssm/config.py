"""Configs of the GSSM app. No torch here: the launcher reads these to check a config before it submits it."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from src.nanollama.config import ConfigError, Entry
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
    TrainConfig,
    config,
)
from src.nanollama.train.resolve import VOLATILE, resolve_training


@config
class NodeConfig:
    """One discrete node of the graph. The node named ``X`` (or the one marked ``observed``) is the token."""

    name: str
    state_dim: Positive
    parents: tuple[str, ...] = ()
    alpha: PositiveFloat | None = None  # Dirichlet concentration per entry; None: alpha_X for the observed node, alpha_Z for the others
    mode: Literal["default", "dead", "slow", "context"] = "default"
    kernel_type: Literal["fullrank", "product"] = "fullrank"
    observed: bool | None = None  # None: True for the node named X


@config
class GssmConfig:
    """Config of ``src.apps.gssm.train`` and ``train_onfly``."""

    name: str = "gssm"
    run_dir: str | None = None
    gssm: tuple[NodeConfig, ...] = ()
    alpha_X: PositiveFloat | None = None
    alpha_Z: PositiveFloat | None = None
    graph_seed: Int = 0  # draws the kernels; train.seed draws the model and, with it, the data stream
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def resolve(cfg: GssmConfig) -> GssmConfig:
    """Derive the vocabulary from the observed node and complete the model's shape."""
    from . import graph

    if not cfg.gssm:
        raise ConfigError("gssm is empty: name a config (experiment=debug, config=FILE) or list the nodes of the graph under gssm")
    built = graph.build(cfg.gssm, cfg.alpha_X, cfg.alpha_Z)
    return resolve_training(cfg, built.vocab_size, "the observed node " + " x ".join(n.name for n in built.observed))


TRAIN = Entry("gssm_train", GssmConfig, resolve, experiments="src/apps/gssm/configs", volatile=VOLATILE)
