"""Save and load checkpoints with torch.distributed.checkpoint (DCP).

A checkpoint is the folder ``checkpoints/<step>``: DCP's files (tensors only) and ``state.json`` (plain numbers). It is written under a
hidden name and renamed when complete, so a folder with a number for a name is always whole. Nothing is unpickled but DCP's index,
through an allow-list.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..config import ConfigError, RunFailed
from ..distributed import Ranks
from .retention import expired

log = logging.getLogger("nanollama")

OPTIONAL = {"scale", "rng"}
Tensors = Mapping[str, Any]  # nested dictionaries with tensors as leaves

_PICKLE_MODULES = {"torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"}
_PICKLE_NAMES = {
    ("torch", "Size"), ("torch", "device"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"),
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    """Reads DCP's index, which holds shapes, dtypes and offsets; anything else in it is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _PICKLE_MODULES or (module, name) in _PICKLE_NAMES:
            return super().find_class(module, name)
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's index")


class SafeReader(FileSystemReader):
    """DCP's reader without arbitrary unpickling: the index goes through an allow-list, the tensors through ``weights_only``."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """DCP's index of the checkpoint."""
        data = (Path(self.path) / ".metadata").read_bytes()
        metadata = _IndexUnpickler(io.BytesIO(data)).load()
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def numbered(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in ``folder``, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


@contextmanager
def quiet() -> Iterator[None]:
    """DCP warns that a single process is alone; it is meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Store:
    """The checkpoints of one run folder."""

    def __init__(self, run_dir: Path, ranks: Ranks, keep: int) -> None:
        self.folder = run_dir / "checkpoints"
        self.ranks = ranks
        self.keep = keep

    def save(self, step: int, tensors: Tensors, numbers: Mapping[str, Any], prune: bool = True) -> Path:
        """Write ``checkpoints/<step>`` (collective) and, with ``prune``, delete what retention lets go. A step saved before stays."""
        target = self.folder / f"{step}"
        if target.exists():
            return target
        scratch = self.folder / f".{step}.partial"
        if self.ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        self.ranks.barrier()
        with quiet():
            dcp.save(dict(tensors), checkpoint_id=scratch, no_dist=self.ranks.world == 1)
        if self.ranks.rank == 0:
            (scratch / "state.json").write_text(json.dumps(dict(numbers)))
            os.replace(scratch, target)
            for old in expired(numbered(self.folder), self.keep) if prune else ():
                shutil.rmtree(self.folder / str(old))
        self.ranks.barrier()
        return target

    def load_newest(self, tensors: Tensors) -> dict[str, Any]:
        """Fill ``tensors`` in place from the newest readable checkpoint; returns its numbers. Raises RunFailed if none is readable."""
        for step in reversed(numbered(self.folder)):
            try:
                return load(self.folder / str(step), tensors, self.ranks)
            except ConfigError:
                raise
            except (Exception, CheckpointException) as error:  # a damaged file can fail in any way; an older one may be whole
                log.warning("checkpoint %s is not readable (%s), trying the one before it", step, type(error).__name__)
        raise RunFailed(f"no checkpoint in {self.folder} is readable; delete the run folder to start over")


def load(path: Path, tensors: Tensors, ranks: Ranks) -> dict[str, Any]:
    """Fill ``tensors`` in place from the checkpoint ``path`` (saved on any number of ranks); returns its numbers."""
    if not (path / "state.json").is_file():
        raise ConfigError(f"{path} is not a checkpoint (no state.json); give a folder such as RUN/checkpoints/1000")
    numbers = json.loads((path / "state.json").read_text())
    reader = SafeReader(path)
    stored = reader.read_metadata()
    _check_shapes(path, stored, tensors["model"])
    with quiet():
        dcp.load(_stored(tensors, stored), storage_reader=reader, no_dist=ranks.world == 1)
    return numbers


def _stored(tensors: Tensors, stored: Metadata) -> dict[str, Any]:
    """``tensors`` without those optional ones that the checkpoint lacks: of another precision, or of fewer ranks."""
    found = dict(tensors)
    for key in OPTIONAL & tensors.keys():
        held = {name.split(".")[1] for name in stored.state_dict_metadata if name.startswith(f"{key}.")}
        found[key] = {name: value for name, value in tensors[key].items() if name in held}
    return found


def _check_shapes(path: Path, stored: Metadata, model: Mapping[str, torch.Tensor]) -> None:
    shapes = {name: tuple(meta.size) for name, meta in stored.state_dict_metadata.items() if isinstance(meta, TensorStorageMetadata)}
    for name, tensor in model.items():
        there = shapes.get(f"model.{name}")
        if there != tuple(tensor.shape):
            raise ConfigError(f"{path} holds another model: {name} is {there or 'absent'} there and {tuple(tensor.shape)} here")
