"""The runs of a grid in a local pool: as they end they are reported, and at the end in one table.

``python -m src.nanollama.launcher.grid GRID/launch/<k>`` runs a launch that was prepared with ``detach=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from ..config.folder import slug
from ..config.schema import ClusterConfig
from .job import Launch
from .outcome import EXIT_CODES
from .plan import Plan
from .pool import Job, Pool, devices, run_all
from .script import processes
from .status import save_summary, states, table


def default_folder(plan: Plan) -> Path:
    """``runs/<name>-<hash of the runs>``: the same grid finds its folder again."""
    runs = [{key: value for key, value in task.config.items() if key != "cluster"} for task in plan.tasks]
    digest = hashlib.sha256(json.dumps([plan.script, runs], sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"{slug(plan.name)}-{digest[:8]}"


def run(launch: Launch) -> int:
    """Start what the launch names, wait for all, print the table; 0 if every run of the grid is done."""
    cluster = ClusterConfig(**launch.record["cluster"])
    slots, gpus, each = room(cluster, len(launch.record["started"]))
    jobs = [Job(("bash", str(launch.script), str(n)), launch.run_dir / str(n)) for n in launch.record["started"]]
    print(f"{len(jobs)} runs, {slots} at a time, in {launch.run_dir}", flush=True)

    labels = launch.record["tasks"]
    pool = Pool(slots, devices=gpus, processes=each)
    finished = run_all(pool, jobs, lambda ended: print(ended.line(labels[ended.job.run_dir.name]), flush=True))
    code = summarise(launch.run_dir)
    return code if finished else EXIT_CODES["interrupted"]


def room(cluster: ClusterConfig, jobs: int) -> tuple[int, list[str], int]:
    """Slots for this many jobs on this machine, the devices they share, processes in each job."""
    gpus, each = devices(), processes(cluster)
    fits = len(gpus) // each if gpus else len(os.sched_getaffinity(0)) // (cluster.cpus * each)
    return max(1, min(cluster.slots or fits, jobs)), gpus, each


def summarise(folder: Path) -> int:
    """Print and save the table of a grid; returns its exit code."""
    rows = states(folder)
    save_summary(folder, rows)
    print(table(rows), flush=True)
    codes = {EXIT_CODES.get(row.status, 0) for row in rows}
    return codes.pop() if len(codes) == 1 else EXIT_CODES["error"]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    sys.exit(run(Launch(path, json.loads((path / "launch.json").read_text()))))
