"""Config of a comparison in cells. No torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.compose import as_dict
from src.nanollama.config.explain import check_key
from src.nanollama.config.main import entry_of
from src.nanollama.config.schema import ClusterConfig, Count, Int, MetricsConfig, Positive, config

from ..options import PoolConfig
from .axis import parse_space


@config
class HalvingConfig:
    """Successive halving (Jamieson and Talwalkar, 2016), the most aggressive bracket of Hyperband (Li et al., 2018)."""

    eta: Annotated[int, Field(ge=2)] = 3  # the best 1 / eta of a cell's trials go on, to eta times the steps
    min_steps: Positive | None = None  # first rung; None: no trial is stopped early


@config
class MethodConfig:
    """What ``export wandb`` writes beside the space."""

    method: Literal["grid", "random", "bayes"] = "bayes"
    metric: str = "loss/valid"  # a curve, so that early stopping can act on it
    goal: Literal["minimize", "maximize"] = "minimize"
    run_cap: Positive | None = None


@config
class CellsConfig:
    """Config of ``src.apps.mixbo.families`` and of the files that ``src.apps.mixbo.export`` reads."""

    name: str = "families"
    run_dir: str | None = None  # None: runs/<name>-<hash of what is compared>, so that the same command finds itself again
    seed: Int = 0  # of the tuning runs and the random settings; the final runs have the seeds that follow
    script: str = "src.apps.gssm.train"  # the command that trains
    overrides: tuple[str, ...] = ()  # for every run
    space: dict[str, Any] = field(default_factory=dict)  # key: values in Hydra's sweep grammar
    cells: tuple[str, ...] = ("model.family", "model.target_params")  # keys whose every combination gets the same trials
    strategy: Literal["random", "grid", "tpe"] = "random"  # of the other keys; tpe: Optuna's, each cell on its own
    trials: Positive = 9  # settings tried in each cell
    steps: Positive = 200  # of a whole training
    halving: HalvingConfig = field(default_factory=HalvingConfig)
    seeds: Count = 3  # fresh trainings of each cell's best setting, which alone are reported
    wandb: MethodConfig = field(default_factory=MethodConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


VOLATILE = ("pool", "metrics", "wandb", "seeds")


def identity(cfg: CellsConfig) -> str:
    """Hash of what is compared and how."""
    asked = as_dict(cfg)
    for key in ("name", "run_dir", "cluster", *VOLATILE):
        del asked[key]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def resolve(cfg: CellsConfig) -> CellsConfig:
    """Check the space against the keys of the command that trains."""
    axes, schema = parse_space(cfg.space), entry_of(cfg.script).schema
    for key in axes:
        if key != "model":  # a preset, by name
            check_key("space", key, schema)
    for key in cfg.cells:
        if key not in axes or not axes[key].values:
            raise ConfigError(f"cells: {key} has to be in space, as a choice or a range; the space has {', '.join(axes)}")
    if cfg.strategy == "grid" and any(not axis.values for axis in axes.values()):
        raise ConfigError("strategy=grid needs choices and ranges only; the space has an interval: use strategy=random")
    if cfg.halving.min_steps and cfg.halving.min_steps > cfg.steps:
        raise ConfigError(f"halving.min_steps={cfg.halving.min_steps} is more than steps={cfg.steps}")
    return replace(cfg, run_dir=cfg.run_dir or f"runs/{cfg.name}-{identity(cfg)}")


CELLS = Entry("mixbo_families", CellsConfig, resolve, experiments="src/apps/mixbo/configs", volatile=VOLATILE)
