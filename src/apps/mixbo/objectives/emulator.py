"""A network fitted to finished runs, read from an ``.npz`` file: (mixture, millions of parameters, step) -> metrics, without noise.

Arrays: ``weight_i`` (out, in) and ``bias_i`` of a ReLU network; ``x_mean, x_std, y_mean, y_std`` of its standardisation;
``model_sizes_millions``, ``steps``, ``gflops_per_step`` (one per size); names ``domains`` and ``metrics``. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from src.nanollama.arrays import Array
from src.nanollama.config import ConfigError

from ..problem import Fidelities, Metric
from . import noisy_curve

NEEDED = ("x_mean", "x_std", "y_mean", "y_std", "model_sizes_millions", "steps", "gflops_per_step", "domains", "metrics")
ACCURACIES = ("hellaswag", "piqa", "arc_easy")  # larger is better; every other metric is a cross-entropy


def size_name(millions: float) -> str:
    """``20M``, ``1B``."""
    return f"{millions / 1000:g}B" if millions >= 1000 else f"{millions:g}M"


class Emulator:
    """The emulator restricted to one metric (or a composite) and to a grid of steps."""

    def __init__(
        self, path: str | Path, metric: str = "mean", steps: Sequence[int] | None = None, noise: float = 0.0, seed: int = 0
    ) -> None:
        """``metric``: a name in the file, ``mean`` (all validation cross-entropies) or ``mean_domains`` (those of the training domains)."""
        arrays = _load(Path(path))
        self.noise, self.seed = noise, seed
        self.domains = tuple(str(name) for name in arrays["domains"])
        self._millions = arrays["model_sizes_millions"].astype(float)
        self._valid_steps = frozenset(int(step) for step in arrays["steps"])
        self._layers = [(arrays[f"weight_{i}"].T, arrays[f"bias_{i}"]) for i in range(sum(key.startswith("weight_") for key in arrays))]
        self._x = arrays["x_mean"], arrays["x_std"]
        self._y = arrays["y_mean"], arrays["y_std"]
        self.flops_per_step = tuple(float(g) * 1e9 for g in arrays["gflops_per_step"])
        names = [str(name) for name in arrays["metrics"]]
        outputs = self._outputs(names, metric)
        self._columns = [names.index(name) for name in outputs]
        self.metric = Metric(outputs, (1 / len(outputs),) * len(outputs), maximise=outputs[0] in ACCURACIES)
        every = sorted(self._valid_steps)
        for step in steps or ():
            if step not in self._valid_steps:
                by = f" to {every[-1]} by {every[1] - every[0]}" if len(every) > 1 else " only"
                raise ConfigError(f"fidelity.steps: {step} is not in this emulator, which has {every[0]}{by}")
        self.fidelities = Fidelities(
            tuple(size_name(m) for m in self._millions), tuple(float(m) * 1e6 for m in self._millions), tuple(steps or every)
        )

    def values(self, weights: Array, model_size: str, step: int) -> Array:
        """(n, outputs) values of (n, K) mixtures."""
        if step not in self._valid_steps:
            raise ConfigError(f"step {step} is outside this emulator ({min(self._valid_steps)} to {max(self._valid_steps)})")
        weights = np.atleast_2d(np.asarray(weights, dtype=float))
        rest = np.tile([self._millions[self.fidelities.index(model_size)], float(step)], (len(weights), 1))
        h = (np.hstack([weights, rest]) - self._x[0]) / self._x[1]
        for matrix, bias in self._layers[:-1]:
            h = np.maximum(h @ matrix + bias, 0.0)
        matrix, bias = self._layers[-1]
        return ((h @ matrix + bias) * self._y[1] + self._y[0])[:, self._columns]

    def observe(self, weights: Sequence[float], model_size: str, steps: Sequence[int], run: int) -> list[tuple[int, tuple[float, ...]]]:
        """The learning curve that run number ``run`` logs at ``steps``, with ``noise`` (sd) added to each value."""
        return noisy_curve(self, weights, model_size, steps, (self.seed, run), self.noise, 0.0)

    def _outputs(self, names: list[str], metric: str) -> tuple[str, ...]:
        held_out = [name for name in names if name != "train" and name not in ACCURACIES]
        composites = {"mean": tuple(held_out), "mean_domains": tuple(name for name in held_out if name in self.domains)}
        if composites.get(metric):
            return composites[metric]
        if metric not in names:
            raise ConfigError(f"simulator.metric: {metric!r} is not in this emulator; it has {[*names, *composites]}")
        return (metric,)


def _load(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise ConfigError(f"simulator.path: there is no file {path}")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:  # a damaged file can fail in any of these ways
        raise ConfigError(f"simulator.path: {path} is not an .npz file of plain arrays ({error})") from None
    missing = [key for key in (*NEEDED, "weight_0", "bias_0") if key not in arrays]
    if missing:
        raise ConfigError(f"simulator.path: {path} lacks the arrays {missing}")
    _check(path, arrays)
    return arrays


def _check(path: Path, arrays: dict[str, Array]) -> None:
    """Raise ConfigError unless all arrays fit together and are finite."""
    inputs, outputs = len(arrays["domains"]) + 2, len(arrays["metrics"])
    wanted: dict[str, tuple[int, ...]] = {"x_mean": (inputs,), "x_std": (inputs,), "y_mean": (outputs,), "y_std": (outputs,)}
    wanted["gflops_per_step"] = arrays["model_sizes_millions"].shape
    layers = sum(key.startswith("weight_") for key in arrays)
    for i in range(layers):
        rows = outputs if i == layers - 1 else len(arrays.get(f"weight_{i}", ()))
        wanted |= {f"weight_{i}": (rows, inputs), f"bias_{i}": (rows,)}
        inputs = rows
    for key, shape in wanted.items():
        if key not in arrays or arrays[key].shape != shape:
            found = f"has the shape {arrays[key].shape}" if key in arrays else "is missing"
            raise ConfigError(f"simulator.path: {path}: {key} {found}; beside its other arrays it has to have {shape}")
        if not np.isfinite(arrays[key]).all() or (key == "x_std" and not arrays[key].all()):
            raise ConfigError(f"simulator.path: {path}: {key} holds numbers that are not finite, or an x_std of 0")
    if (arrays["steps"] % 1 != 0).any():
        raise ConfigError(f"simulator.path: {path}: steps are whole numbers, got {arrays['steps'].tolist()[:4]}")
