"""Sinks for records. A record is a flat dictionary with ``step``, ``tokens``, ``split`` and numbers."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..config import ConfigError, RunFailed, write_text
from ..config.compose import flatten
from ..config.folder import slug
from ..config.schema import MetricsConfig
from ..config.secret import without_passwords
from .watermark import Watermark

Record = Mapping[str, Any]


class Sink(Protocol):
    """Takes records as they come."""

    def write(self, record: Record) -> None: ...
    def finish(self, result: Record) -> None: ...
    def close(self) -> None: ...


class Jsonl:
    """One JSON object a line. On resume, records past the checkpoint are dropped, so that the file equals that of an unbroken run."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        if path.exists():
            kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= resume_step]
            write_text(path, "".join(kept))
        self._file = path.open("a", buffering=1)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps({k: None if _not_finite(v) else v for k, v in record.items()}, allow_nan=False) + "\n")

    def finish(self, result: Record) -> None:
        """Nothing: the run's result has a file of its own."""

    def close(self) -> None:
        self._file.close()


def _not_finite(value: Any) -> bool:
    """JSON has no NaN."""
    return isinstance(value, float) and not math.isfinite(value)


def complete_lines(path: Path) -> list[str]:
    """The lines of a JSONL file without a torn last one (a process killed while writing)."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a metrics file."""
    return [json.loads(line) for line in complete_lines(path)]


def newest(path: Path, split: str) -> dict[str, Any] | None:
    """The last complete record of a split among the last 64 KiB of a metrics file; None if there is none, or no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - (1 << 16)))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):  # the first may be a part
            if (record := json.loads(line))["split"] == split:
                return record
    return None


CHARTS = {  # TensorBoard's tab Custom Scalars: lines that belong together in one chart
    "training": {
        "loss and its floor, nats per token": ["Multiline", ["^loss/", "^bayes_loss/"]],
        "excess over the floor": ["Multiline", ["^excess_loss/"]],
        "gradient norm": ["Multiline", ["^grad_norm/"]],
        "learning rate": ["Multiline", ["^lr/"]],
        "tokens per second": ["Multiline", ["^tokens_per_s/"]],
    }
}


class TensorBoard:
    """Scalars ``<metric>/<split>``, without standard errors; ``charts``: a page of those that belong together, by title and tag."""

    def __init__(self, folder: Path, config: Record, resume_step: int = 0, charts: Record | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._config = config
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)
        if charts:
            self._writer.add_custom_scalars(charts)

    def write(self, record: Record) -> None:
        for key, value in record.items():
            if key not in ("step", "split", "tokens") and not key.endswith("_se") and isinstance(value, (int, float)):
                self._writer.add_scalar(tag(key, record), value, record["step"])

    def finish(self, result: Record) -> None:
        """The run as a row of the HParams tab: its config against what came out."""
        from torch.utils.tensorboard.summary import hparams

        loss_first = sorted(result.items(), key=lambda item: item[0] != "loss")  # the tab's table begins with one metric only
        numbers = {f"result/{key}": value for key, value in loss_first if isinstance(value, (int, float))}
        assert self._writer.file_writer is not None
        settings = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in flatten(self._config).items()}
        for summary in hparams(settings, numbers):
            self._writer.file_writer.add_summary(summary)
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, result.get("steps"))

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A Weights & Biases run. Offline unless ``WANDB_MODE`` says otherwise.

    Sends, too, what an earlier part of the run recorded without it, and leaves a watermark for uploads (not where records go to another
    run than an upload's, or nowhere).
    """

    def __init__(self, run_dir: Path, cfg: MetricsConfig, config: Mapping[str, Any]) -> None:
        mine = None if "WANDB_SWEEP_ID" in os.environ else wandb_id(run_dir)  # an agent has named the run already
        sys.argv[:] = map(without_passwords, sys.argv)  # which wandb writes down
        mode = wandb_mode("offline")
        about = {"name": run_dir.name, "group": cfg.wandb.group, "config": dict(config)}
        self._run = open_wandb(run_dir, mine, mode, cfg.wandb.project, cfg.wandb.entity, **about)
        self._run.define_metric("*", step_metric="step")
        self._sent = Watermark(run_dir, cfg.wandb.project, cfg.wandb.entity) if mine and mode != "disabled" else None
        recorded = run_dir / "metrics.jsonl"
        for record in self._sent.new(read_jsonl(recorded)) if self._sent and recorded.exists() else []:
            self.write(record)

    def write(self, record: Record) -> None:
        self._run.log(chart_values(record))
        if self._sent:
            self._sent.note(record)

    def finish(self, result: Record) -> None:
        self._run.summary.update(dict(result))

    def close(self) -> None:
        self._run.finish()
        if self._sent:
            self._sent.save()


WANDB_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")


def wandb_mode(default: str) -> str:
    """``WANDB_MODE``. Raises ConfigError if it is none of wandb's."""
    mode = os.environ.get("WANDB_MODE", default)
    if mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode}: must be one of {', '.join(WANDB_MODES)}")
    return mode


def open_wandb(run_dir: Path, run_id: str | None, mode: str, project: str, entity: str | None, **about: Any) -> Any:
    """Begin or take up a run at wandb, which keeps its files in the run folder. Raises RunFailed if wandb does not take it."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("the package wandb is not installed; install it, or use metrics.wandb.active=false") from error
    try:
        return wandb.init(project=project, entity=entity, id=run_id, dir=str(run_dir), resume="allow", mode=mode, **about)  # type: ignore[arg-type]
    except wandb.Error as error:
        raise RunFailed(f"wandb: {error}; log in with `wandb login`, or write locally with WANDB_MODE=offline") from error


def wandb_id(run_dir: Path) -> str:
    """The run's id at wandb, readable and unique, kept in ``wandb/id`` so that a resumed or repeated upload goes to the same run."""
    kept = run_dir / "wandb" / "id"
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        write_text(kept, f"{slug(run_dir.resolve().name)}-{secrets.token_hex(4)}")
    return kept.read_text()


def chart_values(record: Record) -> dict[str, Any]:
    """A record as wandb charts it: ``<metric>/<split>`` (or the metric's own path) over ``step``, which may come in any order."""
    shown = {key: value for key, value in record.items() if key not in ("step", "split") and value is not None}
    return {"step": record["step"]} | {tag(key, record): value for key, value in shown.items()}


def tag(key: str, record: Record) -> str:
    """The name of a metric in a chart: its own path, or ``<metric>/<split>``."""
    return key if "/" in key else f"{key}/{record['split']}"


class Sinks:
    """Every configured sink of a run; silent on ranks other than 0."""

    def __init__(self, run_dir: Path, cfg: MetricsConfig, config: Mapping[str, Any], resume_step: int = 0, active: bool = True) -> None:
        self._sinks: list[Sink] = []
        if active:
            self._sinks.append(Jsonl(run_dir / "metrics.jsonl", resume_step))
            if cfg.tensorboard:
                self._sinks.append(TensorBoard(run_dir / "tb", config, resume_step, CHARTS))
            if cfg.wandb.active:
                self._sinks.append(Wandb(run_dir, cfg, config))

    def write(self, record: Record) -> None:
        """Give one record to all sinks."""
        for sink in self._sinks:
            sink.write(record)

    def finish(self, result: Record) -> None:
        """Give the final result of a complete run to all sinks."""
        for sink in self._sinks:
            sink.finish(result)

    def close(self) -> None:
        """Flush and let go of the files."""
        for sink in self._sinks:
            sink.close()
