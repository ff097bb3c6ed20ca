"""AdamW with parameter groups by rule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..config.schema import OptimConfig


def param_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Matrices are decayed; embeddings and everything of fewer than two dimensions (norms, biases) are not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in named:
        (free if parameter.ndim < 2 or "embed" in name else decayed).append(parameter)
    groups: list[dict] = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019)."""
    groups = param_groups(model.named_parameters(), cfg.weight_decay)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)
