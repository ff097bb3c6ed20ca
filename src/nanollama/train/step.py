"""One optimiser step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config.schema import OptimConfig, TrainConfig
from .schedule import lr_ratio


def precision(name: str, device: torch.device) -> torch.autocast | nullcontext:
    """Autocast to bfloat16, or nothing for float32; parameters and optimiser stay in float32."""
    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()


class Step:
    """Forward and backward over the micro-batches of one rank's share, clip, update. Nothing here waits for the device."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, train: TrainConfig, optim: OptimConfig, device: torch.device
    ) -> None:
        self.wrapped = torch.compile(model) if train.mode == "compile" else model
        self.model = model
        self.optimizer = optimizer
        self.train, self.optim, self.device = train, optim, device
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, step: int, tokens: Tensor) -> tuple[Tensor, Tensor, float]:
        """One update from ``tokens`` (B, T + 1) int64 on the device.

        Returns the mean loss of this rank's share (nats per token, 0-d, on the device), the gradient norm before clipping (0-d, on the
        device, over all ranks), and the learning rate.
        """
        lr = self.optim.lr * lr_ratio(self.optim, step, self.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        micro_batches = tokens.split(self.train.micro_batch or len(tokens))
        total = torch.zeros((), device=self.device)
        for i, micro in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with nullcontext() if last else self._no_sync():
                loss = self.loss(micro) / len(micro_batches)
                loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.optim.clip or float("inf"), foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, lr

    def _no_sync(self) -> AbstractContextManager:
        """Keep gradients local until the last micro-batch: one all-reduce a step."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of predicting ``tokens[:, 1:]`` from what precedes each, nats per token."""
        with precision(self.train.precision, self.device):
            logits = self.wrapped(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
