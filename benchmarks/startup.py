"""Start-up time of every entry point: ``--help`` must answer in under two seconds.

    python benchmarks/startup.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("src.apps.gssm.train", "src.apps.mixbo.train", "src.apps.mixbo.sweep", "src.nanollama.launcher")


def seconds(module: str) -> float:
    """Wall time of one ``python -m module --help``."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rounds = 2 if args.quick else 7
    times: dict[str, list[float]] = {command: [] for command in COMMANDS}
    for _ in range(rounds):  # interleaved, so that a noisy minute hits all alike
        for command in COMMANDS:
            times[command].append(seconds(command))
    results = {command: {"median_s": statistics.median(t), "min_s": min(t), "max_s": max(t)} for command, t in times.items()}
    for command, row in results.items():
        print(f"{command:28s} {row['median_s']:.2f} s  [{row['min_s']:.2f} - {row['max_s']:.2f}]")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
