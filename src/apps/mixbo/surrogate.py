"""The Gaussian-process surrogate: exact posterior by Cholesky, in the units of the minimised objective.

Outputs are modelled one by one and summed with the metric's weights. Everything is a pure function of the records: the
hyper-parameters are those fitted to the first ``m`` finished trials, m the largest multiple of ``refit`` there is, or to all of them
where these find a later value out of all proportion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from src.nanollama.arrays import Array, Ints

from .constants import SURPRISE
from .fitting import Fitted, fit
from .kernels import Inputs, SurrogateKernel
from .observations import observations, rows
from .problem import Problem
from .records import Record, finished


@dataclass(frozen=True)
class Basis:
    """q inputs with their whitened cross-covariances (outputs, n, q), and the posterior mean there (q,).

    With ``less``, everything is of the difference from one reference mixture at the same fidelity. What all mixtures share there
    cancels: it does not say which of them is best, and would drown what does at a size that is hardly known yet.
    """

    inputs: Inputs
    half: Tensor
    mean: Array
    less: Inputs | None = None

    def __getitem__(self, index: slice | Ints) -> Basis:
        return Basis(self.inputs[index], self.half[..., index], self.mean[index], None if self.less is None else self.less[index])


class Surrogate:
    """The posterior given observations; ``pending`` rows are conditioned on at their predicted mean (variance only)."""

    def __init__(self, problem: Problem, x: Array, y: Array, pending: Array, fitted: Fitted) -> None:
        self.problem = problem
        self._kernel, self._noise = fitted.kernel, fitted.noise
        weights = torch.as_tensor(problem.metric.signed) if problem.surrogate.outputs == "separate" else torch.ones(1, dtype=torch.float64)
        self._weights = weights * fitted.scale
        own = fitted.kernel.run_variance() if isinstance(fitted.kernel, SurrogateKernel) else torch.zeros_like(self._weights)
        self._runs = own.detach()
        self._constant = float((weights * fitted.shift).sum())
        targets = ((torch.as_tensor(y) - fitted.shift) / fitted.scale).T
        self._condition(torch.as_tensor(x), targets)
        # In sds, of the value furthest from what those before it predict
        self.surprise = float(self._errors(targets).abs().max()) if len(x) else 0.0
        if len(pending):
            inputs = torch.as_tensor(pending)
            self._condition(torch.cat((self._inputs.rows(), inputs)), torch.cat((targets, self._latent_mean(Inputs.of(inputs))), dim=-1))

    @property
    def n(self) -> int:
        """Number of observations, pending ones included."""
        return len(self._inputs)

    @property
    def noise_variance(self) -> float:
        """Variance of one evaluation of the objective around its run's curve."""
        return self._spread * float((self._weights.square() * self._noise).sum())

    @property
    def run_variance(self) -> float:
        """Variance of a run's curve of the objective around what is expected of its mixture there."""
        return self._spread * float(self._weights.square() @ self._runs)

    def basis(self, x: Array) -> Basis:
        """Prepare rows (q, K + 3) for variances, and for covariances with rows of other runs."""
        return self._whitened(Inputs.of(torch.as_tensor(x)))

    def grid(self, mixtures: Array, sizes: Ints, steps: Array, reference: Array | None = None, runs: Ints | None = None) -> Basis:
        """``basis`` of every mixture (q, K) at every fidelity (f,), mixtures varying slowest: (q f) rows; less a ``reference`` (K,).

        ``runs`` (q f): the run that each row would continue, with its offset, or -1.
        """
        inputs = self._product(mixtures, sizes, steps)
        inputs = inputs if runs is None else replace(inputs, run=runs)
        return self._whitened(inputs) if reference is None else self._differences(inputs, reference)

    def at_target(self, mixtures: Array, reference: Array | None = None) -> Basis:
        """``grid`` of mixtures (q, K) at the target alone."""
        return self.grid(mixtures, *self._target(), reference)

    def mean(self, x: Array) -> Array:
        """(q,) posterior mean only: cheap."""
        return self._objective(self._latent_mean(Inputs.of(torch.as_tensor(x))))

    def mean_at_target(self, mixtures: Array) -> Array:
        """``mean`` of mixtures (q, K) at the target."""
        return self._objective(self._latent_mean(self._product(mixtures, *self._target())))

    def variance(self, basis: Basis) -> Array:
        """(q,) posterior variance of the noise-free objective, or of its difference from the reference."""
        with torch.no_grad():
            prior = self._prior_of_pairs(basis, basis) + self._runs[:, None] * torch.as_tensor(basis.inputs.run >= 0)
            each = (prior - basis.half.square().sum(dim=-2)).clamp_min(1e-12)
            return self._spread * (self._weights.square() @ each).numpy()

    def variance_of_run(self, basis: Basis) -> Array:
        """``variance`` of what a run there would show but for the noise of one evaluation: a new run brings an offset of its own."""
        return self.variance(basis) + self.run_variance * (basis.inputs.run < 0)

    def covariance(self, a: Basis, b: Basis) -> Array:
        """(q, p) posterior covariance of the noise-free objective, or of differences from a reference."""
        with torch.no_grad():
            prior = torch.tensordot(self._weights.square(), self._prior(a, b), dims=1)
            left = (a.half * self._weights[:, None, None]).flatten(0, 1)
            right = (b.half * self._weights[:, None, None]).flatten(0, 1)
            return self._spread * (prior - left.T @ right).numpy()

    def paired_covariance(self, a: Basis, b: Basis, index: Ints) -> Array:
        """(q,) covariance of each row of a with row ``index[q]`` of b, which must be the same mixture at another fidelity."""
        paired = b[index]
        with torch.no_grad():
            shared = torch.einsum("moq,moq->mq", a.half, paired.half)
            return self._spread * (self._weights.square() @ (self._prior_of_pairs(a, paired) - shared)).numpy()

    def _target(self) -> tuple[Ints, Array]:
        size, step = self.problem.fidelities.target
        return np.array([size]), np.array([float(step)])

    def _product(self, mixtures: Array, sizes: Ints, steps: Array) -> Inputs:
        fidelities = rows(self.problem, np.zeros((len(sizes), 0)), sizes, steps)[:, :2]
        return Inputs.product(torch.as_tensor(mixtures), torch.as_tensor(fidelities))

    def _condition(self, x: Tensor, y: Tensor) -> None:
        self._inputs = Inputs.of(x)
        self._references: dict[tuple[bytes, bytes], Basis] = {}
        with torch.no_grad():
            covariance = self._cross(self._inputs, self._inputs) + torch.diag_embed(self._noise[:, None].expand(-1, len(x)))
            self._cholesky = torch.linalg.cholesky(covariance)
            self._alpha = torch.cholesky_solve(y.unsqueeze(-1), self._cholesky)
            self._spread = self._inflation(y)

    def _inflation(self, y: Tensor) -> float:
        """Variance of the objective over what independent outputs would give it, from how their one-step-ahead errors go together.

        What surprises in one domain's loss mostly surprises in the others' too, and does not average out in their sum.
        """
        if len(self._weights) == 1 or y.shape[-1] < 2:
            return 1.0
        errors = self._errors(y)
        correlation = torch.nn.functional.cosine_similarity(errors.unsqueeze(0), errors.unsqueeze(1), dim=-1)
        return float(self._weights @ correlation @ self._weights / self._weights.square().sum())

    def _errors(self, y: Tensor) -> Tensor:
        """(outputs, n) each value less what those before it predict, in sds."""
        return torch.linalg.solve_triangular(self._cholesky, y.unsqueeze(-1), upper=False).squeeze(-1)

    def _cross(self, a: Inputs, b: Inputs) -> Tensor:
        """(outputs, len(a), len(b)) prior covariance."""
        with torch.no_grad():
            if isinstance(self._kernel, SurrogateKernel):
                return self._kernel.covariance(a, b)
            return self._kernel(a.rows()[:, :-1], b.rows()[:, :-1]).to_dense()  # a kernel of BoTorch: no runs

    def _prior(self, a: Basis, b: Basis) -> Tensor:
        """(outputs, q, p) prior covariance."""
        prior = self._cross(a.inputs, b.inputs)
        if b.less is not None:
            prior = prior - self._cross(a.inputs, b.less)
        if a.less is not None:
            prior = prior - self._cross(a.less, b.inputs)
        return prior if a.less is None or b.less is None else prior + self._cross(a.less, b.less)

    def _prior_of_pairs(self, a: Basis, b: Basis) -> Tensor:
        """(outputs, q) prior covariance of each row of a with the same row of b, of the same mixture, without what a run has of its own.

        Every kernel here is stationary and symmetric in the mixture, so one mixture will do where both are the same.
        """
        one, f, g = a.inputs.mixtures[:1], a.inputs.fidelities, b.inputs.fidelities
        same = self._cross(Inputs.product(one, f), Inputs.product(one, g))[..., a.inputs.fidelity, b.inputs.fidelity]
        if a.less is None:
            return same
        apart = self._cross(Inputs.product(a.inputs.mixtures, f), Inputs.product(a.less.mixtures, g))
        return 2 * (same - apart[..., a.inputs.mixture * len(f) + a.inputs.fidelity, b.inputs.fidelity])

    def _latent_mean(self, at: Inputs) -> Tensor:
        return self._mean_from(self._cross(self._inputs, at))

    def _mean_from(self, cross: Tensor) -> Tensor:
        return (cross.transpose(-1, -2) @ self._alpha).squeeze(-1)

    def _objective(self, latent: Tensor) -> Array:
        return (self._weights @ latent).numpy() + self._constant

    def _whitened(self, at: Inputs) -> Basis:
        cross = self._cross(self._inputs, at)
        with torch.no_grad():
            half = torch.linalg.solve_triangular(self._cholesky, cross, upper=False)
        return Basis(at, half, self._objective(self._mean_from(cross)))

    def _differences(self, at: Inputs, reference: Array) -> Basis:
        """``at`` is a product: its rows are every mixture at every fidelity, mixtures varying slowest."""
        here, there = self._whitened(at), self._whitened_reference(reference, at.fidelities)
        half = here.half.unflatten(-1, (-1, len(at.fidelities))) - there.half.unsqueeze(-2)
        return Basis(at, half.flatten(-2), here.mean - there.mean[at.fidelity], there.inputs[at.fidelity])

    def _whitened_reference(self, reference: Array, fidelities: Tensor) -> Basis:
        """One mixture at all ``fidelities``, kept: searches ask for differences from the same one dozens of times."""
        asked = reference.tobytes(), fidelities.numpy().tobytes()
        if asked not in self._references:
            self._references[asked] = self._whitened(Inputs.product(torch.as_tensor(reference)[None], fidelities))
        return self._references[asked]


