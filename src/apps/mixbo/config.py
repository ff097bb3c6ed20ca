"""Configs of the mixbo app. No torch here: the launcher reads these to check a config before it submits it."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    Fraction,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    Positive,
    TrainConfig,
    config,
)
from src.nanollama.data.environment import DOMAINS
from src.nanollama.data.mixture import check_weights
from src.nanollama.train.resolve import VOLATILE, resolve_training

BYTES = 256


@config
class MixtureDataConfig(DataConfig):
    """A weighted mixture of domains of byte-level text."""

    corpus: str = "environment"  # the running Python environment's files, or a folder whose subfolders are the domains
    weights: tuple[float, ...] | None = None  # one per domain, in the corpus's order; None: equal
    cache: str = "runs/corpora"  # where corpora are kept
    domain_bytes: Positive = 8 << 20  # of each domain of the environment corpus
    held_out: Fraction = 0.1  # share of the files


@config
class MixtureConfig:
    """Config of ``src.apps.mixbo.train``."""

    name: str = "mixture"
    run_dir: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: MixtureDataConfig = field(default_factory=MixtureDataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def domains_of(data: MixtureDataConfig) -> tuple[str, ...]:
    """Names of the corpus's domains, in the order of ``data.weights``. Looks at the folder, not into files."""
    if data.corpus == "environment":
        return DOMAINS
    root = Path(data.corpus).expanduser()
    if not root.is_dir():
        raise ConfigError(f"data.corpus = {data.corpus}: neither 'environment' nor a folder whose subfolders are the domains")
    return tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))


def resolve(cfg: MixtureConfig) -> MixtureConfig:
    """Check the weights against the domains; bytes are the vocabulary."""
    domains = domains_of(cfg.data)
    weights = cfg.data.weights or tuple(1 / len(domains) for _ in domains)
    try:
        check_weights(weights, domains)
    except ConfigError as error:
        raise ConfigError(f"data.weights: {error}") from error
    return resolve_training(replace(cfg, data=replace(cfg.data, weights=weights)), BYTES, "byte-level text")


TRAIN = Entry("mixbo_train", MixtureConfig, resolve, experiments="src/apps/mixbo/configs", volatile=(*VOLATILE, "data.cache"))
