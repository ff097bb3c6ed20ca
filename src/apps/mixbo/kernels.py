"""Covariance functions over (mixture, log size, log step, run), as GPyTorch kernels with one set of parameters per output.

Inputs are rows ``[w_1..w_K, s, t, run]``; ``s, t`` in [0, 1] with the target at (1, 1), ``run`` an integer id, or -1 for "no
particular run" (no offset: the expectation over training seeds).
"""

from __future__ import annotations

import torch
from gpytorch.kernels import Kernel
from gpytorch.priors import NormalPrior
from torch import Tensor

from . import priors
from .options import SurrogateConfig
from .priors import Prior

RUN = -1  # column


def embed(w: Tensor, embedding: str) -> Tensor:
    """Mixtures (..., K) as points of a Euclidean space: sqrt(w) (Hellinger), w itself, or centred log-ratios."""
    if embedding == "sqrt":
        return w.clamp_min(0).sqrt()
    if embedding == "clr":
        logs = (w.clamp_min(0) + 1e-2).log()  # 1 %: smaller shares are alike
        return (logs - logs.mean(dim=-1, keepdim=True)) / 4.6
    return w


def matern52(a: Tensor, b: Tensor) -> Tensor:
    """Matern-5/2 correlation of scaled points (..., n, d) and (..., q, d)."""
    square = (a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.transpose(-1, -2)).clamp_min(1e-12)
    r = (5 * square).sqrt()
    return (1 + r + r * r / 3) * torch.exp(-r)


def rbf(a: Tensor, b: Tensor) -> Tensor:
    """Squared-exponential correlation of scaled points."""
    return torch.exp(-0.5 * (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1))


