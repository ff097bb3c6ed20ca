"""Configs of the mixbo app. No torch here: the launcher reads these to check a config before it submits it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from src.nanollama.config import ConfigError, Entry
from src.nanollama.config.compose import as_dict
from src.nanollama.config.explain import nearest
from src.nanollama.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EvalConfig,
    Fraction,
    Int,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    Positive,
    ProfilerConfig,
    TrainConfig,
    config,
)
from src.nanollama.data.environment import DOMAINS
from src.nanollama.data.mixture import check_weights
from src.nanollama.data.tokenizer import tokenizer_vocab
from src.nanollama.train.resolve import VOLATILE, resolve_training

from .growth.options import GrowthConfig
from .options import (
    BudgetConfig,
    CostConfig,
    FidelityConfig,
    PoolConfig,
    SimulatorConfig,
    SpaceConfig,
    StrategyConfig,
    SurrogateConfig,
    TableConfig,
    TrainingConfig,
)
from .strategies import GREEDY
from .strategies import REGISTRY as STRATEGIES

BYTES = 256


@config
class MixtureDataConfig(DataConfig):
    """A weighted mixture of domains of byte-level text."""

    corpus: str = "environment"  # the running Python environment's files, or a folder whose subfolders are the domains
    weights: tuple[float, ...] | None = None  # one per domain, in the corpus's order; None: equal
    cache: str = "runs/corpora"  # where corpora are kept
    domain_bytes: Positive = 8 << 20  # of each domain of the environment corpus
    held_out: Fraction = 0.1  # share of the files
    tokenizer: str | None = None  # a tokenizer.json (see src.nanollama.data.tokenizer); None: bytes
    document_masks: bool = False  # whether attention and recurrence stop at the borders of documents (files)


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
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
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
    """Check the weights against the domains; the vocabulary is that of the tokenizer, or the 256 bytes."""
    domains = domains_of(cfg.data)
    weights = cfg.data.weights or tuple(1 / len(domains) for _ in domains)
    try:
        check_weights(weights, domains)
    except ConfigError as error:
        raise ConfigError(f"data.weights: {error}") from error
    cfg = replace(cfg, data=replace(cfg.data, weights=weights))
    if cfg.data.tokenizer is None:
        return resolve_training(cfg, BYTES, "byte-level text")
    return resolve_training(cfg, tokenizer_vocab(Path(cfg.data.tokenizer).expanduser()), f"tokens of {cfg.data.tokenizer}")


TRAIN = Entry(
    "mixbo_train",
    MixtureConfig,
    resolve,
    experiments="src/apps/mixbo/configs",
    volatile=(*VOLATILE, "data.cache"),
    domains=lambda cfg: domains_of(cfg.data),
    ranks=True,
)


@config
class SweepConfig:
    """Config of ``src.apps.mixbo.sweep``."""

    name: str = "sweep"
    run_dir: str | None = None  # None: runs/<name>-<hash of what is searched>, so that the same command finds itself again
    seed: Int = 0
    objective: Literal["training", "simulator", "table"] = "training"
    training: TrainingConfig = field(default_factory=TrainingConfig)
    simulator: SimulatorConfig = field(default_factory=SimulatorConfig)
    table: TableConfig = field(default_factory=TableConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: str | None = None  # SQLAlchemy URL; None: study.db in the run folder
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


GROWTH_VOLATILE = ("override", "num_iterations", "results_file", "reuse")  # of greedy growth
SWEEP_VOLATILE = ("budget", "pool", "storage", "metrics", *(f"growth.{key}" for key in GROWTH_VOLATILE))  # may change on resume


def identity(cfg: SweepConfig) -> str:
    """Hash of what is searched and how: everything but budget, slots and where results are kept."""
    asked = as_dict(cfg)
    for key in ("name", "run_dir", "cluster", "budget", "pool", "storage", "metrics"):
        del asked[key]
    other = ("space", "fidelity", "cost", "surrogate") if cfg.strategy.name == GREEDY else ("growth",)
    for key in other:
        del asked[key]
    for key in GROWTH_VOLATILE:
        asked.get("growth", {}).pop(key, None)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def resolve_sweep(cfg: SweepConfig) -> SweepConfig:
    """Fill in defaults that depend on the objective; refuse what cannot be searched. Nothing is trained or read but small files."""
    if cfg.strategy.name not in (*STRATEGIES, GREEDY):
        raise ConfigError(f"strategy.name = {cfg.strategy.name!r}; {nearest(cfg.strategy.name, [*STRATEGIES, GREEDY])}")
    if cfg.strategy.name == GREEDY:
        return _resolve_growth(cfg)
    if cfg.objective == "training":
        sizes, steps = cfg.fidelity.model_size or ("pico", "nano", "tiny"), cfg.fidelity.steps or (50, 100, 200)
        cfg = replace(cfg, fidelity=FidelityConfig(sizes, steps))
    if cfg.budget == BudgetConfig():
        cfg = replace(cfg, budget=BudgetConfig(full_runs=8))
    return replace(cfg, run_dir=cfg.run_dir or f"runs/{cfg.name}-{identity(cfg)}")


def _resolve_growth(cfg: SweepConfig) -> SweepConfig:
    """Growth trains real models, and there is no largest one to count in."""
    if cfg.objective != "training":
        raise ConfigError(f"strategy=greedy grows models that train: objective={cfg.objective} cannot be grown; leave objective out")
    if cfg.budget.full_runs is not None:
        raise ConfigError("budget.full_runs counts runs of a largest model, which growth does not have; use budget.flops or budget.trials")
    names, increments = cfg.growth.param_names, cfg.growth.increments
    if len(increments) not in (1, len(names)):
        raise ConfigError(f"growth.increments has {len(increments)} values for {len(names)} growth.param_names: one each, or one for all")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"growth.param_names: different names are needed, at least one; got {list(names)}")
    unknown = [name for group in cfg.growth.joint for name in group if name not in names]
    if unknown:
        raise ConfigError(f"growth.joint: {unknown[0]!r} is no direction; {nearest(unknown[0], names)}")
    return replace(cfg, run_dir=cfg.run_dir or f"runs/{cfg.name}-{identity(cfg)}")


SWEEP = Entry("mixbo_sweep", SweepConfig, resolve_sweep, experiments="src/apps/mixbo/configs", volatile=SWEEP_VOLATILE)
