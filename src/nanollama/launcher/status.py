"""How a launched run, or every run of a grid, stands now. Reads only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, read_result, write_json
from ..config.folder import is_locked
from . import local, slurm
from .job import Launch, last

ACTIVE = ("running", "starting", "pending", "waiting")


@dataclass(frozen=True)
class State:
    """``status`` is one of ``result.json`` or of ACTIVE; ``detail`` says where it stands."""

    run_dir: str
    status: str
    label: str = ""
    detail: str = ""
    loss: float | None = None
    wall_s: float | None = None

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE


def states(folder: Path) -> list[State]:
    """One State for a run, one for each run of a grid."""
    launch = last(folder)
    if launch and launch.record["tasks"] is not None:
        alive = _alive(launch)
        return [_state(folder / n, int(n), label, alive) for n, label in launch.record["tasks"].items()]
    if launch:
        return [_state(folder, None, "", _alive(launch))]
    grid = last(folder.parent)
    if grid and (grid.record["tasks"] or {}).get(folder.name) is not None:
        return [_state(folder, int(folder.name), grid.record["tasks"][folder.name], _alive(grid))]
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: no run was started here (no launch/, no config.yaml)")
    return [_state(folder, None, "", {})]


def _alive(launch: Launch) -> dict[int | None, str]:
    """Run number (None: the only one) -> what its launcher says of it, for runs that have not ended."""
    record = launch.record
    if record["launcher"] == "sbatch":
        return slurm.states(record["job_id"]) if record.get("job_id") else {}
    if not local.is_alive(record):
        return {}
    return dict.fromkeys([None] if record["tasks"] is None else record["started"], "WAITING")


def _state(run_dir: Path, number: int | None, label: str, alive: dict[int | None, str]) -> State:
    result = read_result(run_dir)
    queued = alive.get(number, "").lower()
    if is_locked(run_dir):
        return State(str(run_dir), "running", label, progress(run_dir))
    if result and not (result["status"] == "requeue" and queued):
        return State(str(run_dir), result["status"], label, _first_line(result), result.get("loss"), result.get("wall_s"))
    if queued:
        status = {"running": "starting", "waiting": "waiting" if number is not None else "starting"}.get(queued, "pending")
        return State(str(run_dir), status, label, queued)
    return State(str(run_dir), "killed", label, f"ended without a result; see {run_dir / 'logs'}")


def _first_line(result: dict[str, Any]) -> str:
    return (result.get("message") or "").strip().splitlines()[-1][:100] if result.get("message") else ""


def progress(run_dir: Path) -> str:
    """The newest training record, in words."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 65536))
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut at either end
        if record.get("split") == "train":
            return f"step {record['step']}, loss {record['loss']:.4f}"
    return ""


def table(rows: Sequence[State]) -> str:
    """A table for people; of a grid also how many runs stand how."""
    cells = [("run", "status", "loss", "time", "what", "")]
    for row in rows:
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        wall = "" if row.wall_s is None else f"{row.wall_s:.0f} s"
        cells.append((Path(row.run_dir).name if len(rows) > 1 else row.run_dir, row.status, loss, wall, row.label, row.detail))
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True) if width).rstrip() for line in cells]
    if len(rows) > 1:
        names = [row.status for row in rows]
        lines.append(f"{len(rows)} runs: " + ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)))
    return "\n".join(lines)


def save_summary(folder: Path, rows: Sequence[State]) -> None:
    """``summary.json`` of a grid: what the table shows."""
    write_json(folder / "summary.json", {"runs": [asdict(row) for row in rows]})
