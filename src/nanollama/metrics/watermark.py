"""What of a run was sent to Weights & Biases, so that nothing goes out twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import write_json


class Watermark:
    """``RUN/wandb/upload.json``: for each place that the run was sent to, the steps sent of each split, and digests of what is sent whole.

    All steps and not the last one: an evaluation that had failed may come in after those of later steps. Saved when the sending has ended:
    after a crash some records go out again, none is lost.
    """

    def __init__(self, run_dir: Path, project: str, entity: str | None) -> None:
        self._file = run_dir / "wandb" / "upload.json"
        self._where = f"{entity}/{project}" if entity else project
        self._state = json.loads(self._file.read_text()) if self._file.is_file() else {}
        state = self._state.get(self._where, {})
        self._sent: dict[str, set[int]] = {split: set(steps) for split, steps in state.get("sent", {}).items()}
        self.digests: dict[str, str | None] = {key: state.get(key) for key in ("traces", "result")}

    def new(self, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that were not sent."""
        return [record for record in records if record["step"] not in self._sent.get(record["split"], ())]

    def note(self, record: Mapping[str, Any]) -> None:
        """This one was sent."""
        self._sent.setdefault(record["split"], set()).add(record["step"])

    def save(self) -> None:
        """Write it down."""
        here = {"sent": {split: sorted(steps) for split, steps in self._sent.items()}, **self.digests}
        write_json(self._file, {**self._state, self._where: here})
