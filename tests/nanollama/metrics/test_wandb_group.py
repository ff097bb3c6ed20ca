"""Offline runs of a study carry its group, and an agent's run keeps the id that the agent gave it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from offline_wandb import records


def run_record(run_dir: Path):
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    return next(record.run for record in records(file) if record.WhichOneof("record_type") == "run")


SCRIPT = """
import sys
from pathlib import Path
from src.nanollama.config.schema import MetricsConfig, WandbConfig
from src.nanollama.metrics.sinks import Sinks

sinks = Sinks(Path(sys.argv[1]), MetricsConfig(tensorboard=False, wandb=WandbConfig(active=True, group="study")), {"optim": {"lr": 1.0}})
sinks.write({"step": 1, "split": "final", "final/test_accuracy": 0.5})
sinks.finish({"final/test_accuracy": 0.5})
sinks.close()
"""


@pytest.mark.parametrize("agent", [False, True])
def test_group_and_id(agent: bool, tmp_path: Path) -> None:
    run_dir = tmp_path / "trial-3"
    run_dir.mkdir()
    given = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "given"} if agent else {}
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", **given}
    subprocess.run([sys.executable, "-c", SCRIPT, str(run_dir)], check=True, env=env, cwd=Path(__file__).parents[3], timeout=120)
    found = run_record(run_dir)
    assert found.run_group == "study" and found.display_name == "trial-3"
    assert (found.run_id == "given") == agent
