"""Typed options of the mixture optimiser. No torch here: the launcher reads them to check a config.

Every number that steers the search has its default here or in ``constants.py``, with the reason beside it. Where the reason says
*synthetic*, the value was chosen on the parametric simulator of ``objectives/simulator.py``. No value was varied on the emulator
benchmark alone, but ``confirm``, ``caution``, how a due full run is chosen, the best anchor as the first of them, the correlation over
size and step, and the smoothness at small shares came after looking at results on that benchmark; ``benchmarks/RESULTS.md`` says what
the simulator says of them.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from src.nanollama.config.schema import Count, Fraction, Int, Positive, PositiveFloat, Rate, config

Embedding = Literal["sqrt", "raw", "clr"]
KernelName = Literal["lmc", "product", "joint", "flops", "botorch"]


@config
class SpaceConfig:
    """Domains of the mixture, and how much of the data each may (cap) and must (floor) provide."""

    domains: tuple[str, ...] = ("a", "b", "c", "d", "e")
    floors: dict[str, Fraction] = field(default_factory=dict)  # absent: 0
    caps: dict[str, Fraction] = field(default_factory=dict)  # absent: 1


@config
class FidelityConfig:
    """What a trial may cost less than the real thing in: model size and training steps. The last of each is the target."""

    model_size: tuple[str, ...] | None = None  # None: those of the objective (training: pico, nano, tiny)
    steps: tuple[Positive, ...] | None = None  # None: those of the objective (training: 50, 100, 200)


@config
class CostConfig:
    """What a trial is charged."""

    overhead: Rate = 0.02  # launch overhead, in full runs of the largest model: without it hundreds of tiny runs look free
    continuation: bool = True  # extend a run for the added steps (and the decay of WSD) only; not for cosine and linear schedules
    unlock: Positive = 2  # results one size below before a size may be used: with one, no trend is visible
    growth: PositiveFloat = 1.0  # the next trial costs at most this times what was charged so far: doubling, as in successive halving
    first: PositiveFloat = 1.0  # ... or this many full runs of the smallest model, so that the first trial can start


@config
class SurrogateConfig:
    """The Gaussian process over (mixture, size, step)."""

    kernel: KernelName = "lmc"  # joint and flops: the seven- and six-input ideas; botorch: SingleTaskMultiFidelityGP
    embedding: Embedding = "sqrt"  # Hellinger geometry of the simplex, but for shares below 1 %
    mean: Literal["linear", "law"] = "linear"  # in log size and log step only; law: E + A N^-a + B D^-b
    outputs: Literal["separate", "sum"] = "separate"  # one process per output of a weighted sum, or one for the sum
    noise_floor: Rate = 0.002  # observation noise sd is at least this (units of the objective)
    refit: Positive = 4  # finished trials between two fits of the hyper-parameters
    checkpoints: Positive = 5  # observations used per learning curve, log-spaced, always with the last
    failed: Literal["exclude", "penalise"] = "exclude"  # penalise: a failed trial counts as the worst value seen at its fidelity


@config
class StrategyConfig:
    """Which strategy proposes the next trial, and its knobs."""

    name: str = "kg"
    division_coefficient: Rate = 1.0  # exponent of the cost in value / cost**coefficient; 0: cost does not matter
    model_size: str | None = None  # hold the size fixed and choose only mixture and step (one-step look-ahead)
    design: Count | None = None  # Dirichlet mixtures at the smallest size in the initial design; None: one per domain
    pool: Positive = 512  # mixtures screened by the posterior before the acquisition is computed
    candidates: Positive = 36  # mixtures kept for the acquisition, times every fidelity
    targets: Positive = 96  # mixtures at the target over which the knowledge gradient takes its minimum
    confirm: Fraction = 0.25  # least share of the FLOPs for full runs of the largest model: beliefs are put to the test
    eta: Annotated[int, Field(ge=2)] = 3  # hyperband: the best 1 / eta of a rung go on
    caution: Rate = 0.5  # sds by which a mixture must beat the baseline to be recommended; four times that before any full run


@config
class SimulatorConfig:
    """The parametric simulator: a scaling law plus a mixture term whose minimiser at the target is known exactly."""

    path: str | None = None  # an emulator in the .npz format instead of the parametric form
    metric: str = "mean"  # emulator: which metric or composite to minimise
    optimum: tuple[Fraction, ...] | None = None  # best mixture at the target; None: drawn from the seed
    outputs: Positive = 1  # per-domain losses whose mean is the objective
    gamma: PositiveFloat = 0.5  # the mixture enters as w**gamma
    amplitude: PositiveFloat = 0.05  # sd over mixtures of the target value (nats)
    r_size: float = 0.8  # Pearson correlation with the target of the smallest size at the last step
    r_step: float = 0.9  # ... of the largest size at the first step
    wells: Positive = 1  # local minima of the mixture term
    noise: Rate = 0.0  # sd of each checkpoint
    run_noise: Rate = 0.0  # sd of an offset shared by the checkpoints of a run (training seed)
    accuracy: bool = False  # an accuracy with a plateau at chance instead of a loss
    seed: Int = 0


@config
class TableConfig:
    """Finished runs replayed as a discrete problem: a CSV with the domains' columns, ``size``, ``step`` and the outputs."""

    path: str | None = None
    outputs: tuple[str, ...] = ("loss",)  # columns whose mean is the objective
    maximise: bool = False
    parameters: dict[str, PositiveFloat] = field(default_factory=dict)  # of each size
    flops_per_step: dict[str, PositiveFloat] = field(default_factory=dict)  # of each size


@config
class TrainingConfig:
    """Real trainings: a command of this project that trains on a weighted mixture (``data.weights``) of domains."""

    script: str = "src.apps.mixbo.train"
    config: str | None = None  # YAML file for every trial
    overrides: tuple[str, ...] = ()  # further overrides for every trial
    size: str = "model={}"  # override that chooses a model size
    metric: dict[str, Rate] = field(default_factory=dict)  # domain: weight of its validation loss; empty: the mean over domains
    checkpoints: Positive = 4  # evaluations along the shortest run; each is an observation of the learning curve


@config
class BudgetConfig:
    """When to stop; whichever comes first. Counts everything that was ever charged to the study.

    A failed trial is charged what it spent, or, where it could not say (killed, or out of memory at once), all that it asked for.
    """

    flops: PositiveFloat | None = None
    full_runs: PositiveFloat | None = None  # in full runs of the largest model; None with all others None: 8
    trials: Positive | None = None


@config
class PoolConfig:
    """Where trials run, and how many at a time."""

    launcher: Literal["process", "sbatch"] = "process"  # processes on this machine, or Slurm jobs with the settings of cluster
    slots: Positive = 2
    timeout_s: PositiveFloat | None = None  # of each trial
    retries: Count = 2  # of a trial killed from outside
