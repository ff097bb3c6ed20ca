"""What the layers of one forward pass share, and what each keeps from one call to the next in generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .masks import Mask


class Context(NamedTuple):
    """Shared by every layer of one forward pass over (B, T) tokens."""

    cos: Tensor  # of model.rope.rotation
    sin: Tensor
    mask: Mask = None
    documents: Tensor | None = None  # (B, T) integers, another one for every document of a sequence
    positions: Tensor | None = None  # (B, T) with a cache: where the tokens stand
    valid: Tensor | None = None  # (B, T) bool with a cache: False on the padding to the right of a prompt


@dataclass
class KVCache:
    """Keys (B, K, capacity, D_qk) and values (B, K, capacity, D_v) of one attention layer."""

    keys: Tensor
    values: Tensor

    def write(self, k: Tensor, v: Tensor, at: Context) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) at ``at.positions``, return everything stored. What padding leaves behind is overwritten before it is seen."""
        assert at.positions is not None
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        self.keys[rows, :, at.positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, at.positions] = v.transpose(1, 2).to(self.values.dtype)
        return self.keys.to(k.dtype), self.values.to(v.dtype)


@dataclass
class SSMCache:
    """Last inputs of the convolution (B, WIDTH - 1, channels) and state (B, H, P, N) of one recurrent layer."""

    inputs: Tensor
    state: Tensor


LayerCache = KVCache | SSMCache | tuple[KVCache, KVCache]  # a collective has two stages


@dataclass
class Cache:
    """State of a batch in generation: one cache a layer, and how many tokens each sequence has, (B,) int64."""

    layers: list[LayerCache]
    lengths: Tensor
    capacity: int
