"""What is to be solved: space, fidelities, cost and metric, put together once and never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from src.nanollama.arrays import Array, Ints
from src.nanollama.config import ConfigError

from .options import CostConfig, StrategyConfig, SurrogateConfig
from .protocol import Status
from .records import Record, Suggestion
from .space import MixtureSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Fidelities:
    """Model sizes (with their parameter counts, increasing) and training steps (increasing). The last of each is the target."""

    sizes: tuple[str, ...]
    parameters: tuple[float, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.parameters) or len(set(self.sizes)) != len(self.sizes):
            raise ConfigError(f"fidelity.model_size: different names with one parameter count each are needed, got {self.sizes}")
        if list(self.parameters) != sorted(set(self.parameters)) or self.parameters[0] <= 0:
            raise ConfigError(f"fidelity.model_size must go from small to large, the target last; got {self.sizes} with {self.parameters}")
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise ConfigError(f"fidelity.steps must be positive and increase, the target last; got {list(self.steps)}")

    @property
    def target(self) -> tuple[int, int]:
        """Index of the largest size, and the last step."""
        return len(self.sizes) - 1, self.steps[-1]

    def index(self, model_size: str) -> int:
        """Position of a size name."""
        if model_size not in self.sizes:
            raise ConfigError(f"model_size {model_size!r} is not one of {list(self.sizes)}")
        return self.sizes.index(model_size)

    def coordinates(self, size: Ints | int, step: Array | float) -> tuple[Array, Array]:
        """Log size and log step, each scaled so that the smallest of the grid is 0 and the target is 1.

        Ratios of logs do not depend on the units of either. A "step" may mean more tokens in one size than in another; that is
        a constant in log tokens per size, which the dependence on size takes up.
        """
        n = np.log(np.asarray(self.parameters))
        s = np.ones(len(n)) if len(n) == 1 else (n - n[0]) / (n[-1] - n[0])
        first, last = np.log(self.steps[0]), np.log(self.steps[-1])
        steps = np.asarray(step, dtype=float)
        t = (np.log(steps) - last) / (last - first) + 1 if last > first else np.ones_like(steps)
        return s[np.asarray(size)], t


@dataclass(frozen=True)
class Metric:
    """The objective as a weighted sum of outputs, and its direction, declared here once. Everything after is minimised."""

    outputs: tuple[str, ...]
    weights: tuple[float, ...]
    maximise: bool = False

    def __post_init__(self) -> None:
        if not self.outputs or len(self.outputs) != len(self.weights):
            raise ConfigError(f"metric: one weight per output is needed, got {self.weights} for {self.outputs}")

    @property
    def signed(self) -> Array:
        """Weights of the outputs in the minimised objective."""
        return np.asarray(self.weights) * (-1.0 if self.maximise else 1.0)

    def objective(self, values: Array | Sequence[float]) -> Array:
        """Minimised objective of values (..., outputs)."""
        return np.asarray(values, dtype=float) @ self.signed

    def own_units(self, objective: float) -> float:
        """An objective value as the user declared it (an accuracy is positive again)."""
        return -objective if self.maximise else objective


@dataclass(frozen=True)
class Problem:
    """Everything a strategy is given beside the records. ``flops_per_step`` has one entry per size."""

    space: MixtureSpace
    fidelities: Fidelities
    metric: Metric
    flops_per_step: tuple[float, ...]
    cost: CostConfig = field(default_factory=CostConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    table: frozenset[tuple[tuple[float, ...], str, int]] | None = None  # discrete problem: what can be asked for
    decay: float = 0.0  # share of a run, at its end, that a continuation of it trains anew (WSD: while the rate falls)

    def __post_init__(self) -> None:
        if len(self.flops_per_step) != len(self.fidelities.sizes) or min(self.flops_per_step) <= 0:
            raise ConfigError(f"flops_per_step: one positive number per model size is needed, got {self.flops_per_step}")
        held = self.strategy.model_size
        if held is not None:
            self.fidelities.index(held)

    @property
    def full_run(self) -> float:
        """FLOPs of one run of the largest model to the last step."""
        size, step = self.fidelities.target
        return self.flops_per_step[size] * step

    def available(self, weights: Sequence[float], model_size: str, steps: int) -> bool:
        """Whether a discrete problem has this trial; always true otherwise."""
        return self.table is None or (tuple(weights), model_size, steps) in self.table

    # --- as stored: the mixture is the parameters ``w.<domain>``, the fidelity ``model_size`` and ``steps`` ---------------------

    @property
    def maximise(self) -> bool:
        """Direction of the objective in its own units."""
        return self.metric.maximise

    def parameters(self, asked: Suggestion) -> dict[str, tuple[Any, BaseDistribution]]:
        """Mixture and fidelity of a suggestion."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        weights = zip(self.space.domains, asked.weights, strict=True)
        found: dict[str, tuple[Any, BaseDistribution]] = {f"w.{d}": (float(w), FloatDistribution(0.0, 1.0)) for d, w in weights}
        found["model_size"] = asked.model_size, CategoricalDistribution(self.fidelities.sizes)
        found["steps"] = asked.steps, CategoricalDistribution(self.fidelities.steps)
        return found

    def attributes(self, asked: Suggestion) -> dict[str, Any]:
        """Why it was asked for."""
        return {key: value for key, value in asdict(asked).items() if key not in ("weights", "model_size", "steps")}

    def record(self, number: int, status: Status, parameters: Mapping[str, Any], attributes: Mapping[str, Any]) -> Record:
        """A stored trial. Raises ConfigError for one of other domains."""
        self.space.check_stored(parameters)
        return Record(
            number=number,
            weights=tuple(parameters[f"w.{domain}"] for domain in self.space.domains),
            model_size=parameters["model_size"],
            steps=parameters["steps"],
            status=status,
            curve=tuple((int(step), tuple(values)) for step, values in attributes.get("curve", ())),
            flops=attributes.get("charged_flops", attributes.get("flops", 0.0)),
            parent=attributes.get("continues"),
        )

    def value(self, values: tuple[float, ...]) -> float:
        """The objective of one observation."""
        return float(self.metric.own_units(float(self.metric.objective(values))))
