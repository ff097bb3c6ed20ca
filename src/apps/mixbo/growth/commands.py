"""Trials as processes: a training of one shape, or a probe of what several cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.nanollama.config import write_json
from src.nanollama.config.compose import as_dict
from src.nanollama.metrics.sinks import read_jsonl

from ..study import Outcome
from .names import SEED
from .reuse import COPIED, twin
from .shapes import Shapes
from .trials import GrowthRecord

PROBE = "src.apps.mixbo.growth.probe"
MEGABYTE = 1e6
LAST = 100  # log records whose mean step time a training reports of itself


class Commands:
    """Command lines of trials, and what their run folders say."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def command(self, trial: GrowthRecord, run_dir: Path, parent: Path | None) -> tuple[str, ...]:
        """A fresh process for every trial, so that none inherits another's compiled graphs, memory or random state."""
        wanted = trial.wanted
        if wanted.kind == "train":
            return self._copy(trial, run_dir) or self.shapes.command(wanted.points[0], wanted.overrides, wanted.seed, run_dir)
        configs = [_parts(as_dict(self.shapes.config(point, wanted.overrides))) for point in wanted.points]
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "shapes.json", {"configs": configs})
        return (sys.executable, "-m", PROBE, str(run_dir))

    def _copy(self, trial: GrowthRecord, run_dir: Path) -> tuple[str, ...] | None:
        """The command that copies an equal training of a growth beside this one, where that is wanted and there is one."""
        if not self.shapes.growth.reuse:
            return None
        point, overrides = trial.wanted.points[0], (*trial.wanted.overrides, (SEED, self.shapes.seed + trial.wanted.seed))
        asked = json.loads(json.dumps(as_dict(self.shapes.config(point, overrides))))
        found = twin(asked, run_dir.parent.parent, self.shapes.training.script)
        if not found:
            return None
        return ("cp", *(str(found / name) for name in COPIED if (found / name).is_file()), str(run_dir))

    def outcome(self, trial: GrowthRecord, run_dir: Path, result: Mapping[str, Any]) -> Outcome:
        """The final loss and what the training measured of itself; or the costs that a probe measured, as (value, scatter)."""
        status, message = result["status"], result.get("message")
        if trial.wanted.kind == "probe":
            key = self.shapes.growth.efficiency_target
            costs = {"costs": [one[key] for one in result["costs"]]} if status == "ok" else {}
            return Outcome(status, message=message, measured=costs)
        loss, steps = result.get("loss"), int(result.get("steps") or 1)
        curve = ((steps, (float(loss),)),) if status == "ok" and isinstance(loss, (int, float)) else ()
        return Outcome(status, curve, float(result.get("flops") or 0.0), message, self._measured(trial, run_dir, result))

    def _measured(self, trial: GrowthRecord, run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
        peak, wanted = result.get("peak_memory_bytes"), trial.wanted
        return {
            "params": result.get("parameters") or self.shapes.params(wanted.points[0], wanted.overrides),
            "vram": peak / MEGABYTE if peak else None,
            "iter": self._step_ms(trial, run_dir),
            "best_iter": result.get("steps"),
        }

    def _step_ms(self, trial: GrowthRecord, run_dir: Path) -> float | None:
        """Mean time of a step over the last log records, evaluations and checkpoints left out."""
        cfg = self.shapes.config(trial.wanted.points[0], trial.wanted.overrides)
        file = run_dir / "metrics.jsonl"
        speeds = [r["tokens_per_s"] for r in read_jsonl(file) if r.get("tokens_per_s")][-LAST:] if file.is_file() else []
        tokens = cfg.data.batch_size * cfg.data.seq_len
        return 1e3 * sum(tokens / speed for speed in speeds) / len(speeds) if speeds else None


def _parts(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What one step depends on, as plain JSON."""
    keys: dict[str, Any] = {key: cfg[key] for key in ("model", "train", "optim")}
    found: dict[str, Any] = json.loads(json.dumps(keys | {"seq_len": cfg["data"]["seq_len"], "batch": cfg["data"]["batch_size"]}))
    return found
