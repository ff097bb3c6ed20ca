"""A real Slurm on this machine, for tests: its daemons without systemd, on the loopback only, all their files in one folder.

    python tests/nanollama/launcher/slurm_here.py start DIR      prints the variable that Slurm's commands then need
    python tests/nanollama/launcher/slurm_here.py stop DIR

Needs root and the packages slurm-wlm and munge (make test-slurm installs them on Debian and Ubuntu). Two nodes, each a slurmd of its
own, so that jobs over several nodes can be tried; pretend GPUs are plain files.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,bf_continue
ReturnToService=2
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
GresTypes=gpu
KillWait=5
MinJobAge=600
MaxArraySize=2001
StateSaveLocation={dir}/state
SlurmctldPidFile={dir}/slurmctld.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdSpoolDir={dir}/spool-%n
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmdLogFile={dir}/log/slurmd-%n.log
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=10 State=UP
"""
NODES = ("one", "two")
GPUS = 2  # pretended, on each node


def missing() -> str | None:
    """Why it cannot run here, or None."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=_path()) is None]
    return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)" if absent else None


def start(folder: Path) -> Path:
    """Start munged, slurmctld and the slurmds; returns the path for SLURM_CONF once both nodes are idle."""
    folder = folder.resolve()
    for name in ("munge", "state", "log", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "munge").chmod(0o700)
    port, host = _free_ports(1 + len(NODES)), socket.gethostname().split(".")[0]
    size = f"CPUs=8 RealMemory=64000 Gres=gpu:{GPUS}"
    lines = [f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + i} {size}" for i, name in enumerate(NODES)]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, port=port, dir=folder, nodes="\n".join(lines)))
    for i in range(GPUS):
        os.mknod(folder / f"gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # null devices
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    files = {"key-file": key, "socket": "munge/socket", "pid-file": "munged.pid", "log-file": "log/munged.log", "seed-file": "munge/seed"}
    _run(conf, "munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
    _run(conf, "slurmctld", "-c")
    for node in NODES:
        _run(conf, "slurmd", "-c", "-N", node)
    for _ in range(100):
        if _run(conf, "sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle"] * 2 * len(NODES):  # in both partitions
            return conf
        time.sleep(0.1)
    stop(folder)
    raise RuntimeError(f"Slurm did not come up; see {folder / 'log'}")


def stop(folder: Path) -> None:
    """End all jobs, then the daemons."""
    conf = folder.resolve() / "slurm.conf"
    for _ in range(50):
        if not _run(conf, "squeue", "-h", check=False).strip():
            break
        _run(conf, "scancel", "--me", check=False)
        time.sleep(0.2)
    for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged"):
        file = folder.resolve() / f"{name}.pid"
        if file.is_file() and file.read_text().strip():
            try:
                os.kill(int(file.read_text()), signal.SIGTERM)
            except ProcessLookupError:
                continue


def _run(conf: Path, *command: str | Path, check: bool = True) -> str:
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": _path()}
    return subprocess.run([str(c) for c in command], env=env, check=check, stdout=subprocess.PIPE, text=True).stdout


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"


def _free_ports(count: int) -> int:
    """The first of ``count`` successive free ports."""
    for first in range(16800, 20000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports")


if __name__ == "__main__":
    if sys.argv[1] == "start":
        print(f"export SLURM_CONF={start(Path(sys.argv[2]))}")
    else:
        stop(Path(sys.argv[2]))
