"""One optimiser step: forward, backward, clip, update. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import ConfigError
from ..config.schema import OptimConfig, TrainConfig
from ..distributed import Ranks, local_gradients
from .capture import Captured
from .optim import set_lr
from .resolve import Training
from .schedule import lr_ratio
from .state import TrainState

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision(name: str, device: torch.device) -> torch.autocast | nullcontext:
    """Autocast to bfloat16 or float16, or nothing for float32; parameters and optimiser stay in float32."""
    return torch.autocast(device.type, DTYPES[name]) if name in DTYPES else nullcontext()


def with_documents(batch: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T + 1) and the documents of the T inputs, from a batch (B, T + 1) without or (B, 2, T + 1) with documents."""
    return (batch, None) if batch.dim() == 2 else (batch[:, 0], batch[:, 1, :-1])


class NextToken(nn.Module):
    """The training objective as a module, which is what gets compiled and replicated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy of predicting tokens 1 .. T from what precedes each (in its document), nats per token, 0-d.

        The first token of a document is predicted too, so that losses with and without masks are over the same tokens.
        """
        tokens, documents = with_documents(batch)
        logits = self.model(tokens[:, :-1], documents)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


class Step:
    """Updates the model of ``state`` from one batch after another, and counts in ``state.tally``.

    ``norm`` is the gradient norm of the last step before clipping, over all ranks (0-d, on the device).
    """

    def __init__(
        self, state: TrainState, train: TrainConfig, optim: OptimConfig, ranks: Ranks, lap: Callable[[str], None] | None = None
    ) -> None:
        self.state, self.train, self.optim, self.ranks = state, train, optim, ranks
        self.lap = lap or (lambda phase: None)
        self.objective = ranks.replicate(NextToken(state.model), train.parallel)
        self.forward = self._compiled() if train.mode != "eager" else self.objective
        self.parameters = [p for p in state.model.parameters() if p.requires_grad]
        self.norm = torch.zeros((), device=ranks.device)
        small = train.mode != "eager" and ranks.device.type == "cuda"  # two dozen launches in one
        self.settle = torch.compile(self._settle) if small else self._settle
        self.run: Callable[[Tensor], None] = self._update
        if train.mode == "cudagraph":
            whole, self.lap = self.lap, lambda phase: None  # no time can be taken inside a graph
            captured = Captured(self._update)

            def replay(tokens: Tensor) -> None:
                captured(tokens)
                whole("graph")

            self.run = replay

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """Shards are gathered block by block, so there the blocks are compiled one by one."""
        torch.compiler.reset()  # what an earlier run of this process compiled would make our shapes dynamic, and count against the limit
        if self.train.parallel == "fsdp" and self.ranks.world > 1:
            for block in self.state.model.layers:  # type: ignore[union-attr]
                block.compile()
            return self.objective
        return torch.compile(self.objective)

    def __call__(self, step: int, tokens: Tensor) -> float:
        """Optimiser step ``step`` from this rank's share of the batch (as ``with_documents`` takes it); returns the learning rate."""
        lr = self.optim.lr * lr_ratio(self.optim, step, self.train.steps)
        set_lr(self.state.optimizers, lr)
        self.run(tokens)
        return lr

    def _update(self, tokens: Tensor) -> None:
        micro_batches = tokens.split(self.train.micro_batch or len(tokens))
        total = torch.zeros((), device=self.ranks.device)
        for i, micro in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            with nullcontext() if last else local_gradients(self.objective):
                with precision(self.train.precision, self.ranks.device):
                    loss = self.forward(micro) / len(micro_batches)
                self.lap("forward")
                (loss * self.state.scale.value if self.state.scale.active else loss).backward()
                self.lap("backward")
            total += loss.detach()
        self._apply(total)
        self.lap("optimizer")

    def _apply(self, loss: Tensor) -> None:
        """Clip and update, or leave everything as it is where the gradient is not finite; the device decides, the host never knows."""
        state = self.state
        grads = [p.grad for p in self.parameters if p.grad is not None]
        factor, skip = self.settle(total_norm(grads), loss)
        if self.optim.clip or state.scale.active:
            torch._foreach_mul_(grads, factor)
        for optimizer in state.optimizers:
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _settle(self, norm: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """What is decided by single numbers: the factor of the gradients, and 1. where the step is to be skipped (0-d); counts the step."""
        scale, clip = self.state.scale, self.optim.clip
        norm = norm / scale.value
        factor = (clip / (norm + 1e-6)).clamp(max=1.0) / scale.value if clip else 1.0 / scale.value
        finite = norm.isfinite()
        self.norm.copy_(norm)
        self.state.tally.add(loss, finite)
        scale.update(finite)
        return factor, (~finite).float()


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients, also where each rank has a shard of them."""
    norm = nn.utils.get_total_norm(grads, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def check_mode(cfg: Training, ranks: Ranks) -> None:
    """Raise ConfigError where ``train.mode`` or the kernel of the masks cannot work."""
    if cfg.train.mode == "cudagraph" and (ranks.device.type != "cuda" or ranks.world > 1):
        raise ConfigError(
            f"train.mode=cudagraph records a step on one CUDA device; this run has {ranks.world} x {ranks.device.type}: "
            "use train.mode=compile or eager"
        )
    masked = (cfg.model.window or cfg.data.seq_len) < cfg.data.seq_len or getattr(cfg.data, "document_masks", False)
    if cfg.model.masked_attention == "flex" and masked and ranks.device.type == "cpu":
        raise ConfigError("model.masked_attention=flex has no backward pass on a CPU: use auto or sdpa")
