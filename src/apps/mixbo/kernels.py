"""Covariance functions over (mixture, log size, log step, run), as GPyTorch kernels with one set of parameters per output.

Inputs are rows ``[w_1..w_K, s, t, run]``; ``s, t`` in [0, 1] with the target at (1, 1), ``run`` an integer id, or -1 for "no
particular run" (no offset: the expectation over training seeds).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.priors import NormalPrior
from torch import Tensor

from src.nanollama.arrays import Ints

from . import constants
from .constants import Prior
from .covariance import Where, assemble
from .options import SurrogateConfig

RUN = -1  # column


def embed(w: Tensor, embedding: str) -> Tensor:
    """Mixtures (..., K) as points of a Euclidean space: sqrt(w + 1 %) (near Hellinger), w itself, or centred log-ratios of w + 1 %."""
    if embedding == "sqrt":
        return (w.clamp_min(0) + constants.SHARE).sqrt()
    if embedding == "clr":
        logs = (w.clamp_min(0) + constants.SHARE).log()
        return (logs - logs.mean(dim=-1, keepdim=True)) / 4.6
    return w


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of scaled points (..., n, d) and (..., q, d)."""
    return (a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.transpose(-1, -2)).clamp_min(1e-12)


def matern52(square: Tensor) -> Tensor:
    """Matern-5/2 correlation at squared scaled distances."""
    r = (5 * square).sqrt()
    return (1 + r + r * r / 3) * torch.exp(-r)


def matern32(square: Tensor) -> Tensor:
    """Matern-3/2 correlation at squared scaled distances."""
    r = (3 * square).sqrt()
    return (1 + r) * torch.exp(-r)


@dataclass(frozen=True)
class Inputs:
    """Rows as different mixtures (U, K), different fidelities (V, 2), which of each every row is, and the rows' runs.

    A learning curve repeats its mixture at every checkpoint and a grid repeats both, so U and V are far below the number of rows.
    """

    mixtures: Tensor
    fidelities: Tensor
    mixture: Ints  # (n,)
    fidelity: Ints  # (n,)
    run: Ints  # (n,), -1: none in particular

    @classmethod
    def of(cls, x: Tensor) -> Inputs:
        """Take rows (n, K + 3) apart."""
        mixtures, mixture = torch.unique(x[:, :-3], dim=0, return_inverse=True)
        fidelities, fidelity = torch.unique(x[:, -3:-1], dim=0, return_inverse=True)
        return cls(mixtures, fidelities, mixture.numpy(), fidelity.numpy(), x[:, RUN].numpy().astype(np.int64))

    @classmethod
    def product(cls, mixtures: Tensor, fidelities: Tensor) -> Inputs:
        """Every mixture at every fidelity, mixtures varying slowest, of no particular run."""
        u, v = len(mixtures), len(fidelities)
        return cls(mixtures, fidelities, np.repeat(np.arange(u), v), np.tile(np.arange(v), u), np.full(u * v, -1))

    def __len__(self) -> int:
        return len(self.run)

    def __getitem__(self, index: slice | Ints) -> Inputs:
        return Inputs(self.mixtures, self.fidelities, self.mixture[index], self.fidelity[index], self.run[index])

    @property
    def where(self) -> Where:
        """Which mixture, fidelity and run each row is of."""
        return self.mixture, self.fidelity, self.run

    def rows(self) -> Tensor:
        """(n, K + 3)."""
        run = torch.as_tensor(self.run).to(self.mixtures.dtype)[:, None]
        return torch.cat((self.mixtures[self.mixture], self.fidelities[self.fidelity], run), dim=1)


