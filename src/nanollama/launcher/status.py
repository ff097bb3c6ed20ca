"""How a launched run, or every run of a grid, stands now. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, read_result, write_json
from ..config.folder import is_locked
from ..metrics.sinks import newest
from . import local, slurm
from .job import Launch, launches

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
    tasks, found = launched(folder)
    if tasks is None and not found and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: no run was started here (no launch/, no config.yaml)")
    alive: dict[int | None, str] = {}
    for launch in found:
        alive = alive_in(launch) | alive
    if tasks is None:
        return [_state(folder, None, "", alive)]
    grid = folder if folder.name not in tasks else folder.parent
    return [_state(grid / n, int(n), label, alive) for n, label in tasks.items()]


def launched(folder: Path) -> tuple[dict[str, str] | None, list[Launch]]:
    """Number -> label of a grid's runs (of the one run if ``folder`` is one of a grid's; None if there is no grid); its launches."""
    own = launches(folder)
    if own:
        return own[0].record["tasks"], own
    grid = launches(folder.parent)
    tasks = (grid[0].record["tasks"] or {}) if grid else {}
    return ({folder.name: tasks[folder.name]}, grid) if folder.name in tasks else (None, [])


def alive_in(launch: Launch) -> dict[int | None, str]:
    """Run number (None: the only one) -> what its launcher says of it, for runs that have not ended."""
    record = launch.record
    if record["launcher"] == "sbatch":
        return slurm.states(record["job_id"]) if record.get("job_id") else {}
    alive = local.is_alive(record)
    if alive is False:
        return {}
    numbers = [None] if record["tasks"] is None else record["started"]
    return dict.fromkeys(numbers, "WAITING" if alive else f"ELSEWHERE {record['host']}")


def _state(run_dir: Path, number: int | None, label: str, alive: dict[int | None, str]) -> State:
    result = read_result(run_dir)
    queued = alive.get(number, "").lower()
    if is_locked(run_dir):
        return State(str(run_dir), "running", label, progress(run_dir))
    if result and not (result["status"] == "requeue" and queued):
        return State(str(run_dir), result["status"], label, _first_line(result), result.get("loss"), result.get("wall_s"))
    if queued.startswith("elsewhere"):
        return State(str(run_dir), "unknown", label, f"started on {queued.partition(' ')[2]}: ask there")
    if queued:
        status = {"running": "starting", "waiting": "waiting" if number is not None else "starting"}.get(queued, "pending")
        return State(str(run_dir), status, label, queued)
    if not (run_dir / "config.yaml").is_file():
        return State(str(run_dir), "missing", label, "never began")
    return State(str(run_dir), "killed", label, f"ended without a result; see {run_dir / 'logs'}")


def _first_line(result: dict[str, Any]) -> str:
    return (result.get("message") or "").strip().splitlines()[-1][:100] if result.get("message") else ""


def progress(run_dir: Path) -> str:
    """The newest training record, in words."""
    record = newest(run_dir / "metrics.jsonl", "train")
    if record is None:
        return ""
    loss = record.get("loss")  # null where it was not finite
    return f"step {record['step']}, loss {'not finite' if loss is None else format(loss, '.4f')}"


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
