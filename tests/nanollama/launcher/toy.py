"""A command that needs no torch: it counts steps, saves on a stop signal, and ends in any way it is told to.

Started as ``tests.nanollama.launcher.toy`` by the tests of the launcher.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import field
from typing import Any, Literal

from hydra.core.config_store import ConfigStore

from src.nanollama.config import ConfigError, Entry, Interrupted, Requeue, RunFailed, RunFolder, main, write_text
from src.nanollama.config.ranks import rank, world_size
from src.nanollama.config.schema import ClusterConfig, Count, DataConfig, Rate, config
from src.nanollama.launcher.signals import stop_flag


@config
class ToyConfig:
    name: str = "toy"
    run_dir: str | None = None
    end: Literal["ok", "raise", "exit", "diverge", "kill", "kill_once"] = "ok"
    end_rank: Count = 0  # which of several ranks ends in that way; the others wait for it
    text: str = ""
    steps: Count = 1
    step_s: Rate = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def resolve(cfg: ToyConfig) -> ToyConfig:
    if cfg.data.batch_size % world_size():
        raise ConfigError(f"data.batch_size = {cfg.data.batch_size} does not divide over {world_size()} ranks")
    return cfg


TOY = Entry("toy", ToyConfig, resolve, volatile=("steps", "step_s", "end"), ranks=True)
ConfigStore.instance().store(name="toy", node={"defaults": ["toy_schema", "_self_", {"experiment": None}, {"config": None}]})


@main(TOY)
def toy(cfg: ToyConfig, run: RunFolder) -> dict[str, Any]:
    checkpoint = run.path / "checkpoint"
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    print(f"starting at {start}", flush=True)
    with stop_flag() as stop:
        for step in range(start, cfg.steps):
            time.sleep(cfg.step_s)
            if rank() == 0:
                write_text(checkpoint, str(step + 1))  # another rank may be reading it
            if stop.kind and step + 1 < cfg.steps:
                raise (Interrupted if stop.kind == 1 else Requeue)(f"saved step {step + 1}")
    if rank() != cfg.end_rank:
        time.sleep(60 if cfg.end != "ok" else 0)
    elif cfg.end == "kill" or (cfg.end == "kill_once" and not (run.path / "was_killed").exists()):
        (run.path / "was_killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif cfg.end == "raise":
        raise RuntimeError("told to raise")
    elif cfg.end == "exit":
        os._exit(7)
    elif cfg.end == "diverge":
        raise RunFailed("told to fail", status="nan")
    return {
        "loss": float(len(cfg.text)),
        "text": cfg.text,
        "started_at": start,
        "rank": rank(),
        "world": world_size(),
        "file": __file__,
        "cwd": os.getcwd(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "marker": os.environ.get("MARKER"),
    }


if __name__ == "__main__":
    toy()
