"""What a training is made of between two steps, and how it goes into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)


@dataclass
class TrainState:
    """Model, optimiser and position. Data are addressed by step, so the step is all there is to say about them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimiser steps done
    tokens: int = 0  # tokens trained on
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # since the last log line
    loss_count: int = 0

    def tensors(self) -> dict[str, Any]:
        """Everything that DCP stores, by parameter name, whatever wraps the model. Leaves are the live tensors."""
        optimizer = get_optimizer_state_dict(self.model, self.optimizer)
        return {"model": get_model_state_dict(self.model), "optimizer": optimizer["state"], "loss_sum": self.loss_sum.cpu()}

    def numbers(self) -> dict[str, int]:
        """Everything else."""
        return {"step": self.step, "tokens": self.tokens, "loss_count": self.loss_count}

    def restore(self, tensors: dict[str, Any], numbers: dict[str, Any]) -> None:
        """Take over what a checkpoint held. Hyper-parameters (learning rate, decay) stay those of the present config."""
        set_model_state_dict(self.model, tensors["model"])
        groups = get_optimizer_state_dict(self.model, self.optimizer)["param_groups"]
        set_optimizer_state_dict(self.model, self.optimizer, {"state": tensors["optimizer"], "param_groups": groups})
        self.loss_sum = tensors["loss_sum"].to(self.loss_sum.device)
        self.step, self.tokens, self.loss_count = numbers["step"], numbers["tokens"], numbers["loss_count"]
