"""Memory in use, and what each process of a run has to itself."""

from __future__ import annotations

import os
import resource
import socket
from typing import Any

import torch


def in_use(device: torch.device) -> dict[str, int | None]:
    """Bytes: of the device's allocator (None on a CPU) and of this process."""
    import psutil

    cuda = device.type == "cuda"
    return {
        "memory_allocated": torch.cuda.memory_allocated(device) if cuda else None,
        "memory_reserved": torch.cuda.memory_reserved(device) if cuda else None,
        "host_rss": psutil.Process().memory_info().rss,
    }


def peak(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's resident peak on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe(rank: int, device: torch.device) -> dict[str, Any]:
    """Host, process, device and the bytes available to this process: to find a bad node, or the one that is short of memory."""
    import psutil

    host = psutil.virtual_memory()
    found = {
        "rank": rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "host_memory": host.total,
        "host_memory_available": host.available,
        "device": str(device),
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"device_name": torch.cuda.get_device_name(device), "device_memory": total, "device_memory_available": free}
    return found
