"""A recurrent mixer of linear cost: Mamba-2 (Dao & Gu, 2024, arXiv:2405.21060), its scan as matrix products over chunks.

Per head h with state S (P x N), step size dt and decay rate a:

    S_t = exp(-a dt_t) S_(t-1) + dt_t x_t B_t^T        y_t = S_t C_t + D x_t

Shapes: B sequences, T positions, H heads of P features each, N state size, c chunks of Q positions. B and C are shared by the heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from ..profiler.flops import SSM_CHUNK as CHUNK
from .layers import Linear, RMSNorm
from .sizing import SSM_WIDTH as WIDTH
from .state import Context, SSMCache


class SSM(nn.Module):
    """Gate, x, B, C and dt from one matrix; short convolution; scan; gated norm; project back."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.nb_heads, self.state = cfg.nb_heads, cfg.ssm_state
        self.inner = cfg.ssm_expand * cfg.emb_dim
        self.channels = self.inner + 2 * self.state
        self.project = Linear(cfg.emb_dim, self.inner + self.channels + self.nb_heads)
        self.conv = nn.Parameter(torch.empty(WIDTH, self.channels))
        self.log_rate = nn.Parameter(torch.empty(self.nb_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.nb_heads))
        self.skip = nn.Parameter(torch.empty(self.nb_heads))
        self.norm = RMSNorm(self.inner, cfg.norm_eps)
        self.out = Linear(self.inner, cfg.emb_dim)

    @torch.no_grad()
    def init_dynamics(self) -> None:
        """Rates from 1 to 16 and step sizes from .001 to .1, spread evenly (in the logarithm) over the heads, as Mamba-2's ranges are."""
        spread = torch.linspace(0, 1, self.nb_heads, device=self.log_rate.device)
        dt = torch.exp(math.log(1e-3) + (math.log(1e-1) - math.log(1e-3)) * spread)
        self.log_rate.copy_(math.log(16) * spread.flip(0))
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.skip.fill_(1.0)

    def forward(self, x: Tensor, at: Context, cache: SSMCache | None = None) -> Tensor:
        """(B, T, emb_dim) -> (B, T, emb_dim). With a cache the state is carried on; padding leaves it as it was."""
        wide = torch.promote_types(x.dtype, torch.float32)  # decays are products of many numbers: never in half precision
        gate, inputs, dt = self.project(x).split([self.inner, self.channels, self.nb_heads], dim=-1)
        dt = F.softplus(dt.to(wide) + self.dt_bias)
        if at.valid is not None:
            dt = dt * at.valid[..., None]
        mixed = F.silu(self.convolve(inputs, at, cache))
        values, b, c = mixed.split([self.inner, self.state, self.state], dim=-1)
        values = values.unflatten(-1, (self.nb_heads, -1))
        state = None if cache is None else cache.state
        with torch.autocast(x.device.type, enabled=False):
            y, state = scan(values.to(wide), dt, -self.log_rate.to(wide).exp(), b.to(wide), c.to(wide), state, at.documents)
        if cache is not None:
            cache.state.copy_(state)
        y = y + self.skip[:, None] * values
        return self.out(self.norm((y.flatten(2) * F.silu(gate)).to(self.norm.weight.dtype)))

    def convolve(self, inputs: Tensor, at: Context, cache: SSMCache | None) -> Tensor:
        """Causal depthwise convolution of (B, T, channels) that does not look into the document before."""
        length = inputs.shape[1]
        before = inputs.new_zeros(inputs.shape[0], WIDTH - 1, self.channels) if cache is None else cache.inputs.to(inputs.dtype)
        padded = torch.cat([before, inputs], dim=1)
        out = inputs * self.conv[-1]
        for back in range(1, WIDTH):
            shifted = padded[:, WIDTH - 1 - back : WIDTH - 1 - back + length]
            if at.documents is not None:
                same = F.pad(at.documents[:, back:] == at.documents[:, :-back], (min(back, length), 0))
                shifted = shifted * same[..., None]
            out = out + shifted * self.conv[-1 - back]
        if cache is not None:
            cache.inputs.copy_(_last_valid(padded, at.valid, length))
        return out

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> SSMCache:
        """An empty cache, of a size that does not depend on ``capacity``."""
        wide = torch.promote_types(like.dtype, torch.float32)
        state = like.new_zeros(batch, self.nb_heads, self.inner // self.nb_heads, self.state, dtype=wide)
        return SSMCache(like.new_zeros(batch, WIDTH - 1, self.channels), state)


def _last_valid(padded: Tensor, valid: Tensor | None, length: int) -> Tensor:
    """The WIDTH - 1 inputs that end at the last valid one: (B, WIDTH - 1, channels)."""
    count = torch.full((padded.shape[0],), length, device=padded.device) if valid is None else valid.sum(-1)
    at = count[:, None] + torch.arange(WIDTH - 1, device=padded.device)
    return padded.gather(1, at[..., None].expand(-1, -1, padded.shape[-1]))


def recurrence(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position: x (B, H, P), dt (B, H), rate (H,) negative, b and c (B, N), state (B, H, P, N) -> y (B, H, P) and the next state."""
    state = state * (dt * rate).exp()[..., None, None] + (dt[..., None] * x)[..., None] * b[:, None, None]
    return torch.einsum("bhpn,bn->bhp", state, c), state


def scan(
    x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All positions: ``recurrence`` from left to right, computed in parallel; the state starts anew with every document.

    Args:
        x: (B, T, H, P).
        dt: (B, T, H), not negative; a position of step size zero changes nothing.
        rate: (H,), negative.
        b, c: (B, T, N).
        state: (B, H, P, N) before the first position; None: zero.
        documents: (B, T) or None; not together with ``state``.

    Returns:
        y (B, T, H, P) and the last state (B, H, P, N).
    """
    assert state is None or documents is None
    batch, length = x.shape[:2]
    if length == 1 and state is not None:
        y, state = recurrence(x[:, 0], dt[:, 0], rate, b[:, 0], c[:, 0], state)
        return y[:, None], state
    pad = -length % CHUNK
    x, dt, b, c = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x, dt, b, c))
    x, dt, b, c = (t.unflatten(1, (-1, CHUNK)) for t in (x, dt, b, c))  # (B, c, Q, ...)
    decay = (dt * rate).transpose(2, 3).cumsum(-1)  # (B, c, H, Q): log of what is left of the chunk's first state
    x = x * dt[..., None]
    if documents is None:
        documents = x.new_zeros(batch, 1, dtype=torch.int64).expand(batch, length)
    documents = torch.cat([documents, documents[:, -1:].expand(-1, pad)], 1).unflatten(1, (-1, CHUNK))  # (B, c, Q)
    last = documents[..., -1]

    within = _lower(decay[..., :, None] - decay[..., None, :]) * (documents[..., :, None] == documents[..., None, :])[:, :, None]
    y = torch.einsum("zcqn,zckn,zchqk,zckhp->zcqhp", c, b, within, x)

    to_end = (decay[..., -1:] - decay).exp() * (documents == last[..., None])[:, :, None]
    added = torch.einsum("zckn,zchk,zckhp->zchpn", b, to_end, x)  # what each chunk adds to the state at its end
    states, final = _carry(added, decay[..., -1], last, documents[..., 0], state)

    before = torch.cat([last[:, :1] if state is None else documents[:, :1, 0], last[:, :-1]], 1)
    from_start = decay.exp() * (documents == before[..., None])[:, :, None]
    y = y + torch.einsum("zcqn,zchq,zchpn->zcqhp", c, from_start, states)
    return y.flatten(1, 2)[:, :length], final


def _carry(added: Tensor, decay: Tensor, last: Tensor, first: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """States before each chunk (B, c, H, P, N) and after the last one, from what each adds and its whole decay (B, c, H)."""
    start = torch.zeros_like(added[:, 0]) if state is None else state
    added = torch.cat([start[:, None], added], 1)
    total = F.pad(decay.cumsum(1), (0, 0, 1, 0)).transpose(1, 2)  # (B, H, c + 1)
    document = torch.cat([first[:, :1], last], 1)
    same = document[:, :, None] == document[:, None, :]
    weights = _lower(total[..., :, None] - total[..., None, :]) * same[:, None]
    states = torch.einsum("zhij,zjhpn->zihpn", weights, added)
    return states[:, :-1], states[:, -1]


def _lower(log: Tensor) -> Tensor:
    """exp on and below the diagonal, zero above: masked before the exponential, which above it would overflow."""
    keep = torch.ones(log.shape[-2:], dtype=torch.bool, device=log.device).tril()
    return log.masked_fill(~keep, -math.inf).exp()
