"""Start runs on this machine or on Slurm, ask how they stand, end them.

    python -m src.nanollama.launcher script=MODULE config=FILE [key=value ...]      one run
    python -m src.nanollama.launcher FILE [key=value ...]                           FILE names cluster.script
    python -m src.nanollama.launcher ... -m key=a,b [key=c,d]                       a grid (also: a section grid: in FILE)
    python -m src.nanollama.launcher status RUN [RUN ...]                           a run, a grid, or one run of a grid
    python -m src.nanollama.launcher cancel RUN [RUN ...]                           save and stop; asked again: kill

options (all others are fields of the script's config; see `python -m MODULE --help`)
    launcher=bash|sbatch        default: sbatch where Slurm answers, else bash        (cluster.launcher)
    torchrun=True|False         several processes, cluster.nproc on each of cluster.nodes  (cluster.torchrun)
    detach=True|False           leave the run in the background and return
    run_dir=PATH                default: a new folder in runs/; for a grid one that the same grid finds again
    resume=auto|never|must      what to do when run_dir holds a run: continue it, refuse, insist
    cluster.*                   nodes, nproc, cpus, gpus, mem, time, partition, account, qos, constraint, slots, env, ...

The config is checked before anything is made or submitted. Runs start from a snapshot of the code; relative paths in their config
mean the folder in which the launcher was called. Exit codes: 0 done, 2 wrong input, 3 the run failed, 130 interrupted, 85 start again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import ConfigError
from ..config.tool import run_tool


def launch(argv: Sequence[str]) -> int:
    """Start, ask or end; returns the exit code."""
    if argv[0] in ("status", "cancel"):
        return _ask(argv[0], argv[1:])
    from .plan import plan
    from .start import start

    return start(plan(argv))


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    return run_tool(argv, __doc__, launch)


def _ask(verb: str, folders: Sequence[str]) -> int:
    from .cancel import cancel
    from .status import states, table

    if not folders:
        raise ConfigError(f"{verb}: name one or more run folders")
    for folder in folders:
        print(cancel(Path(folder).absolute()) if verb == "cancel" else table(states(Path(folder).absolute())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
