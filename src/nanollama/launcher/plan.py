"""From the launcher's command line to a checked plan: which module, which configs, where. Touches no file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from ..config import ConfigError, Entry, quoted
from ..config.compose import find_file, load_yaml
from ..config.folder import RESUME
from ..config.main import SWEEP_FLAGS, entry_of
from ..config.schema import ClusterConfig
from .tasks import Task, compose_tasks

SHORT_FORMS = ("script", "launcher", "torchrun")  # of cluster.*


@dataclass(frozen=True)
class Plan:
    """What one call of the launcher is to start."""

    entry: Entry
    script: str
    cluster: ClusterConfig
    tasks: tuple[Task, ...]
    is_grid: bool
    name: str
    run_dir: Path | None
    resume: str
    detach: bool
    argv: tuple[str, ...]


def plan(argv: Sequence[str]) -> Plan:
    """Compose and check every run that ``argv`` asks for. Raises ConfigError."""
    given, rest = _options(argv)
    sweep = any(arg in SWEEP_FLAGS for arg in rest)
    rest = [arg for arg in rest if arg not in SWEEP_FLAGS]
    script = given.get("script") or _script_in_file(rest)
    if not re.fullmatch(r"\w+(\.\w+)*", script):
        raise ConfigError(f"script={script}: no module name; give a command such as src.apps.gssm.train")
    entry = entry_of(script)
    rest += [f"cluster.{key}={quoted(given[key])}" for key in SHORT_FORMS if key in given]
    tasks, first = compose_tasks(entry, rest, sweep)
    if first.cluster.torchrun and not entry.ranks:
        raise ConfigError(f"cluster.torchrun=true: {script} is one process; leave it out")
    return Plan(
        entry=entry,
        script=script,
        cluster=first.cluster,
        tasks=tasks,
        is_grid=sweep or bool(tasks[0].label),
        name=getattr(first, "name", None) or entry.name,
        run_dir=Path(first.run_dir).expanduser() if first.run_dir else None,
        resume=_one_of("resume", given.get("resume", "auto"), RESUME),
        detach=_one_of("detach", given.get("detach", "false").lower(), ("true", "false")) == "true",
        argv=tuple(argv),
    )


# --- the command line ------------------------------------------------------------------------------------------------------------


def _options(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The launcher's own ``key=value`` arguments, and those that belong to the script."""
    own = (*SHORT_FORMS, "resume", "detach")
    given = {key: value for key, equals, value in (arg.partition("=") for arg in argv) if equals and key in own}
    rest = [arg for arg in argv if arg.partition("=")[0] not in own or "=" not in arg]
    return given, rest


def _one_of(key: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"command line: {key}={value}: must be one of {', '.join(allowed)}")
    return value


def _script_in_file(argv: Sequence[str]) -> str:
    """``cluster.script`` as given on the command line or in the YAML file."""
    anything = Entry("launcher", object)
    for arg in argv:
        if arg.startswith("cluster.script="):
            return arg.partition("=")[2]
    for arg in argv:
        name = arg.partition("=")[2] if arg.startswith("config=") else arg
        if arg.startswith("config=") or re.fullmatch(r"[^=-][^=]*\.ya?ml", arg):
            file = find_file(anything, "config", name.split(",")[0])
            script = OmegaConf.select(OmegaConf.create(load_yaml(file)), "cluster.script")
            if script:
                return str(script)
            raise ConfigError(f"{file}: names no cluster.script; add it, or give script=MODULE on the command line")
    raise ConfigError("nothing to start: give script=MODULE (such as src.apps.gssm.train), or a YAML file that names cluster.script")
