"""Evaluation of a saved checkpoint: by itself (``eval.checkpoint=FOLDER``), or beside a training that goes on meanwhile."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from ..checkpoint.store import Store, load
from ..config import ConfigError, RunFolder, read_result
from ..config.compose import as_dict
from ..config.folder import is_locked
from ..distributed import Ranks
from ..model.transformer import Transformer
from .evaluate import HeldOut, evaluate
from .resolve import Training

log = logging.getLogger("nanollama")

# What torchrun tells its processes; an evaluation beside them is a run of one process.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR",
                  "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")  # fmt: skip


def evaluate_saved(cfg: Training, run: RunFolder, held_out: Mapping[str, HeldOut], here: Ranks) -> dict[str, Any]:
    """Losses of the checkpoint that ``cfg.eval.checkpoint`` names, as a run's ``result.json`` has them; nothing is trained."""
    assert cfg.eval.checkpoint is not None
    model = Transformer(cfg.model).to(here.device)
    here.shard(model, model.layers, cfg.train.parallel)
    numbers = load(Path(cfg.eval.checkpoint), {"model": get_model_state_dict(model)}, here)
    records = evaluate(model, held_out, max(1, cfg.train.micro_batch or 1), here, cfg.train.precision)
    position = {"step": numbers["step"], "tokens": numbers["tokens"], "flops": numbers["flops"]}
    if here.rank == 0:
        with (run.path / "metrics.jsonl").open("w") as file:
            file.writelines(json.dumps({**position, "split": split, **record}) + "\n" for split, record in records.items())
    return {**main_split(records), "final": records, "steps": numbers["step"], **position, "checkpoint": cfg.eval.checkpoint}


def main_split(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of the split ``valid``, which stand at the top of a result; empty where there are only splits of domains."""
    keys = ("loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se", "bits_per_byte")
    return {key: records["valid"][key] for key in keys if key in records.get("valid", {})}


class Background:
    """Evaluates the pinned checkpoints of a run one after the other, each by the run's own command in a process of its own.

    The evaluation's run folder is ``checkpoints/<step>/eval``. It survives the end of the training; whoever resumes takes it in.
    """

    def __init__(self, cfg: Training, store: Store, module: str | None = None) -> None:
        self.cfg, self.store = cfg, store
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        self.module = module or (spec.name if spec else None)
        if self.module is None:
            raise ConfigError("eval.asynchronous=true starts the run's command again: start it with python -m MODULE")
        self._process: subprocess.Popen[bytes] | None = None
        self._tried: list[int] = []  # by this process, in order; a resumed training tries once more what failed

    @property
    def running(self) -> bool:
        """Whether an evaluation was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def poll(self) -> list[dict[str, Any]]:
        """Results that have come in, as they stand in ``result.json``; starts the next evaluation if none is running."""
        found, busy = [], self.running
        for step in self.store.waiting():
            if is_locked(self._folder(step)) or (self.running and step == self._tried[-1]):
                continue
            result = read_result(self._folder(step))
            if result and result["status"] == "ok":
                found.append(result)
            elif step not in self._tried and not busy:
                self._start(step)
                busy = True
        return found

    def drain(self) -> list[dict[str, Any]]:
        """Wait for everything that waits for evaluation; what comes in. Warns of what fails, whose checkpoint stays."""
        found = self.poll()
        while self.running and self._process:
            self._process.wait()
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
        file.write_text(yaml.safe_dump(asked))
        assert self.module is not None
        environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
        with (folder / "logs" / "stdout.log").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, f"config={file.resolve()}"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
        self._tried.append(step)