class SurrogateKernel(Kernel):
    """Trend + level + mixture part + run offset. The mixture part is one of

    - ``lmc``: a linear model of coregionalisation, ``g(x) g(x') [(l_1(x) l_1(x') + sigma^2 k_x(x, x')) k_1(w, w') +
      l_2(x) l_2(x') k_2(w, w')]``, x = (s, t), with signed loadings ``l_r``, linear in x; ``l_2`` vanishes at the target; ``g`` is how
      the effect of the mixture grows with size and step;
    - ``product``: ``k(w, w') k_x(x, x')``;
    - ``joint``: one Matern over all of (w, x) (with ``flops``, x is log FLOPs only: the caller sets s = log FLOPs and t = 1).

    Over mixtures ``k`` is Matern 5/2, over size and step ``k_x`` Matern 3/2: too rough for the other sizes to say all about the largest.
    The trend is linear in s and t with an interaction, or the law ``E + A N^-a + B D^-b``; its coefficients are integrated out.
    """

    has_lengthscale = False

    def __init__(self, dim: int, outputs: int, options: SurrogateConfig) -> None:
        super().__init__(batch_shape=torch.Size([outputs]))
        self.dim, self.options = dim, options
        self.layout: dict[str, slice] = {}
        table: list[Prior] = []

        def add(name: str, *entries: Prior) -> None:
            self.layout[name] = slice(len(table), len(table) + len(entries))
            table.extend(entries)

        add("length", constants.MIXTURE_LENGTH)
        add("domain", *[constants.DOMAIN_LENGTH] * (dim if dim <= constants.ARD_UP_TO else 0))
        along = constants.JOINT_LENGTH if options.kernel in ("joint", "flops") else constants.FIDELITY_LENGTH
        add("fidelity_length", along, along)
        add("amplitude", constants.AMPLITUDE)
        add("level", constants.LEVEL)
        add("run", constants.RUN)
        add("noise", constants.NOISE)
        if options.mean == "law":
            add("exponent", constants.LAW_EXPONENT, constants.LAW_EXPONENT)
        if options.kernel == "lmc":
            add("length_2", constants.SECOND_LENGTH)
            add("common", constants.COMMON)
            add("growth", constants.GROWTH, constants.GROWTH)
            add("drift", constants.DRIFT, constants.DRIFT)
            add("loading_2", constants.LOADING_2, constants.LOADING_2)
        start = torch.tensor([prior.mean if prior.start is None else prior.start for prior in table], dtype=torch.float64)
        self.register_parameter("theta", torch.nn.Parameter(start.repeat(outputs, 1)))
        self._least = torch.tensor([0.0 if prior.start is None else abs(prior.start) for prior in table], dtype=torch.float64)
        loc = torch.tensor([prior.mean for prior in table], dtype=torch.float64)
        scale = torch.tensor([prior.sd for prior in table], dtype=torch.float64)
        self.register_prior("theta_prior", NormalPrior(loc, scale), "theta")

    def continue_from(self, other: SurrogateKernel) -> None:
        """Start at the hyper-parameters of ``other``, loadings no nearer to 0 than they would start anew.

        A loading and its negative are the same covariance, so at 0 the posterior has a saddle: a loading that few data had shrunk to 0
        would stay there however many follow.
        """
        with torch.no_grad():
            theta = other.theta
            self.theta.copy_(torch.where(theta.abs() < self._least, self._least.copysign(theta), theta))

    def noise_sd(self) -> Tensor:
        """(outputs,) sd of one evaluation above the floor, in scaled units: not part of the covariance, but fitted with it."""
        return self._part("noise").exp()[:, 0, 0]

    def run_variance(self) -> Tensor:
        """(outputs,) variance of what a run has of its own: another training seed gives another curve."""
        return (2 * self._part("run")).exp()[:, 0, 0]

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        """(outputs, n, q) covariances of rows (n, K + 3) and (q, K + 3), as GPyTorch calls it."""
        total = self.covariance(Inputs.of(x1), Inputs.of(x2))
        return total.diagonal(dim1=-1, dim2=-2) if diag else total

    def covariance(self, a: Inputs, b: Inputs) -> Tensor:
        """(outputs, n, q): each factor is computed once per pair of *different* mixtures or fidelities."""
        shared, factors = self._fidelity_factors(a.fidelities, b.fidelities)
        offset = self._run_offset(a.fidelities, b.fidelities)
        w1, w2 = embed(a.mixtures, self.options.embedding), embed(b.mixtures, self.options.embedding)
        mixture = self._mixture_factors(w1, w2)
        if self.options.kernel not in ("joint", "flops"):
            return assemble(mixture, factors, shared, offset, a.where, b.where)
        square = assemble(mixture, torch.ones_like(factors), factors[0], torch.zeros_like(offset), a.where, b.where)
        part = (2 * self._part("amplitude")).exp() * matern52(square)
        return part + assemble(mixture[:0], factors[:0], shared, offset, a.where, b.where)

    def _part(self, name: str) -> Tensor:
        """(outputs, 1, entries) of the unconstrained parameters."""
        return self.theta[:, None, self.layout[name]]

    def _mixture_length(self) -> Tensor:
        """(outputs, 1, K), or (outputs, 1, 1) for many domains: a common length times one factor per domain."""
        common = self._part("length")
        return (common + self._part("domain") if self.dim <= constants.ARD_UP_TO else common).exp()

    def _mixture_factors(self, w1: Tensor, w2: Tensor) -> Tensor:
        """(terms, outputs, U, U'): a correlation over mixtures per shared function; squared distances for the joint kernels."""
        length = self._mixture_length()
        first = squared_distance(w1 / length, w2 / length)
        if self.options.kernel != "lmc":
            return (matern52(first) if self.options.kernel == "product" else first)[None]
        length = length * self._part("length_2").exp()
        return torch.stack((matern52(first), matern52(squared_distance(w1 / length, w2 / length))))

    def _fidelity_factors(self, f1: Tensor, f2: Tensor) -> tuple[Tensor, Tensor]:
        """What all mixtures share (trend and level), (outputs, V, V'), and the factor of each mixture term, (terms, outputs, V, V')."""
        length = self._part("fidelity_length").exp()
        square = squared_distance(f1 / length, f2 / length)
        near = matern32(square)
        shared = self._trend(f1, f2) + (2 * self._part("level")).exp() * near
        free = (2 * self._part("amplitude")).exp() * near
        if self.options.kernel == "lmc":
            common = self._part("common")[..., 0]
            first, second = free + self._loading("drift", common, f1, f2), self._loading("loading_2", 0.0, f1, f2)
            return shared, torch.stack((first, second)) * self._growth(f1, f2)
        return shared, (free if self.options.kernel == "product" else square)[None]

    def _growth(self, f1: Tensor, f2: Tensor) -> Tensor:
        """g(x) g(x') of log g(x) = a1 (s - 1) + a2 (t - 1): how the sd over mixtures grows with size and step."""
        a = self._part("growth")
        g1, g2 = ((f[..., 0] - 1) * a[..., 0] + (f[..., 1] - 1) * a[..., 1] for f in (f1, f2))
        return torch.exp(g1.unsqueeze(-1) + g2.unsqueeze(-2))

    def _run_offset(self, f1: Tensor, f2: Tensor) -> Tensor:
        along = (f1[:, 1].unsqueeze(-1) - f2[:, 1].unsqueeze(-2)) / constants.RUN_LENGTH
        return self.run_variance()[:, None, None] * torch.exp(-0.5 * along.square())

    def _loading(self, name: str, at_target: Tensor | float, f1: Tensor, f2: Tensor) -> Tensor:
        """l(x) l(x'), (outputs, n, q), of l(x) = a0 + a1 (1 - s) + a2 (1 - t) with a0 = ``at_target``."""
        a = self._part(name)
        l1, l2 = (at_target + a[..., 0] * (1 - f[..., 0]) + a[..., 1] * (1 - f[..., 1]) for f in (f1, f2))
        return l1.unsqueeze(-1) * l2.unsqueeze(-2)

    def _trend(self, f1: Tensor, f2: Tensor) -> Tensor:
        return constants.TREND_SD**2 * self._features(f1) @ self._features(f2).transpose(-1, -2)

    def _features(self, f: Tensor) -> Tensor:
        """Trend features, zero at the target but for the constant."""
        s, t = 1 - f[..., 0], 1 - f[..., 1]
        one = torch.ones_like(s)
        if self.options.mean == "law":
            a, b = self._part("exponent").exp().unbind(-1)
            s, t = torch.expm1(a * s), torch.expm1(b * t)
            return torch.stack(torch.broadcast_tensors(one, s, t), dim=-1)
        return torch.stack((one, s, t, s * t), dim=-1)
