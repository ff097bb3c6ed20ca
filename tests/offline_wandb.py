"""Reads what wandb wrote offline."""

from __future__ import annotations

import json
import time
from pathlib import Path

PATIENCE_S = 60.0  # for wandb's own process, which may still be writing when the run's process goes on


def records(file: Path) -> list:
    """Every record of a run's .wandb file, in order; waits for the one that says how the run ended, which is its last."""
    from wandb.proto import wandb_internal_pb2

    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = [wandb_internal_pb2.Record.FromString(payload) for payload in logged(file)]
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.05)
    raise AssertionError(f"{file} has no end after {PATIENCE_S:g} s")


def logged(file: Path) -> list[bytes]:
    """Whole payloads of a .wandb file, a LevelDB log: blocks of 32 KiB, in them (crc, length, type) and a piece of a payload."""
    data, position, payloads, pending = file.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768  # the rest of a block is filler
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + 7 + length > len(data):
            break  # the end of this piece is not written yet
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            payloads.append(pending)
            pending = b""
    return payloads


def written(run: Path) -> list[dict[str, float]]:
    """Every history row of the offline files, in order."""
    rows = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
