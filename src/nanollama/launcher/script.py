"""The text of ``run.sh``. Pure; everything that comes from a user is quoted for the shell."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import ConfigError
from ..config.compose import ROOT
from ..config.folder import slug
from ..config.schema import ClusterConfig

TORCHRUN = "torch.distributed.run"
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # torchrun forwards only those it is told to


@dataclass(frozen=True)
class Script:
    """What ``run.sh`` starts: a module with a config file from ``launch``, in the user's folder, with the code of a snapshot.

    For a grid, the task's number is the script's argument or the index in Slurm's array. A job of a pool is a ``command`` of its own.
    """

    module: str
    cluster: ClusterConfig
    run_dir: Path  # of the run or of the grid
    launch: Path  # this launch's own folder
    cwd: Path
    name: str
    tasks: tuple[int, ...] | None = None  # of a grid
    command: tuple[str, ...] | None = None  # instead of the module with its config file
    snapshot: Path | None = None  # shared by several jobs; None: in the launch's own folder

    @property
    def code(self) -> Path:
        return self.snapshot or self.launch / "code"


def text(script: Script, batch: bool) -> str:
    """``run.sh`` for bash, or for sbatch."""
    lines = ["#!/bin/bash", *(directives(script) if batch else []), "set -u", f"cd {shlex.quote(str(script.cwd))}", *environment(script)]
    lines.append(f"launch={shlex.quote(str(script.launch))}")
    if script.tasks is None:
        lines.append(f"run={shlex.quote(str(script.run_dir))}")
        lines += [] if script.command else ['config="$launch/config.yaml"']
    else:
        lines += [f"task={'$SLURM_ARRAY_TASK_ID' if batch else '$1'}", f'run={shlex.quote(str(script.run_dir))}/"$task"']
        lines += ['config="$launch/tasks/$task.yaml"']
    return "\n".join(lines + (_batch(script) if batch else [f"exec {_command(script)}"])) + "\n"


def environment(script: Script) -> list[str]:
    """The snapshot goes before everything else on the path; modules of the user's own come last."""
    path = [str(script.code), *([] if script.cwd == ROOT else [str(script.cwd)])]
    lines = [f"export PYTHONPATH={shlex.quote(':'.join(path))}${{PYTHONPATH:+:$PYTHONPATH}}", "export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1"]
    return lines + [f"export {key}={shlex.quote(value)}" for key, value in script.cluster.env.items()]


def processes(cluster: ClusterConfig) -> int:
    """Processes on each node."""
    return (cluster.nproc or cluster.gpus or 1) if cluster.torchrun else 1


def command(module: str, cluster: ClusterConfig, *arguments: str) -> list[str]:
    """How a module is started on one machine: as one process, or by torchrun as several."""
    return [sys.executable, *_torchrun(cluster, "--standalone"), "-m", module, *arguments]


def ranked(job: Sequence[str], cluster: ClusterConfig) -> tuple[str, ...]:
    """The command ``python -m MODULE ...`` of a pool's job, by torchrun if that is asked for (and not in the command already)."""
    meet = [] if TORCHRUN in job else _torchrun(cluster, "--standalone")
    return (job[0], *meet, *job[1:])


def _torchrun(cluster: ClusterConfig, *meet: str) -> list[str]:
    if not cluster.torchrun:
        return []
    size = [f"--nnodes={cluster.nodes}", f"--nproc-per-node={processes(cluster)}"]
    return ["-m", TORCHRUN, *size, f"--signals-to-handle={SIGNALS}", *meet]


def _command(script: Script) -> str:
    """The same in a shell, with the config that it knows as ``$config``; on several nodes torchrun meets on the first."""
    if script.command:
        return shlex.join(script.command)
    if script.cluster.nodes == 1:
        return shlex.join(command(script.module, script.cluster)) + ' "config=$config"'
    endpoint = '--rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 20000))"'  # two jobs on a node must not meet
    start = shlex.join([sys.executable, *_torchrun(script.cluster, "--rdzv-backend=c10d")])
    return f'{start} {endpoint} -m {shlex.quote(script.module)} "config=$config"'


# --- Slurm -----------------------------------------------------------------------------------------------------------------------


def directives(script: Script) -> list[str]:
    """The ``#SBATCH`` lines."""
    cluster = script.cluster
    log = "slurm-%A_%a.out" if script.tasks is not None else "slurm-%j.out"
    options = {
        "job-name": slug(script.name),
        "output": _pattern(script.run_dir / "logs" / log),
        "open-mode": "append",
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus * processes(cluster),
        "gpus-per-node": cluster.gpus or None,
        "mem": cluster.mem,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "signal": f"USR1@{cluster.signal_delay}",
    }
    if script.tasks is not None:
        options["array"] = ranges(script.tasks) + (f"%{cluster.slots}" if cluster.slots else "")
    return [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None] + ["#SBATCH --requeue"]


def _pattern(path: Path) -> str:
    """A file name for sbatch, which expands % and reads quotes; its own patterns stay in the last part."""
    return f'"{str(path.parent).replace("%", "%%")}/{path.name}"'


def _batch(script: Script) -> list[str]:
    """The job step, then Slurm is asked to start the run again if that is what its result says."""
    cluster = script.cluster
    srun = ["srun", "--wait=60", f"--cpus-per-task={cluster.cpus * processes(cluster)}", *(["--label"] if cluster.nodes > 1 else [])]
    lines = []
    if cluster.nodes > 1:  # by the address that Slurm itself uses: a node's name need not be known to the resolver
        lines = ['first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)']
        lines += ["head=$(scontrol --oneliner show node \"$first\" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')"]
    return [
        *lines,
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cluster.cpus}}}"',
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={max(30, cluster.signal_delay - 10)}",
        'rm -f "$run/result.json"  # of the attempt that asked to be started again',
        "trap : TERM  # let the run save before this shell looks at its result",
        f"{' '.join(srun)} {_command(script)}",
        "code=$?",
        *(['echo $code > "$launch/exit_code"  # for who finds no result'] if script.command else []),
        f'[ $code -ne 0 ] && {{ {shlex.quote(sys.executable)} -m src.nanollama.launcher.outcome "$run"; code=$?; }}',
        '[ $code -eq 85 ] && [ ! -e "$run/.cancelled" ] && scontrol requeue "$SLURM_JOB_ID"',
        "exit $code",
    ]


def ranges(numbers: Sequence[int]) -> str:
    """``1-3,7`` for 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def check_path(path: Path) -> None:
    """Refuse a run folder that Hydra's grammar or sbatch could read as something else than one path."""
    bad = re.findall(r"['\"\\,:]|\$\{|[^ -~\w]", str(path))
    if bad:
        raise ConfigError(f"run_dir={str(path)!r}: {bad[0]!r} cannot be in it (nor quotes, commas, colons, backslashes, line ends)")
