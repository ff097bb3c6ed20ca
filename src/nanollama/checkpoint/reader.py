"""Read DCP's files without trusting them: nothing is executed, and what the disk has changed since is noticed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

_INDEX = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_INDEX, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata")),
    *((_INDEX, name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size"), ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"),
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    """Reads DCP's index, which holds shapes, dtypes and offsets; anything else in it is refused.

    Exact names only: pickle resolves a dotted one (``os.system``) through whatever its module imports. ``BytesStorageMetadata`` is not
    among them, since DCP unpickles without limits what it marks; we save nothing but tensors.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
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

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what ``plan`` asks for; raises BadZipFile where a checksum is wrong (torch.save writes them, torch.load looks at none)."""
        wanted = [self.storage_data[item.storage_index] for item in plan.items]
        for stored in {(part.relative_path, part.offset): part for part in wanted}.values():
            with (Path(self.path) / stored.relative_path).open("rb") as file:
                file.seek(stored.offset)
                with zipfile.ZipFile(io.BytesIO(file.read(stored.length))) as tensor:
                    if (record := tensor.testzip()) is not None:
                        raise zipfile.BadZipFile(f"{stored.relative_path}: the checksum of {record} at byte {stored.offset} is wrong")
        return super().read_data(plan, planner)
