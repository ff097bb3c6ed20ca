"""The Gaussian-process surrogate: exact posterior by Cholesky, in the units of the minimised objective.

Outputs are modelled independently and summed with the metric's weights. Everything is a pure function of the records: the
hyper-parameters are those fitted to the first ``m`` finished trials, m the largest multiple of ``refit`` there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fitting import Fitted, fit
from .kernels import Inputs, SurrogateKernel
from .observations import observations, rows
from .problem import Problem
from .records import Record, finished

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Basis:
    """Rows of inputs (q, K + 3) with their whitened cross-covariances (outputs, n, q), and the posterior mean there (q,).

    ``contrast``: of the mixture part of the objective alone. What all mixtures share at a fidelity does not say which is best, is
    learned from the first runs there, and would drown every difference at a size not yet seen: then nothing would be worth
    running there, and a study would stay at small sizes for ever.
    """

    x: Tensor
    half: Tensor
    mean: Array
    contrast: bool = False

    def __getitem__(self, index: slice) -> Basis:
        return Basis(self.x[index], self.half[..., index], self.mean[index], self.contrast)


class Surrogate:
    """The posterior given observations; ``pending`` rows are conditioned on at their predicted mean (variance only)."""

    def __init__(self, problem: Problem, x: Array, y: Array, pending: Array, fitted: Fitted) -> None:
        self.problem = problem
        self._kernel, self._noise = fitted.kernel, fitted.noise
        weights = torch.as_tensor(problem.metric.signed) if problem.surrogate.outputs == "separate" else torch.ones(1, dtype=torch.float64)
        self._weights = weights * fitted.scale
        self._constant = float((weights * fitted.shift).sum())
        targets = ((torch.as_tensor(y) - fitted.shift) / fitted.scale).T
        self._condition(torch.as_tensor(x), targets)
        if len(pending):
            inputs = torch.as_tensor(pending)
            self._condition(torch.cat((self._x, inputs)), torch.cat((targets, self._latent_mean(self._against(inputs))), dim=-1))

    @property
    def n(self) -> int:
        """Number of observations, pending ones included."""
        return len(self._x)

    @property
    def noise_variance(self) -> float:
        """Variance of one evaluation of the objective around its run's curve."""
        return float((self._weights.square() * self._noise).sum())

    def basis(self, x: Array, contrast: bool = False) -> Basis:
        """Prepare rows for variances and covariances."""
        inputs = torch.as_tensor(x)
        return self._whitened(inputs, self._against(inputs, contrast), contrast)

    def grid(self, mixtures: Array, sizes: NDArray[np.int64], steps: Array, contrast: bool = True) -> Basis:
        """``basis`` of every mixture (q, K) at every fidelity (f,), mixtures varying slowest: (q f) rows."""
        w = np.repeat(mixtures, len(sizes), axis=0)
        return self.basis(rows(self.problem, w, np.tile(sizes, len(mixtures)), np.tile(steps, len(mixtures))), contrast)

    def mean(self, x: Array) -> Array:
        """(q,) posterior mean only: cheap."""
        return self._objective(self._latent_mean(self._against(torch.as_tensor(x))))

    def variance(self, basis: Basis) -> Array:
        """(q,) posterior variance of the noise-free objective."""
        with torch.no_grad():
            prior = self._prior_between(basis.x, basis.x, basis.contrast)
            each = (prior - basis.half.square().sum(dim=-2)).clamp_min(1e-12)
            return (self._weights.square() @ each).numpy()

    def covariance(self, a: Basis, b: Basis) -> Array:
        """(q, p) posterior covariance of the noise-free objective."""
        assert a.contrast == b.contrast
        square = self._weights.square()
        with torch.no_grad():
            prior = torch.tensordot(square, self._cross(a.x, b.x, a.contrast), dims=1)
            left = (a.half * self._weights[:, None, None]).flatten(0, 1)
            right = (b.half * self._weights[:, None, None]).flatten(0, 1)
            return (prior - left.T @ right).numpy()

    def paired_covariance(self, a: Basis, b: Basis, index: NDArray[np.int64]) -> Array:
        """(q,) covariance of each row of a with row ``index[q]`` of b, which must be the same mixture at another fidelity."""
        square = self._weights.square()
        with torch.no_grad():
            prior = self._prior_between(a.x, b.x[index], a.contrast)
            shared = torch.einsum("moq,moq->mq", a.half, b.half[..., index])
            return (square @ (prior - shared)).numpy()

    def _condition(self, x: Tensor, y: Tensor) -> None:
        self._x, self._taken_apart = x, Inputs.of(x)
        with torch.no_grad():
            covariance = self._cross(x, x) + torch.diag_embed(self._noise[:, None].expand(-1, len(x)))
            self._cholesky = torch.linalg.cholesky(covariance)
            self._alpha = torch.cholesky_solve(y.unsqueeze(-1), self._cholesky)

    def _against(self, x: Tensor, contrast: bool = False) -> Tensor:
        """(outputs, n, q) prior covariance of the observations with rows x."""
        if not isinstance(self._kernel, SurrogateKernel):
            return self._cross(self._x, x)
        with torch.no_grad():
            return self._kernel.covariance(self._taken_apart, Inputs.of(x), contrast)

    def _cross(self, x1: Tensor, x2: Tensor, contrast: bool = False) -> Tensor:
        with torch.no_grad():
            if isinstance(self._kernel, SurrogateKernel):
                return self._kernel.forward(x1, x2, contrast=contrast)
            return self._kernel(x1[..., :-1], x2[..., :-1]).to_dense()  # a kernel of BoTorch: no runs, no contrast

    def _prior_between(self, a: Tensor, b: Tensor, contrast: bool) -> Tensor:
        """(outputs, q) prior covariance of each row of a with the same row of b, of the same mixture.

        Every kernel here is stationary in the mixture, so one row per pair of fidelities will do.
        """
        pairs = torch.cat((a[:, -3:-1], b[:, -3:-1], (a[:, -1:] >= 0).to(a.dtype)), dim=-1)
        unique, inverse = torch.unique(pairs, dim=0, return_inverse=True)
        first = torch.empty(len(unique), dtype=torch.long).scatter_(0, inverse.flip(0), torch.arange(len(pairs)).flip(0))
        both = torch.cat((a[first, :-3], b[first, -3:]), dim=-1)  # the mixture of a with the fidelity of b
        return self._cross(a[first], both, contrast).diagonal(dim1=-1, dim2=-2)[..., inverse]

    def _latent_mean(self, cross: Tensor) -> Tensor:
        return (cross.transpose(-1, -2) @ self._alpha).squeeze(-1)

    def _objective(self, latent: Tensor) -> Array:
        return (self._weights @ latent).numpy() + self._constant

    def _whitened(self, inputs: Tensor, cross: Tensor, contrast: bool) -> Basis:
        with torch.no_grad():
            half = torch.linalg.solve_triangular(self._cholesky, cross, upper=False)
            return Basis(inputs, half, self._objective(self._latent_mean(cross)), contrast)


def condition(problem: Problem, records: Sequence[Record]) -> Surrogate:
    """The surrogate given all records, with the hyper-parameters of the last multiple of ``refit`` finished trials."""
    period, checkpoints = problem.surrogate.refit, problem.surrogate.checkpoints
    done = finished(records)
    kept = done[: len(done) // period * period]
    fewer = (checkpoints + 1) // 2, 4.0  # same reach along the curve with half the points: the fit costs n^3 at every iteration
    x, y, _ = arrays(problem, kept, fewer)
    return Surrogate(problem, *arrays(problem, records, (checkpoints, 2.0)), fit(x, y, problem.space.dim, problem.surrogate))


def arrays(problem: Problem, records: Sequence[Record], thinning: tuple[int, float]) -> tuple[Array, Array, Array]:
    """Inputs, modelled outputs and pending inputs."""
    data = observations(problem, records, thinning)
    y = data.y if problem.surrogate.outputs == "separate" else problem.metric.objective(data.y)[:, None]
    return data.x, y, data.pending
