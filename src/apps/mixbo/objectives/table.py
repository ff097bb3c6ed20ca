"""A CSV of finished runs, replayed as a discrete problem: only what is in the table can be asked for."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from src.nanollama.arrays import Array
from src.nanollama.config import ConfigError

from ..problem import Fidelities, Metric

Key = tuple[tuple[float, ...], str, int]


class Table:
    """One row per (mixture, size, step): the domains' weights, ``size``, ``step`` and the metric's outputs.

    A trial may end at any step of the table; its curve holds that mixture's and size's earlier rows too.
    """

    def __init__(
        self, path: str | Path, domains: Sequence[str], metric: Metric, parameters: Mapping[str, float], flops_per_step: Mapping[str, float]
    ) -> None:
        """``parameters`` and ``flops_per_step`` of each size that occurs."""
        self.domains = tuple(domains)
        self.metric = metric
        self.rows = self._read(Path(path))
        sizes = sorted({key[1] for key in self.rows}, key=lambda name: parameters.get(name, 0.0))
        for name in sizes:
            if name not in parameters or name not in flops_per_step:
                raise ConfigError(f"{path}: size {name!r} is missing from table.parameters or table.flops_per_step")
        self.fidelities = Fidelities(tuple(sizes), tuple(parameters[name] for name in sizes), tuple(sorted({key[2] for key in self.rows})))
        self.flops_per_step = tuple(flops_per_step[name] for name in sizes)
        largest, last = sizes[-1], self.fidelities.steps[-1]
        if not any(size == largest and step == last for _, size, step in self.rows):
            raise ConfigError(
                f"{path}: no row has the largest size {largest!r} at the last step {last}, so nothing says which mixture is best"
            )

    @property
    def choices(self) -> tuple[tuple[float, ...], ...]:
        """The mixtures of the table, each once."""
        return tuple(sorted({key[0] for key in self.rows}))

    @property
    def available(self) -> frozenset[Key]:
        """What can be asked for."""
        return frozenset(self.rows)

    def values(self, weights: Array, model_size: str, step: int) -> Array:
        """(n, outputs) of (n, K) mixtures; a :class:`ConfigError` for one that the table lacks."""
        keys = [(tuple(np.asarray(w, dtype=float).tolist()), model_size, int(step)) for w in np.atleast_2d(weights)]
        missing = [key for key in keys if key not in self.rows]
        if missing:
            raise ConfigError(f"the table has no row for mixture {missing[0][0]}, size {missing[0][1]!r}, step {missing[0][2]}")
        return np.array([self.rows[key] for key in keys])

    def observe(self, weights: Sequence[float], model_size: str, steps: Sequence[int], run: int) -> list[tuple[int, tuple[float, ...]]]:
        """The rows of this mixture and size among ``steps`` (``run`` makes no difference: a table has one run of each)."""
        mixture = tuple(float(w) for w in weights)
        return [(int(step), self.rows[mixture, model_size, int(step)]) for step in steps if (mixture, model_size, int(step)) in self.rows]

    def _read(self, path: Path) -> dict[Key, tuple[float, ...]]:
        if not path.is_file():
            raise ConfigError(f"table.path: there is no file {path}")
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in (*self.domains, "size", "step", *self.metric.outputs) if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(reader.fieldnames or ()) or 'none'}")
            rows: dict[Key, tuple[float, ...]] = {}
            for number, row in enumerate(reader, start=2):
                key, values = self._row(path, number, row)
                if key in rows:
                    raise ConfigError(f"{path}, line {number}: the same mixture, size and step occur twice; average them first")
                rows[key] = values
        if not rows:
            raise ConfigError(f"{path} has no rows")
        return rows

    def _row(self, path: Path, number: int, row: dict[str, str]) -> tuple[Key, tuple[float, ...]]:
        numbers = {name: _number(path, number, name, row[name]) for name in (*self.domains, "step", *self.metric.outputs)}
        weights, values = np.array([numbers[name] for name in self.domains]), tuple(numbers[name] for name in self.metric.outputs)
        if not numbers["step"].is_integer():
            raise ConfigError(f"{path}, line {number}: step is {row['step']}; steps are whole numbers")
        if np.any(weights < 0) or abs(weights.sum() - 1) > 1e-4:
            raise ConfigError(f"{path}, line {number}: weights must be non-negative and sum to 1, got {weights.tolist()}")
        return (tuple((weights / weights.sum()).tolist()), row["size"], int(numbers["step"])), values


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    """A finite number; steps may be written as ``100.0``, as pandas does where a column has gaps."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{path}, line {line}: {column} is {text or 'missing'}; it needs a finite number, so leave failed runs out")
    return value
