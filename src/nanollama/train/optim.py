"""Optimisers with parameter groups by rule."""

from __future__ import annotations

import torch
from torch import nn

from ..config.schema import OptimConfig
from .muon import Muon

Optimizers = tuple[torch.optim.Optimizer, ...]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix inside the network: no embedding, no head, no norm, no bias, no filter. Muon's domain."""
    return parameter.ndim == 2 and is_decayed(name, parameter) and not name.startswith("head")


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Matrices are decayed; embeddings, filters and everything of fewer than two dimensions (norms, biases) are not.

    The filters of a depthwise convolution are one vector for each channel, stored side by side.
    """
    return parameter.ndim >= 2 and not name.startswith("embed") and not name.endswith(".conv")


def optimizers(model: nn.Module, cfg: OptimConfig) -> Optimizers:
    """Fused AdamW (Loshchilov and Hutter 2019) for all parameters, or for those that Muon does not take.

    Learning rates are tensors on the parameters' device, so that a captured step reads the present one.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    device = named[0][1].device
    found: list[torch.optim.Optimizer] = []
    if cfg.name == "muon":
        matrices = [p for name, p in named if is_matrix(name, p)]
        found.append(Muon(matrices, torch.tensor(cfg.lr, device=device), cfg.weight_decay, cfg.momentum))
        named = [(name, p) for name, p in named if not is_matrix(name, p)]
    decayed = [p for name, p in named if is_decayed(name, p)]
    free = [p for name, p in named if not is_decayed(name, p)]
    groups = [
        {"params": params, "weight_decay": decay, "lr": torch.tensor(cfg.lr, device=device)}
        for params, decay in ((decayed, cfg.weight_decay), (free, 0.0))
        if params
    ]
    found.append(torch.optim.AdamW(groups, betas=cfg.betas, eps=cfg.eps, fused=True, capturable=device.type == "cuda"))
    return tuple(found)


def set_lr(parts: Optimizers, lr: float) -> None:
    """The learning rate of the next step."""
    for optimizer in parts:
        for group in optimizer.param_groups:
            group["lr"].fill_(lr)
