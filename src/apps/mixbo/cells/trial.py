"""What is tried: a setting in a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from src.nanollama.config.folder import slug

from .axis import Value

Setting = Mapping[str, Value]
Cell = tuple[Value, ...]


@dataclass(frozen=True)
class Trial:
    """A setting in a cell."""

    cell: Cell
    number: int
    setting: Setting = field(hash=False, compare=False)  # told by the number

    def name(self, suffix: object) -> str:
        """Of a run folder: the cell, the trial, and which run of it."""
        return slug("-".join([*map(str, self.cell), str(self.number), str(suffix)]))
