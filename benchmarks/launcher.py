"""What starting runs costs, and whether the pool leaves slots idle or loses results.

    python benchmarks/launcher.py [--quick] [--json PATH]

- overhead: ``launcher ... launcher=bash`` against the same command without it, alternating; median of the differences. The run does
  nothing, and needs no torch, so that the difference is the launcher's.
- submit: 200 array tasks, from the command to Slurm's job id (where sbatch is installed and answers; else only up to ``run.sh``).
- pool: share of slot time in which no job ran, for jobs of 5 s (--quick: 1 s) that keep no CPU busy.
- writers: 200 processes at once, each writing ``result.json`` 20 times while they are read all the time: results lost, files torn.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _rounds import arguments

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.nanollama.config import read_result, write_json  # noqa: E402
from src.nanollama.launcher import slurm  # noqa: E402
from src.nanollama.launcher.pool import Job, Pool, run_all  # noqa: E402

ENV = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}  # as users start it
TOY = "tests.nanollama.launcher.toy"


def run(*argv: str) -> tuple[float, float]:
    """Seconds that a command takes, and those of them (with its children's) on a CPU."""
    began, cpu = time.perf_counter(), sum(os.times()[2:4])
    subprocess.run([sys.executable, *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=ENV)
    return time.perf_counter() - began, sum(os.times()[2:4]) - cpu


def overhead(folder: Path, rounds: int) -> dict[str, float]:
    added, plain = [], []
    for i in range(rounds + 1):  # the first fills caches
        alone = run("-m", TOY, f"run_dir={folder}/plain{i}")
        launched = run("-m", "src.nanollama.launcher", f"script={TOY}", "launcher=bash", f"run_dir={folder}/launched{i}")
        added.append([b - a for a, b in zip(alone, launched, strict=True)])
        plain.append(alone[0])
    wall, cpu = (statistics.median(values) for values in zip(*added[1:], strict=True))
    return {"plain_s": statistics.median(plain[1:]), "added_s": wall, "added_cpu_s": cpu}


PREPARE = """
import sys
from pathlib import Path
from src.nanollama.launcher.job import prepare
from src.nanollama.launcher.plan import plan
p = plan(sys.argv[2:])
with prepare(p, Path(sys.argv[1]), range(len(p.tasks)), "sbatch", "benchmark"):
    pass
"""


def submit(folder: Path, tasks: int) -> dict[str, float | bool]:
    argv = ["script=src.apps.gssm.train", "experiment=debug", "-m", f"train.seed={','.join(map(str, range(tasks)))}"]
    there, _ = slurm.answers()
    if there:
        wall, cpu = run("-m", "src.nanollama.launcher", *argv, f"run_dir={folder}/grid")
        run("-m", "src.nanollama.launcher", "cancel", f"{folder}/grid")
    else:
        wall, cpu = run("-c", PREPARE, f"{folder}/grid", *argv)
    return {"tasks": tasks, "seconds": wall, "cpu_s": cpu, "sbatch": there}


def idle_share(folder: Path, slots: int, jobs: int, seconds: float) -> dict[str, float]:
    """Slot time without a job, until the last start; jobs are equal, so that the end has no ragged edge."""
    script = 'sleep "$1"; echo \'{"status": "ok"}\' > "$0/r"; mv "$0/r" "$0/result.json"'
    work = [Job(("bash", "-c", script, str(folder / f"job{i}"), str(seconds)), folder / f"job{i}") for i in range(jobs)]
    began = time.perf_counter()
    ended: list[float] = []
    assert run_all(Pool(slots), work, lambda e: ended.append(e.result["status"] == "ok")) and all(ended)
    return {"slots": slots, "jobs": jobs, "job_s": seconds, "idle_share": 1 - jobs * seconds / (slots * (time.perf_counter() - began))}


def write_results(run: Path, writes: int, gate: Any) -> None:
    gate.wait()
    for i in range(writes):
        write_json(run / "result.json", {"status": "ok", "i": i, "fill": "x" * 5000})


def writers(folder: Path, processes: int, writes: int) -> dict[str, int]:
    fork = multiprocessing.get_context("fork")  # nothing to import again, so that all write at the same time
    gate = fork.Barrier(processes)
    runs = [folder / f"writer{i}" for i in range(processes)]
    for path in runs:
        path.mkdir()
    started = [fork.Process(target=write_results, args=(path, writes, gate)) for path in runs]
    for process in started:
        process.start()
    torn = reads = 0
    while any(process.is_alive() for process in started):
        for path in runs:
            try:
                reads += read_result(path) is not None
            except ValueError:
                torn += 1
    lost = sum((read_result(path) or {}).get("i") != writes - 1 for path in runs)
    return {"processes": processes, "writes": writes, "reads": reads, "lost": lost, "torn": torn}


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {
            "overhead": overhead(folder, 3 if options.quick else 9),
            "submit": submit(folder, 50 if options.quick else 200),
            "pool": idle_share(folder, 4, 12 if options.quick else 16, 1.0 if options.quick else 5.0),
            "writers": writers(folder, 20 if options.quick else 200, 20),
            "cpus": len(os.sched_getaffinity(0)),
        }
    row = results["overhead"]
    print(f"launcher adds    {row['added_s']:.2f} s ({row['added_cpu_s']:.2f} s of CPU) to a run of {row['plain_s']:.2f} s")
    row = results["submit"]
    how = "to a job id" if row["sbatch"] else "to run.sh (no Slurm here)"
    print(f"array of {row['tasks']:<4}    {row['seconds']:.2f} s ({row['cpu_s']:.2f} s of CPU) {how}")
    row = results["pool"]
    print(f"pool idle share  {100 * row['idle_share']:.1f} % ({row['slots']} slots, {row['jobs']} jobs of {row['job_s']:g} s)")
    row = results["writers"]
    print(f"{row['processes']:<4} writers     {row['lost']} results lost, {row['torn']} of {row['reads']} reads torn")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