class SurrogateKernel(Kernel):
    """Trend + level + mixture part + run offset. The mixture part is one of

    - ``lmc``: a linear model of coregionalisation, ``(l_1(x) l_1(x') + sigma^2 k_x(x, x')) k_1(w, w') + l_2(x) l_2(x') k_2(w, w')``,
      x = (s, t), with signed loadings ``l_r``, linear in x; ``l_2`` vanishes at the target;
    - ``product``: ``k(w, w') k_x(x, x')``;
    - ``joint``: one Matern over all of (w, x) (with ``flops``, x is log FLOPs only: the caller sets s = log FLOPs and t = 1).

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

        add("length", priors.MIXTURE_LENGTH)
        add("domain", *[priors.DOMAIN_LENGTH] * (dim if dim <= priors.ARD_UP_TO else 0))
        add("fidelity_length", priors.FIDELITY_LENGTH, priors.FIDELITY_LENGTH)
        add("amplitude", priors.AMPLITUDE)
        add("level", priors.LEVEL)
        add("run", priors.RUN)
        add("noise", priors.NOISE)
        if options.mean == "law":
            add("exponent", priors.LAW_EXPONENT, priors.LAW_EXPONENT)
        if options.kernel == "lmc":
            add("length_2", priors.SECOND_LENGTH)
            add("common", priors.COMMON)
            add("drift", priors.DRIFT, priors.DRIFT)
            add("loading_2", priors.LOADING_2, priors.LOADING_2)
        start = torch.tensor([prior.mean if prior.start is None else prior.start for prior in table], dtype=torch.float64)
        self.register_parameter("theta", torch.nn.Parameter(start.repeat(outputs, 1)))
        loc = torch.tensor([prior.mean for prior in table], dtype=torch.float64)
        scale = torch.tensor([prior.sd for prior in table], dtype=torch.float64)
        self.register_prior("theta_prior", NormalPrior(loc, scale), "theta")

    def noise_sd(self) -> Tensor:
        """(outputs,) sd of one evaluation above the floor, in scaled units: not part of the covariance, but fitted with it."""
        return self._part("noise").exp()[:, 0, 0]

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, contrast: bool = False, **params: object) -> Tensor:
        """(outputs, n, q) covariances of rows (n, K + 3) and (q, K + 3).

        ``contrast``: of the mixture part alone, without what all mixtures share at a fidelity (trend and level) or a run's offset.
        """
        w1, w2 = self._mixtures(x1), self._mixtures(x2)
        f1, f2 = x1[..., self.dim : self.dim + 2], x2[..., self.dim : self.dim + 2]
        shared, factors = self._fidelity_factors(f1, f2)
        total = torch.zeros_like(shared) if contrast else shared + self._run_offset(x1, x2)
        if self.options.kernel in ("joint", "flops"):
            total = total + self._joint(w1, f1, w2, f2)
        else:
            total = total + sum(m * f for m, f in zip(self._mixture_factors(w1, w2), factors, strict=True))
        return total.diagonal(dim1=-1, dim2=-2) if diag else total

    def grid(self, x1: Tensor, mixtures: Tensor, fidelities: Tensor) -> Tensor:
        """(outputs, n, q f): ``forward`` of the contrast against each of q mixtures (q, K) at each of f fidelities (f, 2).

        The mixture factors are computed once per mixture and the fidelity factors once per fidelity.
        """
        f1 = x1[..., self.dim : self.dim + 2]
        if self.options.kernel in ("joint", "flops"):
            w = mixtures.repeat_interleave(len(fidelities), dim=0)
            f = fidelities.repeat(len(mixtures), 1)
            return self.forward(x1, torch.cat((w, f, torch.full((len(w), 1), -1.0, dtype=w.dtype)), dim=-1), contrast=True)
        _, factors = self._fidelity_factors(f1, fidelities)
        mixed = self._mixture_factors(self._mixtures(x1), self._mixtures(mixtures))
        parts = [m.unsqueeze(-1) * f.unsqueeze(-2) for m, f in zip(mixed, factors, strict=True)]
        return sum(parts[1:], parts[0]).flatten(-2)

    def _part(self, name: str) -> Tensor:
        """(outputs, 1, entries) of the unconstrained parameters."""
        return self.theta[:, None, self.layout[name]]

    def _mixtures(self, x: Tensor) -> Tensor:
        return embed(x[..., : self.dim], self.options.embedding)

    def _mixture_length(self) -> Tensor:
        """(outputs, 1, K), or (outputs, 1, 1) for many domains: a common length times one factor per domain."""
        common = self._part("length")
        return (common + self._part("domain") if self.dim <= priors.ARD_UP_TO else common).exp()

    def _mixture_factors(self, w1: Tensor, w2: Tensor) -> list[Tensor]:
        """One correlation over mixtures per shared function, each (outputs, n, q)."""
        length = self._mixture_length()
        first = matern52(w1 / length, w2 / length)
        if self.options.kernel == "product":
            return [first]
        length = length * self._part("length_2").exp()
        return [first, matern52(w1 / length, w2 / length)]

    def _fidelity_factors(self, f1: Tensor, f2: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What all mixtures share (trend and level), and the factor of each mixture correlation, all (outputs, n, q)."""
        length = self._part("fidelity_length").exp()
        near = rbf(f1 / length, f2 / length)
        shared = self._trend(f1, f2) + (2 * self._part("level")).exp() * near
        if self.options.kernel == "product":
            return shared, [(2 * self._part("amplitude")).exp() * near]
        if self.options.kernel != "lmc":
            return shared, []
        free = (2 * self._part("amplitude")).exp() * near
        common = self._part("common")[..., 0]
        return shared, [free + self._loading("drift", common, f1, f2), self._loading("loading_2", 0.0, f1, f2)]

    def _joint(self, w1: Tensor, f1: Tensor, w2: Tensor, f2: Tensor) -> Tensor:
        length = self._mixture_length(), self._part("fidelity_length").exp()
        both = [torch.cat((w / length[0], f / length[1]), dim=-1) for w, f in ((w1, f1), (w2, f2))]
        return (2 * self._part("amplitude")).exp() * matern52(both[0], both[1])

    def _run_offset(self, x1: Tensor, x2: Tensor) -> Tensor:
        r1, r2 = x1[..., RUN].unsqueeze(-1), x2[..., RUN].unsqueeze(-2)
        along = (x1[..., RUN - 1].unsqueeze(-1) - x2[..., RUN - 1].unsqueeze(-2)) / priors.RUN_LENGTH
        same = (r1 == r2) & (r1 >= 0)
        return (2 * self._part("run")).exp() * (same * torch.exp(-0.5 * along.square()))

    def _loading(self, name: str, at_target: Tensor | float, f1: Tensor, f2: Tensor) -> Tensor:
        """l(x) l(x'), (outputs, n, q), of l(x) = a0 + a1 (1 - s) + a2 (1 - t) with a0 = ``at_target``."""
        a = self._part(name)
        l1, l2 = (at_target + a[..., 0] * (1 - f[..., 0]) + a[..., 1] * (1 - f[..., 1]) for f in (f1, f2))
        return l1.unsqueeze(-1) * l2.unsqueeze(-2)

    def _trend(self, f1: Tensor, f2: Tensor) -> Tensor:
        return priors.TREND_SD**2 * self._features(f1) @ self._features(f2).transpose(-1, -2)

    def _features(self, f: Tensor) -> Tensor:
        """Trend features, zero at the target but for the constant."""
        s, t = 1 - f[..., 0], 1 - f[..., 1]
        one = torch.ones_like(s)
        if self.options.mean == "law":
            a, b = self._part("exponent").exp().unbind(-1)
            s, t = torch.expm1(a * s), torch.expm1(b * t)
            return torch.stack(torch.broadcast_tensors(one, s, t), dim=-1)
        return torch.stack((one, s, t, s * t), dim=-1)
