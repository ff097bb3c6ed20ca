"""Ranks, devices and collectives; everything is a no-op in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import ConfigError
from .config.ranks import rank, world_size


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int
    world: int
    device: torch.device

    def share(self, count: int) -> tuple[int, int]:
        """(start, length) of this rank's contiguous part of ``count`` items; the parts cover all items, uneven by at most one."""
        start = self.rank * count // self.world
        return start, (self.rank + 1) * count // self.world - start

    def sum(self, value: Tensor) -> Tensor:
        """Sum over ranks (in place), in float64 or integers exactly as given."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def max(self, value: int) -> int:
        """Largest value any rank gives; how ranks agree to stop."""
        if self.world == 1:
            return value
        flag = torch.tensor(value, device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average gradients over ranks."""
        return DistributedDataParallel(model) if self.world > 1 else model


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; under torchrun each local rank takes its own device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda, but torch sees no CUDA device; use train.device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


@contextmanager
def ranks(device_name: str) -> Iterator[Ranks]:
    """Join the process group that torchrun announces, leave it at the end."""
    device = pick_device(device_name)
    if world_size() > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank(), world_size(), device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
