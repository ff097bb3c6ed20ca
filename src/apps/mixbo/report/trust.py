"""How far each fidelity can be trusted to rank mixtures as the target does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from src.nanollama.arrays import Array
from src.nanollama.report import Figure, Panels, Section
from src.nanollama.report.format import fixed

from ..objectives import Objective
from ..problem import Problem
from ..records import Record
from ..style import DIVERGING, cells, some_steps
from ..surrogate import Surrogate
from .folder import Sweep

MIXTURES = 40  # drawn uniformly from the space; correlations are over these
DRAWS = 400  # from the posterior
SHARED = 4  # mixtures at least behind a rank correlation


@dataclass(frozen=True)
class Correlations:
    """Pearson correlation over mixtures with the target: mean and 90 % interval of the posterior, each (sizes, steps)."""

    mean: Array
    low: Array
    high: Array


def posterior_correlations(problem: Problem, surrogate: Surrogate, steps: Sequence[int]) -> Correlations:
    """Draw the mixture part of the objective jointly at all fidelities; correlate each fidelity with the target in each draw."""
    rng = np.random.default_rng(0)
    mixtures = problem.space.sample(MIXTURES, rng)
    sizes = np.repeat(np.arange(len(problem.fidelities.sizes)), len(steps))
    basis = surrogate.grid(mixtures, sizes, np.tile(np.array(steps, dtype=float), len(problem.fidelities.sizes)))
    values, vectors = np.linalg.eigh(surrogate.covariance(basis, basis))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    draws = basis.mean + rng.standard_normal((DRAWS, len(root))) @ root.T
    draws = draws.reshape(DRAWS, len(mixtures), -1)
    draws = draws - draws.mean(axis=1, keepdims=True)
    draws /= np.linalg.norm(draws, axis=1, keepdims=True) + 1e-300
    each = np.einsum("dmf,dm->df", draws, draws[:, :, -1])
    shape = len(problem.fidelities.sizes), len(steps)
    low, high = np.quantile(each, [0.05, 0.95], axis=0)
    return Correlations(each.mean(axis=0).reshape(shape), low.reshape(shape), high.reshape(shape))


def true_correlations(problem: Problem, objective: Objective, steps: Sequence[int]) -> list[list[float | None]]:
    """[size][step] Pearson correlation with the target of the noise-free objective, over many uniform mixtures.

    Of a table over those that it has at both; None where they are too few.
    """
    mixtures = np.unique(problem.space.sample(2000, np.random.default_rng(0)), axis=0)
    target = problem.fidelities.sizes[-1], problem.fidelities.steps[-1]

    def correlation(size: str, step: int) -> float | None:
        both = [w for w in mixtures if problem.available(w.tolist(), size, step) and problem.available(w.tolist(), *target)]
        if len(both) < SHARED:
            return None
        here, there = (problem.metric.objective(objective.values(np.array(both), *at)) for at in ((size, step), target))
        return float(np.corrcoef(here, there)[0, 1]) if np.ptp(here) and np.ptp(there) else None

    return [[correlation(size, step) for step in steps] for size in problem.fidelities.sizes]


def measured(problem: Problem, records: Sequence[Record]) -> dict[tuple[str, int], dict[tuple[float, ...], float]]:
    """(size, step) -> mixture -> objective, wherever a finished trial's learning curve passed."""
    found: dict[tuple[str, int], dict[tuple[float, ...], float]] = {}
    for record in records:
        for step, values in record.curve if record.status == "ok" else ():
            at = found.setdefault((record.model_size, step), {})
            at[tuple(np.round(record.weights, 6))] = float(problem.metric.objective(values))
    return found


def reference(problem: Problem, seen: dict[tuple[str, int], dict[tuple[float, ...], float]]) -> tuple[str, int] | None:
    """The largest size, then the last step, that shares enough mixtures with another size: what others can be ranked against."""
    enough = [
        key for key, at in seen.items() if any(key[0] != other[0] and len(at.keys() & seen[other].keys()) >= SHARED for other in seen)
    ]
    return max(enough, key=lambda key: (problem.fidelities.index(key[0]), key[1]), default=None)


