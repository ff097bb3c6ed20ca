"""The growth as a YAML file in the layout of the original tool's log, for its viewer and for scripts that read it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from src.nanollama.config import ConfigError, write_text

from .moves import Point
from .names import short
from .state import Arm, Measured, Overrides, Round
from .story import Story, seeds_of

OWNER = "study"  # key by which a file says whose it is


def check_owner(path: Path, study: str) -> None:
    """Raise ConfigError if ``growth.results_file`` is there already and was not written by this study: it is left as it is."""
    if not path.exists():
        return
    try:
        known = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"growth.results_file={path}: is there already and cannot be read: {error}") from error
    if not isinstance(known, dict) or known.get(OWNER) != study:
        owner = known.get(OWNER) if isinstance(known, dict) else None
        whose = f"study {owner}" if owner else "another tool or study"
        raise ConfigError(f"growth.results_file={path} holds results of {whose}, not of {study}; it was left as it is: name another")


def write(path: Path, story: Story, baseline: Mapping[str, Any], study: str) -> None:
    """Replace the file. Call it when a round has ended, not after every trial: the whole file is written each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(log(story, baseline, study), sort_keys=False))


def log(story: Story, baseline: Mapping[str, Any], study: str) -> dict[str, Any]:
    """The contents: ``iter: -1`` is the baseline, then a block a finished round, the state after it."""
    ended = [*story.chapters[:-1], *story.chapters[-1:]] if story.reason else list(story.chapters[:-1])
    first = story.chapters[0]
    blocks: list[dict[str, Any]] = []
    start = _metrics(story, first.incumbent, first.cohort)
    if start:
        after = _config(baseline, first.incumbent, first.overrides)
        blocks.append({"iter": -1, "baseline_metrics": start, "baseline_config_after": after})
    for chapter in ended:
        blocks.append(_block(story, baseline, chapter))
    newest = story.chapters[-1]
    found = {OWNER: study, "baseline_config": _config(baseline, story.state.incumbent, newest.overrides)}
    return found | ({"stop_reason": story.reason} if story.reason else {}) | {"iterations": blocks}


def _block(story: Story, baseline: Mapping[str, Any], chapter: Round) -> dict[str, Any]:
    index = story.chapters.index(chapter)
    after = story.chapters[index + 1] if index + 1 < len(story.chapters) else chapter
    now = chapter.chosen.point if chapter.chosen else chapter.incumbent
    candidates = {arm.move: _candidate(story, chapter, arm) for arm in chapter.table.arms}
    block: dict[str, Any] = {
        "iter": chapter.number,
        "baseline_metrics": _metrics(story, now, chapter.cohort),
        "candidates": list(candidates.values()),
        "chosen": copy.deepcopy(candidates[chapter.chosen]) if chapter.chosen else None,
    }
    if not chapter.chosen:
        block["action"] = chapter.action
    return block | {"baseline_config_after": _config(baseline, now, after.overrides)}


def _config(baseline: Mapping[str, Any], point: Point, overrides: Overrides) -> dict[str, Any]:
    values = {**baseline, **dict(overrides), **dict(point)}
    return {short(key): list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _metrics(story: Story, point: Point, cohort: int) -> dict[str, Any] | None:
    runs = [one for _, one in seeds_of(story, point, cohort) if one.ok]
    if not runs:
        return None
    score = sum(math.exp(-one.loss) for one in runs) / len(runs)
    return {
        "loss": -math.log(score) if score > 0 else math.inf,
        "score": score,
        "params": _mean(runs, "params"),
        "peak_gpu_mb": _mean(runs, "vram"),
        "iter_latency_avg": _mean(runs, "iter"),
        "best_iter": max((one.best_iter or 0) for one in runs),
    }


def _candidate(story: Story, chapter: Round, arm: Arm) -> dict[str, Any]:
    before, after = _metrics(story, chapter.incumbent, chapter.cohort), _metrics(story, arm.move.point, chapter.cohort)
    changes = {short(k): v for k, v in arm.move.point if dict(chapter.incumbent)[k] != v}
    value = next(iter(changes.values())) if len(changes) == 1 else str(changes)
    found: dict[str, Any] = {"param": short(arm.move.direction), "value": list(value) if isinstance(value, tuple) else value}
    found["status"] = arm.verdict
    if not before or not after:
        return found
    names = {"avg_loss": "loss", "avg_score": "score", "best_val_loss": "loss", "best_iter": "best_iter", "num_params": "params"}
    found |= {theirs: after[ours] for theirs, ours in names.items()}
    found |= {key: after[key] for key in ("peak_gpu_mb", "iter_latency_avg")}
    deltas = {"delta_score": "score", "delta_params": "params", "delta_vram": "peak_gpu_mb", "delta_iter_latency": "iter_latency_avg"}
    found |= {name: _difference(after[key], before[key]) for name, key in deltas.items()}
    return found | {"efficiency": arm.ratio, "seeds": [_seed(seed, one) for seed, one in seeds_of(story, arm.move.point, chapter.cohort)]}


def _seed(seed: int, one: Measured) -> dict[str, Any]:
    score = math.exp(-one.loss) if one.loss is not None else None
    costs = {"best_iter": one.best_iter, "peak_gpu_mb": one.vram, "iter_latency_ms": one.iter}
    found = {"seed": seed, "loss": one.loss, "score": score, **costs}
    return found if one.ok else found | {"status": one.status}


def _mean(runs: list[Measured], key: str) -> float | None:
    known = [value for one in runs if (value := getattr(one, key)) is not None]
    return sum(known) / len(known) if known else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
