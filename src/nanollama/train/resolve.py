"""Complete a training config: everything left to "derived" gets its value, contradictions are refused. No torch here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from ..config import ConfigError
from ..config.ranks import world_size
from ..config.schema import CheckpointConfig, DataConfig, EvalConfig, MetricsConfig, ModelConfig, OptimConfig, ProfilerConfig, TrainConfig
from ..model import families

# What may change between the two halves of a resumed run.
VOLATILE = (
    *("train.steps", "train.log_period", "train.max_skipped", "train.device", "train.mode", "train.parallel", "train.micro_batch"),
    *("eval", "checkpoint", "metrics", "profiler"),
)


class Training(Protocol):
    """The fields that every training config has, whatever its app adds."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def eval(self) -> EvalConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...
    @property
    def metrics(self) -> MetricsConfig: ...
    @property
    def profiler(self) -> ProfilerConfig: ...


def resolve_training(cfg: Any, vocab_size: int, vocab_source: str) -> Any:
    """Fill ``model.vocab_size`` from the data (``vocab_source`` names where it comes from), the model's sizes and ``train.micro_batch``."""
    if cfg.model.vocab_size not in (None, vocab_size):
        raise ConfigError(
            f"model.vocab_size = {cfg.model.vocab_size} contradicts {vocab_source}, which has {vocab_size} tokens; "
            "leave model.vocab_size out: it is derived from the data"
        )
    model = families.resolve(replace(cfg.model, vocab_size=vocab_size))
    return replace(cfg, model=model, train=replace(cfg.train, micro_batch=_micro_batch(cfg.data.batch_size, cfg.train.micro_batch)))


def _micro_batch(batch_size: int, micro_batch: int | None) -> int:
    """Sequences per device and forward pass; the global batch must split evenly over ranks and micro-batches."""
    ranks = world_size()
    if batch_size % ranks:
        raise ConfigError(f"data.batch_size = {batch_size} counts sequences over all devices and does not divide over {ranks} ranks")
    local = batch_size // ranks
    micro_batch = micro_batch or local
    if local % micro_batch:
        raise ConfigError(f"train.micro_batch = {micro_batch} does not divide the {local} sequences per device (data.batch_size / ranks)")
    return micro_batch
