"""Configs of the commands that look at trained models. No torch here."""

from __future__ import annotations

from dataclasses import field

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.schema import ClusterConfig, Int, Positive, PositiveFloat, Several, config


@config
class InspectConfig:
    """Which checkpoint to look at, on how much fresh data."""

    name: str = "inspect"
    run_dir: str | None = None
    checkpoint: str | None = None  # RUN/checkpoints/STEP, or RUN for its newest
    seq_len: Positive | None = None  # None: as in training; a longer one shows how the model extrapolates
    sequences: Several = 128  # to score on; no training has seen them
    batch: Positive = 16  # sequences per forward pass
    seed: Int = 0  # of the sequences and of whatever is fitted
    device: str = "auto"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@config
class PositionsConfig(InspectConfig):
    """Config of ``src.apps.gssm.positions``."""

    name: str = "positions"


@config
class BeliefsConfig(InspectConfig):
    """Config of ``src.apps.gssm.beliefs``."""

    name: str = "beliefs"
    fit_sequences: Several = 256  # to fit the probes on
    windows: tuple[Positive, ...] = (1, 4, 16)  # lengths of the last-k-tokens baselines
    ridge: PositiveFloat = 1e-4  # of the linear probe, in units of the features' variance
    hidden: Positive = 64  # units of the MLP probe's one hidden layer
    epochs: Positive = 10  # of the MLP probe


def resolve(cfg: InspectConfig) -> InspectConfig:
    """The one thing without a default."""
    if not cfg.checkpoint:
        raise ConfigError("give checkpoint=RUN/checkpoints/STEP, or checkpoint=RUN for the newest one of a training")
    return cfg


POSITIONS = Entry("gssm_positions", PositionsConfig, resolve)
BELIEFS = Entry("gssm_beliefs", BeliefsConfig, resolve)
