"""What of a run was sent to Weights & Biases, so that nothing goes out twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import write_json


class Watermark:
    """``RUN/wandb/upload.json``: the last step sent of each split, and digests of what is sent whole.

    Saved when the sending has ended: after a crash some records go out again, none is lost.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "wandb" / "upload.json"
        state = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self._sent: dict[str, int] = state.get("sent", {})
        self.digests: dict[str, str | None] = {key: state.get(key) for key in ("traces", "result")}

    def new(self, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that were not sent."""
        return [record for record in records if record["step"] > self._sent.get(record["split"], -1)]

    def note(self, record: Mapping[str, Any]) -> None:
        """This one was sent, and with it all before it in its split."""
        self._sent[record["split"]] = max(record["step"], self._sent.get(record["split"], -1))

    def save(self) -> None:
        """Write it down."""
        write_json(self._file, {"sent": self._sent, **self.digests})
