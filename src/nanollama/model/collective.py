"""The family ``collective``: experts, a bottleneck, analysts of the input and the experts' joint code, a second bottleneck.

A sub-network is a group of attention heads and a feed-forward of its own; within a stage nothing passes between sub-networks before the
bottleneck, so their matrices are one block-diagonal product. All of them read every token: a two-stage ensemble, no routing.

Shapes: B sequences, T tokens, N sub-networks of width W with F hidden features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import ModelConfig
from . import cpu
from .attention import Heads
from .layers import Linear, RMSNorm
from .sizing import Stage, required, stages
from .state import Context, KVCache


class SubNetworks(nn.Module):
    """(B, T, inputs) -> (B, T, outputs): N sub-networks side by side, and the bottleneck of two linear maps that joins them."""

    def __init__(self, cfg: ModelConfig, stage: Stage) -> None:
        super().__init__()
        self.count, width, hidden = stage.count, stage.width, required(cfg.ffn_dim)
        self.heads = Heads(stage.heads(cfg))
        self.norm = RMSNorm(width, cfg.norm_eps)
        self.gate_up = nn.Parameter(torch.empty(stage.count, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(stage.count, width, hidden))
        self.squeeze = Linear(stage.count * width, stage.bottleneck)
        self.join = Linear(stage.bottleneck, stage.outputs)

    def forward(self, x: Tensor, at: Context, cache: KVCache | None) -> Tensor:
        each = self.norm(self.heads(x, at, cache).unflatten(-1, (self.count, -1)))
        gate_up = torch.einsum("btnw,nfw->btnf", each, self.gate_up)
        hidden = cpu.swiglu(gate_up) if cpu.fusible(gate_up) else cpu.plain_swiglu(gate_up)
        each = torch.einsum("btnf,nwf->btnw", hidden, self.down)
        return self.join(F.silu(self.squeeze(each.flatten(2))))


class Collective(nn.Module):
    """(B, T, emb_dim) -> (B, T, emb_dim); stands in the place of all blocks of a transformer."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        experts, analysts = stages(cfg)
        self.norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.experts = SubNetworks(cfg, experts)
        self.code_norm = RMSNorm(experts.outputs, cfg.norm_eps)
        self.analysts = SubNetworks(cfg, analysts)

    def forward(self, x: Tensor, at: Context, cache: tuple[KVCache, KVCache] | None = None) -> Tensor:
        first, second = cache or (None, None)
        x = self.norm(x)
        code = self.code_norm(self.experts(x, at, first))
        return self.analysts(torch.cat([x, code], dim=-1), at, second)

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> tuple[KVCache, KVCache]:
        """Empty caches of both stages."""
        return self.experts.heads.new_cache(batch, capacity, like), self.analysts.heads.new_cache(batch, capacity, like)
