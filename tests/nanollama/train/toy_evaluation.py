"""The toy run's command for evaluating a checkpoint. With STOP_TRAINING it waits for the training to wait for it, has that stopped, and
begins when it has been resumed."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import TypeAdapter
from toy_training import ToyConfig, run_toy

from src.nanollama.config import write_json


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)


def main(config: Path) -> None:
    cfg = TypeAdapter(ToyConfig).validate_python(yaml.safe_load(config.read_text()))
    folder, run = Path(cfg.run_dir), config.parents[2]
    started = run / "ranks.json"  # written by every start of the training
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if "STOP_TRAINING" in os.environ:
            wait_for(lambda: '"final"' in (run / "metrics.jsonl").read_text())
            before = started.stat().st_ino
            os.kill(os.getppid(), signal.SIGTERM)
            wait_for(lambda: started.stat().st_ino != before)
        write_json(folder / "result.json", {"status": "ok", **run_toy(folder, cfg)})


if __name__ == "__main__":
    main(Path(sys.argv[1].removeprefix("config=").strip("'")))
