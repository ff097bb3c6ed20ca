"""Reads what wandb wrote offline."""

from __future__ import annotations

import json
from pathlib import Path


def logged(file: Path) -> list[bytes]:
    """Payloads of a .wandb file, which is a LevelDB log: blocks of 32 KiB, in them (crc, length, type) and a piece of a payload."""
    data, position, payloads, pending = file.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768  # the rest of a block is filler
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            payloads.append(pending)
            pending = b""
    return payloads


def written(run: Path) -> list[dict[str, float]]:
    """Every history row of the offline files, in order."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime):
        for payload in logged(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
