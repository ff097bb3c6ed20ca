"""Ranks, devices and collectives; everything is a no-op in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from .config import ConfigError, Interrupted, Requeue, RunFailed
from .config.failure import first_failure, unexpected
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
        flag = torch.tensor(value)  # on the CPU: asking does not wait for the device
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module], parallel: str) -> None:
        """Under ``fsdp`` keep only this rank's part of every parameter, gathered block by block when it is needed (FSDP2).

        What belongs to no block (embedding, last norm, head) is one group, gathered for the whole forward pass: a tied embedding is
        then whole in both of its places.
        """
        if parallel == "fsdp" and self.world > 1:
            mesh = init_device_mesh(self.device.type, (self.world,))
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def replicate(self, module: nn.Module, parallel: str) -> nn.Module:
        """Under ``ddp`` average gradients over ranks, each of which has a whole copy."""
        if parallel == "ddp" and self.world > 1:
            return DistributedDataParallel(module, forward_sync_buffers=False, gradient_as_bucket_view=True)
        return module


@contextmanager
def local_gradients(module: nn.Module) -> Iterator[None]:
    """Inside, backward passes leave gradients unreduced: with accumulation, ranks communicate once a step."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
        return
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for part in sharded:
            part.set_requires_gradient_sync(True, recurse=False)


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; under torchrun each local rank takes its own device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda, but torch sees no CUDA device; use train.device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local} has no GPU: torch sees {torch.cuda.device_count()}; start fewer processes or use train.device=cpu"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextmanager
def ranks(device_name: str) -> Iterator[Ranks]:
    """Join the process group that torchrun announces and leave it at the end; one that is there already is used and left alone."""
    device = pick_device(device_name)
    mine = world_size() > 1 and not dist.is_initialized()
    if mine:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank(), world_size(), device)
    except (ConfigError, RunFailed, Requeue, Interrupted):
        raise
    except Exception as error:
        first_failure(*unexpected(error))  # before leaving the group, which makes the others fail too
        raise
    finally:
        if mine:
            dist.destroy_process_group()
