"""Send local runs to Weights & Biases: metrics, configuration, result, and traces as artifacts.

    python -m src.nanollama.metrics.upload RUN [RUN ...] [project=nanollama] [entity=NAME]

Safe to repeat: ``RUN/wandb`` remembers the run's id and what was sent to each project, so that only what is new goes out; what a training
with metrics.wandb.active=true wrote counts as sent. With WANDB_MODE=offline everything is written to ``RUN/wandb/offline-run-*``, for
``wandb sync``. Exit codes: 0 done, 2 wrong input, 3 failed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import ConfigError, read_result
from ..config.folder import read_yaml
from ..config.tool import run_tool, split
from .sinks import chart_values, open_wandb, read_jsonl, wandb_id, wandb_mode
from .watermark import Watermark


def upload(run_dir: Path, project: str, entity: str | None = None) -> dict[str, int]:
    """Send what was not sent there before; returns how many ``records`` and ``traces`` that were."""
    if not (run_dir / "metrics.jsonl").is_file():
        raise ConfigError(f"{run_dir} is no training's run folder (no metrics.jsonl)")
    if wandb_mode("online") == "disabled":
        raise ConfigError("WANDB_MODE=disabled sends nothing; unset it, or use WANDB_MODE=offline to write locally")
    sent = Watermark(run_dir, project, entity)
    records = sent.new(read_jsonl(run_dir / "metrics.jsonl"))
    traces, result = sorted((run_dir / "traces").glob("*")), read_result(run_dir)
    digests = {"traces": digest(traces) if traces else None, "result": digest([run_dir / "result.json"]) if result else None}
    if not records and sent.digests == digests:
        return {"records": 0, "traces": 0}
    new_traces = traces if sent.digests["traces"] != digests["traces"] else []
    _send(run_dir, wandb_id(run_dir), project, entity, records, new_traces, result)
    for record in records:
        sent.note(record)
    sent.digests = digests
    sent.save()
    return {"records": len(records), "traces": len(new_traces)}


def _send(
    run_dir: Path, run_id: str, project: str, entity: str | None, records: list[dict], traces: list[Path], result: dict[str, Any] | None
) -> None:
    import wandb

    config_file = run_dir / "config.yaml"
    config = read_yaml(config_file) if config_file.is_file() else {}
    run = open_wandb(run_dir, run_id, wandb_mode("online"), project, entity, name=run_dir.resolve().name, config=config)
    with run:
        run.define_metric("*", step_metric="step")
        for record in records:
            run.log(chart_values(record))
        if result:
            run.summary.update(result)
        if traces:
            artifact = wandb.Artifact(f"{run_id}-traces", type="profile")
            for file in traces:
                artifact.add_file(str(file))
            run.log_artifact(artifact)


def digest(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def send(argv: Sequence[str]) -> None:
    """Upload each folder and say what went out."""
    folders, options = split(argv, ("project", "entity"))
    for folder in folders:
        sent = upload(Path(folder), options.get("project", "nanollama"), options.get("entity"))
        print(f"{folder}  " + (f"{sent['records']} records, {sent['traces']} traces" if any(sent.values()) else "nothing new"))


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    return run_tool(argv, __doc__, send)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
