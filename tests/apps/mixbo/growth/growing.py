"""A command that answers at once what a training would: for the growth's tests with real processes but without torch.

The loss follows a power law of the shape plus noise that depends on shape and seed alone. Some shapes end badly, as ``bad`` says.
"""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import field
from typing import Any, Literal

import numpy as np
from hydra.core.config_store import ConfigStore

from src.nanollama.config import Entry, RunFailed, RunFolder, main
from src.nanollama.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    ProfilerConfig,
    Rate,
    TrainConfig,
    config,
)
from src.nanollama.train.resolve import VOLATILE, resolve_training

BASELINE = ModelConfig(emb_dim=32, nb_layers=1, nb_heads=1, ffn_dim=32, qk_head_dim=32, v_head_dim=32)


@config
class GrowingConfig:
    name: str = "growing"
    run_dir: str | None = None
    model: ModelConfig = field(default_factory=lambda: BASELINE)
    data: DataConfig = field(default_factory=lambda: DataConfig(seq_len=16, batch_size=4))
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    noise: Rate = 0.002
    wait_s: Rate = 0.0
    bad: dict[str, Literal["diverge", "kill", "exit", "raise"]] = field(default_factory=dict)  # emb_dim_64: how that shape ends


def resolve(cfg: GrowingConfig) -> GrowingConfig:
    return resolve_training(cfg, 64, "the test")


GROWING = Entry("growing", GrowingConfig, resolve, volatile=VOLATILE)
ConfigStore.instance().store(name="growing", node={"defaults": ["growing_schema", "_self_", {"experiment": None}, {"config": None}]})


def loss(cfg: GrowingConfig) -> float:
    """Without noise: width helps much, the feed-forward layer some, heads nothing, depth does harm; more steps help everyone."""
    model = cfg.model
    assert model.ffn_dim
    gains = 0.30 * (model.emb_dim / 32) ** -0.5 + 0.10 * (model.ffn_dim / 32) ** -0.5 + 0.02 * (model.nb_layers - 1)
    return 2.0 + gains + 20.0 / cfg.train.steps


def noisy_loss(cfg: GrowingConfig) -> float:
    shape = [cfg.model.emb_dim, cfg.model.ffn_dim or 0, cfg.model.nb_layers, cfg.model.nb_heads, cfg.train.steps]
    of_seed = np.random.default_rng([cfg.train.seed]).standard_normal()
    own = np.random.default_rng([cfg.train.seed, *shape]).standard_normal()
    return loss(cfg) + cfg.noise * (2.0 * float(of_seed) + float(own))


@main(GROWING)
def growing(cfg: GrowingConfig, run: RunFolder) -> dict[str, Any]:
    with (run.path / "started").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(cfg.wait_s)
    for key, end in cfg.bad.items():
        name, _, value = key.rpartition("_")
        if str(getattr(cfg.model, name)) == value:
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if end == "exit":
                os._exit(7)
            if end == "raise":
                raise RuntimeError("told to raise")
            raise RunFailed("told to diverge", status="nan")
    value = noisy_loss(cfg)
    assert math.isfinite(value)
    return {"loss": value, "steps": cfg.train.steps, "flops": 1.0, "peak_memory_bytes": 10**8}


if __name__ == "__main__":
    growing()
