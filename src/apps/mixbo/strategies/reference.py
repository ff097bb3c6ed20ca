"""BoTorch's own multi-fidelity knowledge gradient and surrogate, to compare with. One suggestion takes seconds to minutes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cost import allowance, charged, flops, owes_target, unlocked
from ..problem import Problem
from ..records import Record, Suggestion
from ..surrogate import arrays

FANTASIES, RESTARTS, SAMPLES, ITERATIONS = 8, 2, 32, 30  # as small as gives a sensible answer; BoTorch's tutorial uses 128 fantasies


def qmfkg(problem: Problem, records: Sequence[Record], rng: np.random.Generator) -> Suggestion:
    """qMultiFidelityKnowledgeGradient: the mixture by gradients inside each allowed fidelity, then the best fidelity. No continuation."""
    from botorch.optim import optimize_acqf_mixed

    dim = problem.space.dim
    allowed = _allowed(problem, records)
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**31)))
        model = multi_fidelity_gp(problem, records)
        coordinates = [[float(c) for c in problem.fidelities.coordinates(size, float(step))] for size, step in allowed]
        point, value = optimize_acqf_mixed(
            _acquisition(problem, model),
            _bounds(dim + 2),
            1,
            RESTARTS,
            fixed_features_list=[{dim: s, dim + 1: t} for s, t in coordinates],
            raw_samples=SAMPLES,
            equality_constraints=_simplex(dim),
            options=_options(),
        )
    assert value is not None
    found = point[0].detach().numpy()
    size, step = allowed[int(np.argmin([abs(s - found[dim]) + abs(t - found[dim + 1]) for s, t in coordinates]))]
    w = problem.space.project(found[:dim])[0]
    added = float(flops(problem, size, step))
    return Suggestion(tuple(w.tolist()), problem.fidelities.sizes[size], step, acquisition=float(value), flops=added)


def _acquisition(problem: Problem, model: Any) -> Any:
    from botorch.acquisition import PosteriorMean
    from botorch.acquisition.cost_aware import InverseCostWeightedUtility
    from botorch.acquisition.fixed_feature import FixedFeatureAcquisitionFunction
    from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient
    from botorch.acquisition.utils import project_to_target_fidelity
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.optim import optimize_acqf

    dim = problem.space.dim
    there = FixedFeatureAcquisitionFunction(PosteriorMean(model), dim + 2, [dim, dim + 1], [1.0, 1.0])
    _, current = optimize_acqf(
        there, _bounds(dim), 1, RESTARTS, raw_samples=SAMPLES, equality_constraints=_simplex(dim), options=_options()
    )
    return qMultiFidelityKnowledgeGradient(
        model=model,
        num_fantasies=FANTASIES,
        current_value=current,
        cost_aware_utility=InverseCostWeightedUtility(GenericDeterministicModel(partial(_cost, problem), 1)),
        project=lambda x: project_to_target_fidelity(x, {dim: 1.0, dim + 1: 1.0}, dim + 2),
    )


def _allowed(problem: Problem, records: Sequence[Record]) -> list[tuple[int, int]]:
    """(size, step) by the start-small rules, without continuation; the target alone where a full run is due."""
    open_sizes, most = unlocked(problem, records), allowance(problem, records)
    if open_sizes[-1] and owes_target(problem, records):
        return [problem.fidelities.target]
    pairs = [(size, step) for size in range(len(problem.fidelities.sizes)) for step in problem.fidelities.steps]
    return [(size, step) for size, step in pairs if open_sizes[size] and float(flops(problem, size, step)) <= most * (1 + 1e-9)]


def _cost(problem: Problem, x: Tensor) -> Tensor:
    """(..., 1) cost of rows ``[w, s, t]``, log-linear between the sizes of the grid."""
    s, t = x[..., -2].detach().numpy(), x[..., -1].detach().numpy()
    first, last = np.log(problem.fidelities.steps[0]), np.log(problem.fidelities.steps[-1])
    sizes = problem.fidelities.coordinates(np.arange(len(problem.fidelities.sizes)), 1.0)[0]
    per_step = np.exp(np.interp(s, sizes, np.log(problem.flops_per_step)))
    steps = np.exp(first + t * (last - first))
    return torch.as_tensor(charged(problem, per_step * steps) ** problem.strategy.division_coefficient).unsqueeze(-1)


def _options() -> dict[str, bool | float | int | str]:
    """A short burn-in of the sampler of starting points, whose default of 10,000 steps takes longer than everything else."""
    return {"maxiter": ITERATIONS, "n_burnin": 200}


def _bounds(columns: int) -> Tensor:
    return torch.tensor([[0.0] * columns, [1.0] * columns], dtype=torch.float64)


def _simplex(dim: int) -> list[tuple[Tensor, Tensor, float]]:
    return [(torch.arange(dim), torch.ones(dim, dtype=torch.float64), 1.0)]


def multi_fidelity_gp(problem: Problem, records: Sequence[Record]) -> Any:
    """SingleTaskMultiFidelityGP of the negated objective (BoTorch maximises) over ``[w, s, t]``."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskMultiFidelityGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y, _ = arrays(problem, records, (problem.surrogate.checkpoints, 2.0))
    objective = -(y if y.shape[1] == 1 else problem.metric.objective(y)[:, None])
    dim = problem.space.dim
    model = SingleTaskMultiFidelityGP(torch.as_tensor(x[:, :-1]), torch.as_tensor(objective), data_fidelities=[dim, dim + 1])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model
