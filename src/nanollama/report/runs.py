"""Read run folders as they are found on disk: finished, running, killed half-way or damaged."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError

MARKS = ("env.json", "metrics.jsonl", "result.json", "difficulty.json")  # one of them makes a folder a run folder
SECTIONS = "sections.json"  # what a command has to say in a report, see ``stored``
INSIDE = ("checkpoints", "traces", "tb", "wandb", "logs", "code")  # parts of a run folder, never runs themselves


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    ``status``: that of ``result.json``; without one ``running``, ``killed``, or ``unfinished`` where that cannot be told from here.
    ``compressors``: split -> compressor -> bits per byte, as text trainings write it. ``records``: the readable records of
    ``metrics.jsonl``, in file order. ``problems``: one sentence for everything unreadable.
    """

    path: Path
    name: str
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    difficulty: Mapping[str, Any] = field(default_factory=dict)
    compressors: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    problems: Sequence[str] = ()

    @property
    def model(self) -> Mapping[str, Any]:
        """The config's section of that name; empty where it is none."""
        section = self.config.get("model")
        return section if isinstance(section, dict) else {}


def find_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Every run folder among ``paths`` and below them, each once, named by the shortest path that tells them apart.

    Raises ConfigError if there are no paths, or one is not there or holds no run.
    """
    if not paths:
        raise ConfigError("name at least one run folder, or a folder with runs below it")
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; give run folders, or a folder that has some below it")
        found = list(_run_folders(path.resolve(), given=True))
        if not found:
            raise ConfigError(f"{path}: no run in this folder or below it (a run folder has one of {', '.join(MARKS)})")
        folders.update(dict.fromkeys(found))
    return [read_run(folder, name) for folder, name in zip(folders, _names(list(folders)), strict=True)]


def read_run(path: Path, name: str | None = None) -> Run:
    """One run folder. Never raises for its contents: what cannot be read is named in ``problems``."""
    problems: list[str] = []
    config = _mapping(path / "config.yaml", problems)
    env = _mapping(path / "env.json", problems)
    result = _mapping(path / "result.json", problems)
    if not (path / "config.yaml").exists():
        problems.append("config.yaml is missing")
    status = result.get("status")
    return Run(
        path=path,
        name=name or path.name,
        status=status if isinstance(status, str) else _state_without_result(env),
        config=config,
        env=env,
        result=result,
        difficulty=_mapping(path / "difficulty.json", problems),
        compressors=_mapping(path / "compressors.json", problems),
        records=_records(path / "metrics.jsonl", problems),
        problems=tuple(problems),
    )


def _run_folders(path: Path, given: bool = False) -> Iterator[Path]:
    if any((path / mark).is_file() for mark in MARKS):
        yield path
    if (path / SECTIONS).is_file() and not given:
        return  # it speaks for the runs below it
    for child in sorted(path.iterdir(), key=_natural):
        if child.is_dir() and not child.is_symlink() and child.name not in INSIDE and not child.name.startswith("."):
            yield from _run_folders(child)


def _natural(path: Path) -> tuple[int, int, str]:
    """Trial 10 after trial 9."""
    return (0, int(path.name), "") if path.name.isdecimal() else (1, 0, path.name)


def _names(folders: list[Path]) -> list[str]:
    if len(folders) == 1:
        return [folders[0].name]
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [str(folder.relative_to(common)) for folder in folders]


def _mapping(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """A JSON or YAML object; empty if there is no such file."""
    try:
        text = path.read_text()
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} is not readable ({type(error).__name__})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no mapping")
        return {}
    return value


def _records(path: Path, problems: list[str]) -> list[Mapping[str, Any]]:
    """Every line that is a record. A torn last line is normal (killed while writing) and no problem; any other is counted."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name} is not readable ({type(error).__name__})")
        return []
    records: list[Mapping[str, Any]] = []
    torn = 0
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line)
            if not (isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("split"), str)):
                raise ValueError
            records.append(record)
        except ValueError:
            torn += line.endswith("\n")
    if torn:
        problems.append(f"{path.name}: {torn} unreadable line{'s' * (torn > 1)} left out")
    return records


def _state_without_result(env: Mapping[str, Any]) -> str:
    pid = env.get("pid")
    if not isinstance(pid, int) or env.get("host") != socket.gethostname():
        return "unfinished"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "killed"
    except (OSError, OverflowError):
        return "unfinished"
    return "running"
