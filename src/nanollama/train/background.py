"""Evaluation of pinned checkpoints beside a training that goes on meanwhile: in a process on the same machine, or as a Slurm job."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from ..checkpoint.store import Store
from ..config import ConfigError, quoted, read_result
from ..config.as_yaml import composable
from ..config.compose import as_dict
from ..config.folder import is_locked
from ..launcher.job import launches
from ..launcher.signals import StopFlag
from ..launcher.status import states
from .resolve import Training

log = logging.getLogger("nanollama")

# What torchrun tells its processes; an evaluation beside them is a run of one process.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR",
                  "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")  # fmt: skip
ASK_SLURM_S = 5.0  # seconds between two questions


class Beside(Protocol):
    """Starts one evaluation at a time and knows whether it has ended. ``folder`` is its run folder, ``config`` its YAML file."""

    def start(self, module: str, config: Path, folder: Path) -> None: ...
    def running(self, folder: Path) -> bool: ...


class Process:
    """The run's own command, in a process that survives the end of the training."""

    def start(self, module: str, config: Path, folder: Path) -> None:
        with (folder / "logs" / "stdout.log").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, f"config={quoted(config)}"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True,
            )  # fmt: skip

    def running(self, folder: Path) -> bool:
        return self._process.poll() is None


class SlurmJob:
    """The run's own command as a job of one process, with the ``cluster`` settings of the training."""

    def start(self, module: str, config: Path, folder: Path) -> None:
        self._asked, self._active = 0.0, is_active(folder)  # an earlier part of this training may have submitted it
        if self._active:
            return
        asked = [f"script={module}", f"config={quoted(config)}", "launcher=sbatch", "torchrun=False", "cluster.nodes=1"]
        command = [sys.executable, "-m", "src.nanollama.launcher", *asked]
        out = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment())
        self._active = out.returncode == 0
        if out.returncode:
            log.warning("the evaluation was not submitted: %s", out.stderr.strip())

    def running(self, folder: Path) -> bool:
        if self._active and time.monotonic() > self._asked + ASK_SLURM_S:
            self._asked, self._active = time.monotonic(), is_active(folder)
        return self._active


def is_active(folder: Path) -> bool:
    """Whether a launched run is waiting or running in ``folder``."""
    return bool(launches(folder)) and any(state.is_active for state in states(folder))


def environment() -> dict[str, str]:
    """This process's environment without its place among other ranks."""
    return {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}


class Background:
    """Evaluates the pinned checkpoints of a run one after the other.

    The evaluation's run folder is ``checkpoints/<step>/eval``. It survives the end of the training; whoever resumes takes it in.
    """

    def __init__(self, cfg: Training, store: Store, module: str | None = None) -> None:
        self.cfg, self.store = cfg, store
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        found = module or (spec.name if spec else None)
        if found is None:
            raise ConfigError("eval.asynchronous=true starts the run's command again: start it with python -m MODULE")
        self.module = found
        self.beside: Beside = SlurmJob() if cfg.eval.launcher == "sbatch" else Process()
        self._tried: list[int] = []  # by this process, in order; a resumed training tries once more what failed

    @property
    def running(self) -> bool:
        """Whether an evaluation was started, maybe by an earlier part of this training, and has not ended."""
        mine = bool(self._tried) and self.beside.running(self._folder(self._tried[-1]))
        return mine or any(is_locked(self._folder(step)) for step in self.store.waiting())

    def poll(self) -> list[dict[str, Any]]:
        """Results that have come in, as they stand in ``result.json``; starts the next evaluation if none is running."""
        found, busy = [], self.running
        for step in self.store.waiting():
            if is_locked(self._folder(step)) or (busy and step in self._tried[-1:]):
                continue
            result = read_result(self._folder(step))
            if result and result["status"] == "ok":
                found.append(result)
            elif step not in self._tried and not busy:
                self._start(step)
                busy = True
        return found

    def drain(self, stop: StopFlag) -> list[dict[str, Any]]:
        """Wait for everything that waits for evaluation, unless asked to stop; what comes in.

        Warns of what fails. Its checkpoint stays, as does one whose evaluation is ``running`` still.
        """
        found = self.poll()
        while self.running:
            if stop.kind:
                return found
            time.sleep(0.1)
            found = self.poll()
        for step in {*self.store.waiting()} - {result["step"] for result in found}:
            log.warning("the evaluation of checkpoint %d failed; its log is in %s", step, self._folder(step) / "logs")
        return found

    def _folder(self, step: int) -> Path:
        return self.store.folder / f"{step}" / "eval"

    def _start(self, step: int) -> None:
        folder = self._folder(step)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        asked = as_dict(self.cfg)
        asked["eval"] |= {"asynchronous": False, "checkpoint": str(folder.parent.resolve())}
        asked["train"] |= {"mode": "eager"}
        asked["metrics"] |= {"tensorboard": False, "wandb": {"active": False}}
        asked["run_dir"] = str(folder.resolve())
        file = folder.parent / "eval.yaml"
        file.write_text(composable(asked))
        self._tried.append(step)
        self.beside.start(self.module, file.resolve(), folder.resolve())
