"""Trainings that another growth has made already: growths of one baseline under several costs share most of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from src.nanollama.config import read_result
from src.nanollama.config.folder import git_state

COPIED = ("metrics.jsonl", "config.yaml", "env.json", "result.json")  # the result last: it says that all is there


def twin(asked: Mapping[str, Any], study: Path, script: str) -> Path | None:
    """The run folder of an equal training that ended well in a growth beside ``study``: same command, config, seed and commit."""
    commit = git_state()["commit"]
    for run_dir in _trainings(study, script):
        result = read_result(run_dir)
        if not result or result["status"] != "ok" or not (run_dir / "config.yaml").is_file():  # a probe has none
            continue
        known = yaml.safe_load((run_dir / "config.yaml").read_text())
        if _same(known, asked) and json.loads((run_dir / "env.json").read_text())["commit"] == commit:
            return run_dir
    return None


def _trainings(study: Path, script: str) -> Iterator[Path]:
    for config in sorted(study.parent.glob("*/config.yaml")):
        if config.parent.resolve() == study.resolve() or not (config.parent / "study.db").is_file():
            continue
        known = yaml.safe_load(config.read_text())
        if isinstance(known, dict) and (known.get("training") or {}).get("script") == script:
            yield from sorted(path for path in (config.parent / "trials").glob("*") if path.is_dir())


def _same(known: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return {**known, "run_dir": None} == {**asked, "run_dir": None}
