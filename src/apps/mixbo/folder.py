"""A sweep's folder as it is found on disk, finished or not: config, tables, history. No torch here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from src.nanollama.config import ConfigError
from src.nanollama.config.compose import typed
from src.nanollama.config.folder import read_yaml
from src.nanollama.metrics.sinks import read_jsonl

from .config import SWEEP, SweepConfig

HISTORY = "progress.jsonl"


def is_sweep(folder: Path) -> bool:
    """Whether a sweep was ever started in this folder."""
    return isinstance(_yaml(folder).get("strategy"), dict)


def read_config(folder: Path) -> SweepConfig:
    """The config that a sweep's folder was started with. Raises ConfigError if it is none."""
    from omegaconf import OmegaConf

    if not is_sweep(folder):
        raise ConfigError(f"{folder} is no sweep (its config.yaml is missing or belongs to another command); name the run_dir of a sweep")
    cfg: SweepConfig = typed(SWEEP, OmegaConf.create(_yaml(folder)))
    return cfg


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of ``progress.jsonl``; none if nothing has ended."""
    path = folder / HISTORY
    return read_jsonl(path) if path.is_file() else []


def read_table(path: Path) -> list[dict[str, str]]:
    """``trials.csv`` or ``curves.csv``; empty if it is not there yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_answer(folder: Path) -> dict[str, Any]:
    """``best.json``; empty before there is an answer."""
    path = folder / "best.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def optional(text: str | None) -> float | None:
    """A number of a table, None where it is empty."""
    return float(text) if text else None


def _yaml(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    return read_yaml(path) if path.is_file() else {}
