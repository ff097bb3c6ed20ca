"""Hyper-parameters of the surrogate: maximum a posteriori, a pure function of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from gpytorch.kernels import Kernel
from scipy.optimize import minimize
from torch import Tensor

from src.nanollama.arrays import Array

from . import constants
from .kernels import Inputs, SurrogateKernel, embed, matern52, squared_distance
from .options import Embedding, SurrogateConfig

# Loss in nats where the covariance has no factor: the line search turns back. From a number near overflow it could not, and the fit ended
# where it began, without a word.
SINGULAR = 1e8
ROUNDING = 2.3e-16  # relative, of a double


@dataclass(frozen=True, eq=False)  # hashed by identity
class Fitted:
    """A kernel with its hyper-parameters, the noise variance (outputs,) in scaled units, and the scaling of the outputs."""

    kernel: Kernel
    noise: Tensor
    shift: Tensor
    scale: Tensor


def fit(x: Array, y: Array, dim: int, options: SurrogateConfig, start: Fitted | None = None) -> Fitted:
    """Fit rows x (n, dim + 3) and values y (n, outputs), from the hyper-parameters of ``start`` if given, else from the priors' means."""
    inputs, values = torch.as_tensor(x), torch.as_tensor(y)
    if options.kernel == "botorch":
        if len(x):
            return _botorch(inputs, values, dim)
        options = replace(options, kernel="product")  # BoTorch has no model of nothing
    shift, scale = scaling(inputs, values, dim, options.embedding)
    floor = (options.noise_floor / scale).square()
    kernel = SurrogateKernel(dim, y.shape[1], options)
    if start is not None:
        assert isinstance(start.kernel, SurrogateKernel)
        kernel.continue_from(start.kernel)
    if len(x) and not _maximise(kernel, Inputs.of(inputs), ((values - shift) / scale).T, floor) and start is not None:
        return fit(x, y, dim, options)  # hyper-parameters that these data have no factor for
    with torch.no_grad():
        noise = floor + kernel.noise_sd().square()
    return Fitted(kernel, noise, shift, scale)


def scaling(x: Tensor, y: Tensor, dim: int, embedding: Embedding = "sqrt") -> tuple[Tensor, Tensor]:
    """Shift and scale (outputs,) that give the mixture's effect unit variance, by the method of moments.

    The scale squared is what values at the same fidelity differ by, over what those of a process of unit variance and the prior's mean
    length would differ by at the same mixtures. So it is neither the trend's doing nor that of mixtures which happen to lie close
    together, and a prior of the amplitude means the same in every study. Without two mixtures at one fidelity: the sd of all values.
    """
    if not len(x):
        return torch.zeros(y.shape[1], dtype=y.dtype), torch.ones(y.shape[1], dtype=y.dtype)
    _, group = torch.unique(x[:, dim : dim + 2], dim=0, return_inverse=True)
    same = (group[:, None] == group).to(y.dtype)
    average = same / same.sum(dim=1, keepdim=True)
    points = embed(x[:, :dim], embedding) / math.exp(constants.MIXTURE_LENGTH.mean)
    expected = len(x) - (average * matern52(squared_distance(points, points))).sum()
    seen = (y - average @ y).square().sum(dim=0)
    scale = (seen / expected).sqrt() if expected > 1e-6 else y.std(dim=0, correction=0)
    return y.mean(dim=0), torch.where(scale > 1e-9, scale, torch.ones_like(scale))


def log_posterior(kernel: SurrogateKernel, x: Inputs, y: Tensor, floor: Tensor) -> Tensor:
    """Log marginal likelihood of y (outputs, n) plus log prior, up to a constant, summed over outputs; sets ``theta.grad``.

    The gradient of the likelihood is passed through the covariance by hand, (K^-1 - a a^T) / 2 with a = K^-1 y (Rasmussen and
    Williams 2006, eq. 5.9): one factorisation, and no differentiation of it.
    """
    kernel.theta.grad = None
    noise = floor + kernel.noise_sd().square()
    covariance = kernel.covariance(x, x)
    with torch.no_grad():
        noisy = covariance.detach().clone()
        if (noisy.diagonal(dim1=-1, dim2=-2).amax(dim=-1) * ROUNDING * y.shape[-1] > noise).any():
            raise torch.linalg.LinAlgError("the noise is lost in rounding: with a few rows more there would be no factor")
        noisy.diagonal(dim1=-1, dim2=-2).add_(noise[:, None])
        factor = torch.linalg.cholesky(noisy)
        weights = torch.cholesky_solve(y.unsqueeze(-1), factor)
        slope = torch.cholesky_inverse(factor).sub_(weights @ weights.transpose(-1, -2)).mul_(0.5)
        likelihood = -0.5 * (y.unsqueeze(-1) * weights).sum() - factor.diagonal(dim1=-1, dim2=-2).log().sum()
    torch.autograd.backward([covariance, noise], [slope, slope.diagonal(dim1=-1, dim2=-2).sum(-1)])
    centred = (kernel.theta - kernel.theta_prior.loc) / kernel.theta_prior.scale
    penalty = 0.5 * centred.square().sum()
    penalty.backward()
    return likelihood - penalty.detach()


def _maximise(kernel: SurrogateKernel, x: Inputs, y: Tensor, floor: Tensor) -> bool:
    """Whether hyper-parameters were found for which the covariance has a factor."""
    start = kernel.theta.detach().clone()

    def loss(flat: Array) -> tuple[float, Array]:
        with torch.no_grad():
            kernel.theta.copy_(torch.as_tensor(flat).reshape(start.shape))
        try:
            value = -log_posterior(kernel, x, y, floor)
        except torch.linalg.LinAlgError:
            return SINGULAR, np.zeros_like(flat)
        assert kernel.theta.grad is not None
        return float(value), kernel.theta.grad.flatten().numpy().copy()

    bound = [(m - 6 * s, m + 6 * s) for m, s in zip(kernel.theta_prior.loc.tolist(), kernel.theta_prior.scale.tolist(), strict=True)]
    options = {"maxiter": constants.ITERATIONS, "ftol": constants.TOLERANCE}
    best = minimize(loss, start.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=bound * len(start), options=options)
    with torch.no_grad():
        kernel.theta.copy_(torch.as_tensor(best.x).reshape(start.shape))
        kernel.theta.grad = None
    return bool(best.fun < SINGULAR)


def _botorch(x: Tensor, y: Tensor, dim: int) -> Fitted:
    """SingleTaskMultiFidelityGP's kernel and noise, one per standardised output. It has no run effect and cannot be anti-correlated."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskMultiFidelityGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    shift, scale = y.mean(dim=0), y.std(dim=0, correction=0).clamp_min(1e-9)
    model = SingleTaskMultiFidelityGP(x[:, :-1], (y - shift) / scale, data_fidelities=[dim, dim + 1], outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    constant = model.mean_module.constant.detach().reshape(-1)
    return Fitted(model.covar_module, model.likelihood.noise.detach().reshape(-1), shift + scale * constant, scale)
