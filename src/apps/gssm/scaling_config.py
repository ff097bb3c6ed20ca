"""Config of the scaling-law command. No torch here."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.schema import ClusterConfig, config


@config
class ScalingConfig:
    """Which finished trainings to read, and as a function of what."""

    name: str = "scaling"
    run_dir: str | None = None
    runs: tuple[str, ...] = ()  # run folders, or folders with run folders below them (a grid)
    x: Literal["parameters", "sequences", "tokens", "flops"] = "parameters"
    by: tuple[str, ...] = ()  # config keys that tell curves apart; runs alike in x and in these are repetitions
    loss: Literal["final", "best"] = "final"  # best: lowest held-out loss of each training, where finite data are learnt by heart
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def resolve(cfg: ScalingConfig) -> ScalingConfig:
    """There is nothing to fit without runs."""
    if not cfg.runs:
        raise ConfigError("give runs=[FOLDER,...]: run folders, or a folder that has some below it, such as that of a grid")
    return cfg


SCALING = Entry("gssm_scaling", ScalingConfig, resolve)
