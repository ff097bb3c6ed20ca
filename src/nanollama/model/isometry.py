"""How layers without skip connections start: each passes its input on almost unchanged, so that depth does not shred the gradient.

Independent draws do not train here: a gated feed-forward is a product of two random maps, and a dozen of them in a row turn neighbouring
inputs into unrelated outputs. Two known remedies make the start nearly linear without adding a parameter:

- attention begins by looking at the token itself (query-key products near the identity: Trockman and Kolter, 2023, arXiv:2305.09828), and
  brings back what it read (the output matrix is the transpose of orthogonal values);
- hidden units come in pairs of opposite sign, whose even parts cancel (Balduzzi et al., 2017, arXiv:1702.08591, "looks linear").
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Attention, Heads
from .layers import SwiGLU

GAIN = 1.5  # of queries and keys: with 1 attention is too flat for a dozen layers to learn more than token frequencies in 100 steps


@torch.no_grad()
def look_at_oneself(heads: Heads) -> None:
    """Make queries equal to their keys, and both larger."""
    q, k, _ = heads.qkv.weight.split(heads.sizes)
    k.mul_(GAIN)
    q.copy_(k.unflatten(0, (heads.kv_heads, -1)).repeat_interleave(heads.nb_heads // heads.kv_heads, dim=0).flatten(0, 1))


@torch.no_grad()
def bring_back(attention: Attention, generator: torch.Generator) -> None:
    """Orthogonal values, and an output matrix that undoes them."""
    _, _, v = attention.qkv.weight.split(attention.sizes)
    drawn = orthogonal(v.shape[0], v.shape[1], generator)
    v.copy_(drawn)
    groups = attention.nb_heads // attention.kv_heads
    each = drawn.unflatten(0, (attention.kv_heads, -1)).repeat_interleave(groups, dim=0).flatten(0, 1)
    attention.out.weight.copy_(each.T / groups)


@torch.no_grad()
def look_linear(ffn: SwiGLU, generator: torch.Generator) -> None:
    """Gate and value equal, rows in pairs of opposite sign, and their transpose to bring them back. An odd last unit keeps its draw."""
    dim, hidden = ffn.down.weight.shape
    half = hidden // 2
    if not half:
        return
    drawn = orthogonal(half, dim, generator) * max(half / dim, 1.0) ** 0.5
    signed = torch.cat([drawn, -drawn])
    for part in ffn.gate_up.weight.split(hidden):
        part[: 2 * half].copy_(signed)
    ffn.down.weight[:, : 2 * half].copy_(signed.T / 2)


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) float32 with orthonormal rows, or columns where there are fewer of them."""
    drawn = torch.empty(max(rows, columns), min(rows, columns), device="cpu").normal_(generator=generator)
    basis = torch.linalg.qr(drawn)[0]
    return basis if rows >= columns else basis.T