def condition(problem: Problem, records: Sequence[Record]) -> Surrogate:
    """The surrogate given all records, with the hyper-parameters of the last multiple of ``refit`` finished trials, unless surprised.

    Asking again with the same records costs nothing.
    """
    return _condition(problem, tuple(records))


@lru_cache(maxsize=4)
def _condition(problem: Problem, records: tuple[Record, ...]) -> Surrogate:
    period, done = problem.surrogate.refit, tuple(finished(records))
    links = list(range(period, len(done) + 1, period)) or [0]
    fitted = None
    for count in links[-1:] if problem.surrogate.kernel == "botorch" else links:  # BoTorch starts from its own initial values
        fitted = _refit(problem, done[:count], fitted)
    assert fitted is not None
    data = arrays(problem, records, (problem.surrogate.checkpoints, 2.0))
    surrogate = Surrogate(problem, *data, fitted)
    if len(done) == links[-1] or surrogate.surprise < SURPRISE:
        return surrogate
    return Surrogate(problem, *data, _refit(problem, done, fitted))


@lru_cache(maxsize=1024)
def _refit(problem: Problem, records: tuple[Record, ...], start: Fitted | None) -> Fitted:
    """One link of the chain of fits, each from where the one before it ended: a few steps instead of dozens, and still a pure function."""
    fewer = (problem.surrogate.checkpoints + 1) // 2, 4.0  # same reach along the curve with half the points: a fit costs n^3 at every step
    x, y, pending = arrays(problem, records, fewer)
    fitted = fit(x, y, problem.space.dim, problem.surrogate, start)
    if start is None or Surrogate(problem, x, y, pending[:0], fitted).surprise < SURPRISE:
        return fitted
    return fit(x, y, problem.space.dim, problem.surrogate)  # too far from the data to come back to them


def arrays(problem: Problem, records: Sequence[Record], thinning: tuple[int, float]) -> tuple[Array, Array, Array]:
    """Inputs, modelled outputs and pending inputs."""
    data = observations(problem, records, thinning)
    y = data.y if problem.surrogate.outputs == "separate" else problem.metric.objective(data.y)[:, None]
    return data.x, y, data.pending