def trust_section(sweep: Sweep) -> Section | None:
    """What the surrogate believes, what shared mixtures show, and, where it can be known, the truth."""
    if sweep.surrogate is None:
        return None
    problem, fidelities = sweep.problem, sweep.problem.fidelities
    steps = some_steps(fidelities, 5)
    found = posterior_correlations(problem, sweep.surrogate, steps)
    text = [[_with_interval(found, i, j) for j in range(len(steps))] for i in range(len(fidelities.sizes))]
    heat = {"colorscale": DIVERGING, "zmin": -1, "zmax": 1}
    height = 100 + 44 * len(fidelities.sizes)
    data, layout = cells(fidelities, steps, found.mean.tolist(), text, "correlation %{z:.3f}", **heat)
    figures = [Figure(data, layout, title="believed: correlation, and its lower bound", height=height)]
    caption = (
        "Believed: correlation over mixtures between a fidelity and the target, mean and 5 % quantile of draws from the posterior with its "
        "fitted hyper-parameters. A lower bound that is not positive means that nothing supports trusting that fidelity. "
    )
    shared, told = _shared_panel(sweep, steps, height)
    if shared:
        figures.append(shared)
        caption += told
    if sweep.truth:
        true = true_correlations(problem, sweep.truth.objective, steps)
        data, layout = cells(
            fidelities, steps, true, [["" if v is None else fixed(v, 2) for v in row] for row in true], "true correlation %{z:.3f}", **heat
        )
        figures.append(Figure(data, layout, title="true: correlation", height=height))
        caption += " True: the same of the noise-free objective, which the study does not see."
    return Section("Trust in each fidelity", [Panels(figures, caption)], _doubts(sweep, steps, found))


def _with_interval(found: Correlations, i: int, j: int) -> str:
    if (i, j) == (found.mean.shape[0] - 1, found.mean.shape[1] - 1):
        return "1"
    return _two_lines(fixed(float(found.mean[i, j]), 2), f"≥ {fixed(float(found.low[i, j]), 2)}")


def _two_lines(first: str, second: str) -> str:
    return f"{first}<br><span style='font-size:9px'>{second}</span>"


def _shared_panel(sweep: Sweep, steps: Sequence[int], height: int) -> tuple[Figure | None, str]:
    problem, fidelities = sweep.problem, sweep.problem.fidelities
    seen = measured(problem, sweep.records)
    against = reference(problem, seen)
    if against is None:
        return None, ""
    z: list[list[float | None]] = []
    text: list[list[str]] = []
    for size in fidelities.sizes:
        z.append([])
        text.append([])
        for step in steps:
            both = sorted(seen.get((size, step), {}).keys() & seen[against].keys())
            rank = (
                float(spearmanr([seen[size, step][w] for w in both], [seen[against][w] for w in both]).statistic)
                if len(both) >= SHARED
                else None
            )
            z[-1].append(rank)
            text[-1].append("" if rank is None else _two_lines(fixed(rank, 2), f"n = {len(both)}"))
    data, layout = cells(fidelities, steps, z, text, "Spearman %{z:.3f}", colorscale=DIVERGING, zmin=-1, zmax=1)
    last = against == (fidelities.sizes[-1], fidelities.steps[-1])
    to = "the target" if last else f"{against[0]} at step {against[1]}"
    told = f"Measured: Spearman's rank correlation on the n mixtures that were run at both, against {to}"
    told += "." if last else f", the largest fidelity that shares at least {SHARED} mixtures with another size so far."
    return Figure(data, layout, title="measured: rank correlation", height=height), told


def _doubts(sweep: Sweep, steps: Sequence[int], found: Correlations) -> str:
    """Which fidelities are not to be trusted, in words."""
    sizes = sweep.problem.fidelities.sizes
    misleading = [f"{size} at step {step}" for i, size in enumerate(sizes) for j, step in enumerate(steps) if found.high[i, j] < 0]
    doubtful = [
        f"{size} at step {step}" for i, size in enumerate(sizes) for j, step in enumerate(steps) if found.low[i, j] <= 0 <= found.high[i, j]
    ]
    said = "A small run is worth its price only if it ranks mixtures as the largest model does. "
    if misleading:
        said += f"Ranked the other way round: {_listed(misleading)}. "
    if doubtful:
        said += f"Not known to rank at all: {_listed(doubtful)}. "
    run = {record.model_size for record in sweep.records if record.status == "ok"}
    if never := [size for size in sizes if size not in run]:
        said += f"No trial of {_listed(never)} has ended: what is said of {'them' if len(never) > 1 else 'it'} is extrapolated. "
        return said.strip()
    return (said if misleading or doubtful else said + "Every fidelity here is believed to.").strip()


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
