"""What a training is made of between two steps, and how it goes into a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from ..config.schema import OptimConfig, TrainConfig
from ..distributed import Ranks
from .optim import optimizers
from .scale import LossScale
from .tally import Tally


class TrainState:
    """Model (sharded or not, never otherwise wrapped), optimisers, position. Data are addressed by step, so the step says all of them."""

    def __init__(self, model: nn.Module, train: TrainConfig, optim: OptimConfig, ranks: Ranks) -> None:
        self.model = model
        self.optimizers = optimizers(model, optim)
        self.scale = LossScale(train.precision, ranks.device)
        self.tally = Tally(ranks.device)
        self.ranks = ranks
        self.step = 0  # optimiser steps done
        self.tokens = 0  # tokens trained on
        torch.manual_seed(train.seed + ranks.rank)

    def tensors(self) -> dict[str, Any]:
        """Everything that DCP stores, by parameter name, whatever wraps the model. Leaves are the live tensors: loading fills them.

        Gives the optimiser a state, which a fresh run must not have: call it on a new state only to load into it.
        """
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizers)["state"],
            "tally": self.tally.tensors(),
            "scale": self.scale.tensors(),
            "rng": {f"{self.ranks.rank}": generators(self.ranks.device)},
        }

    def numbers(self) -> dict[str, int]:
        """Everything else."""
        return {"step": self.step, "tokens": self.tokens}

    def restore(self, tensors: dict[str, Any], numbers: dict[str, Any]) -> None:
        """Take over what a checkpoint held. Hyper-parameters (learning rate, decay) stay those of the present config."""
        for name, state in tensors.get("rng", {}).get(f"{self.ranks.rank}", {}).items():
            torch.set_rng_state(state) if name == "cpu" else torch.cuda.set_rng_state(state, self.ranks.device)
        self.step, self.tokens = numbers["step"], numbers["tokens"]


def generators(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the global random generators of this process, for layers that draw (dropout, say)."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states
