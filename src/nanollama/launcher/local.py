"""A launch as a process of this machine: in the foreground, or detached in a session of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from .job import Launch

FORWARDED = {signal.SIGHUP: signal.SIGTERM} | {n: n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}


def run(launch: Launch) -> int:
    """Run ``run.sh`` in the foreground and return its process's code; signals go on to it, a third Ctrl-C kills it.

    It gets a session of its own, so that a terminal's Ctrl-C reaches it once, through here (torchrun's ranks would get it twice and
    give up saving).
    """
    asked: list[int] = []
    process: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if not process:
            return
        if asked.count(signal.SIGINT) > 2:
            kill_tree(process[0].pid)
        elif process[0].poll() is None:
            process[0].send_signal(FORWARDED[signal.Signals(number)])

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        process.append(subprocess.Popen(["bash", str(launch.script)], stdin=subprocess.DEVNULL, start_new_session=True))
        launch.note(**process_record(process[0].pid))
        for number in asked:  # came before there was anyone to tell
            process[0].send_signal(FORWARDED[signal.Signals(number)])
        return process[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def detach(launch: Launch, command: list[str], env: Mapping[str, str] | None = None) -> int:
    """Start ``command`` in the background, its output in ``logs/stdout.log``; returns its process id."""
    with (launch.run_dir / "logs" / "stdout.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    launch.note(**process_record(process.pid))
    process.returncode = 0  # not ours to wait for: no warning that it outlives us
    return process.pid


def process_record(pid: int) -> dict[str, Any]:
    """What ``launch.json`` remembers of a process: ids are used again, so the time of its start belongs to it."""
    import psutil

    try:
        return {"pid": pid, "pid_started": psutil.Process(pid).create_time(), "host": socket.gethostname()}
    except psutil.NoSuchProcess:
        return {"pid": pid, "pid_started": None, "host": socket.gethostname()}


def is_alive(record: dict[str, Any]) -> bool | None:
    """Whether the process of a launch still runs; None if that is another machine's, which cannot be known here."""
    import psutil

    if record.get("pid_started") is None:
        return False
    if record["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["pid_started"]) < 2  # seconds: the clock may have been set meanwhile
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that descends from it, also in sessions of their own (as torchrun's ranks are)."""
    import psutil

    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    kill_group(pid)


def kill_group(pid: int) -> None:
    """SIGKILL what a process that led its group, dead or alive, has left in it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
