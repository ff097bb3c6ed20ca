"""The training loop of every app: step, log, evaluate, save, stop."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.store import Store, load, numbered
from ..config import ConfigError, Interrupted, Requeue, RunFailed, RunFolder
from ..config.compose import as_dict
from ..config.schema import OptimConfig
from ..data.prefetch import Prefetch, batches
from ..data.source import DataSource
from ..distributed import Ranks, ranks
from ..launcher.signals import StopFlag, stop_flag
from ..metrics.sinks import Sinks
from ..model import sizing
from ..model.transformer import Transformer
from ..profiler import flops
from .evaluate import HeldOut, evaluate
from .resolve import Training
from .schedule import decay_start
from .state import TrainState
from .step import Step, check_mode

log = logging.getLogger("nanollama")


@dataclass(frozen=True)
class Floor:
    """Expected Bayes-optimal loss of the training stream over its predicted positions, nats per token, with its standard error."""

    mean: float
    se: float


def train(cfg: Training, run: RunFolder, source: DataSource, held_out: Mapping[str, HeldOut], floor: Floor | None = None) -> dict[str, Any]:
    """Train the model of ``cfg`` on ``source``, evaluating on ``held_out``; resumes if the folder holds a checkpoint.

    Returns the contents of ``result.json``. Raises Interrupted or Requeue after saving when asked to stop, RunFailed when the loss is
    no longer finite.
    """
    with stop_flag() as stop, ranks(cfg.train.device) as here:
        loop = Loop(cfg, run, source, held_out, floor, here)
        try:
            loop.restore()
            return loop.run_to_the_end(stop)
        finally:
            loop.sinks.close()


class Loop:
    """The parts of one training and the order in which they work."""

    def __init__(
        self, cfg: Training, run: RunFolder, source: DataSource, held_out: Mapping[str, HeldOut], floor: Floor | None, here: Ranks
    ) -> None:
        self.cfg, self.run, self.source, self.held_out, self.floor, self.ranks = cfg, run, source, held_out, floor, here
        check_mode(cfg.train, here)
        self.model = Transformer(cfg.model).to(here.device)
        self.model.init_weights(cfg.train.seed)
        here.shard(self.model, self.model.layers, cfg.train.parallel)
        self.state = TrainState(self.model, cfg.train, cfg.optim, here)
        self.step = Step(self.state, cfg.train, cfg.optim, here)
        self.store = Store(run.path, here, cfg.checkpoint.keep)
        self.flops_per_token = flops.training(self.model.cfg, cfg.data.seq_len)
        peak = flops.peak(torch.cuda.get_device_name(here.device)) if here.device.type == "cuda" else None
        self.peak = peak * here.world if peak else None
        self.best: dict[str, float] = {}
        self.added_tokens = 0  # by this run; a continued one does not count its parent's
        self.sinks = Sinks(run.path, cfg.metrics, {}, active=False)

    # --- starting ---------------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take up this folder's newest checkpoint, or the one that ``checkpoint.init_from`` names; open the sinks at that step."""
        numbers: dict[str, Any] | None = None
        if numbered(self.store.folder):
            tensors = self.state.tensors()
            numbers = self.store.load_newest(tensors)
            self._check_continuable(numbers, self.cfg.optim, str(self.store.folder))
        elif self.cfg.checkpoint.init_from:
            path = Path(self.cfg.checkpoint.init_from)
            tensors = self.state.tensors()
            numbers = {**load(path, tensors, self.ranks), "added_tokens": 0}
            self._check_continuable(numbers, parent_optim(path) or self.cfg.optim, str(path))
        if numbers is not None:
            self.state.restore(tensors, numbers)
            self.best = dict(numbers.get("best", {}))
            self.added_tokens = numbers.get("added_tokens", 0)
            log.info("continuing at step %d of %d", self.state.step, self.cfg.train.steps)
        config = as_dict(self.cfg)
        self.sinks = Sinks(self.run.path, self.cfg.metrics, config, self.state.step, active=self.ranks.rank == 0)

    def _check_continuable(self, numbers: Mapping[str, Any], optim: OptimConfig, where: str) -> None:
        """A run can get another length only while its learning rate has not begun to depend on the old one."""
        planned, step = numbers["planned_steps"], numbers["step"]
        if planned != self.cfg.train.steps and step > decay_start(optim, planned) and step > 0:
            raise ConfigError(
                f"{where}: step {step} of a {optim.schedule} schedule over {planned} steps is past the start of its decay, so it is no "
                f"prefix of a run of {self.cfg.train.steps}; use optim.schedule=constant, or wsd from a checkpoint before its decay"
            )

    # --- running ----------------------------------------------------------------------------------------------------------------

    def run_to_the_end(self, stop: StopFlag) -> dict[str, Any]:
        """All remaining steps, then the final evaluation and checkpoint."""
        cfg = self.cfg
        quiet = None if self.ranks.rank == 0 else True  # None: only where standard error is no terminal
        bar = tqdm(total=cfg.train.steps, initial=self.state.step, desc=self.run.path.name, unit="step", disable=quiet)
        self._start_interval()
        stream = batches(self.source, "train", cfg.data.batch_size, self.state.step, self.ranks.rank, self.ranks.world)
        with bar, Prefetch(islice(stream, cfg.train.steps - self.state.step)) as prefetched:
            for tokens in self._to_device(prefetched):
                lr = self.step(self.state.step, tokens)
                self._count()
                bar.update()
                if self.state.step % cfg.train.log_period == 0 or self.state.step == cfg.train.steps:
                    bar.set_postfix(self._log(lr), refresh=False)
                self._evaluate_and_save()
                self._stop_if_asked(stop)
        return self._finish()

    def _to_device(self, prefetched: Iterator[tuple[int, np.ndarray]]) -> Iterator[Tensor]:
        for _, batch in prefetched:
            tokens = torch.from_numpy(batch)
            if self.ranks.device.type == "cuda":  # small integers over the bus, widened on the device
                tokens = tokens.pin_memory().to(self.ranks.device, non_blocking=True)
            yield tokens.long()

    def _count(self) -> None:
        self.state.step += 1
        added = self.cfg.data.batch_size * self.cfg.data.seq_len
        self.state.tokens += added
        self.added_tokens += added

    def _start_interval(self) -> None:
        self._interval = (time.perf_counter(), self.state.tokens)

    def _log(self, lr: float) -> dict[str, str]:
        """One training record: losses are means over the finite steps since the last one. The only place that waits for the device."""
        tally, state = self.state.tally, self.state
        loss_sum = self.ranks.sum(tally.loss.clone()) / self.ranks.world
        counts = torch.stack([tally.steps, tally.skipped, tally.in_a_row]).tolist()
        loss, grad_norm = float(loss_sum) / counts[0] if counts[0] else None, float(self.step.norm)
        tally.start_interval()
        seconds = time.perf_counter() - self._interval[0]
        speed = (state.tokens - self._interval[1]) / seconds
        record: dict[str, Any] = {**self._position("train"), "loss": loss}
        if self.floor:
            excess = loss - self.floor.mean if loss is not None else None
            record |= {"bayes_loss": self.floor.mean, "bayes_loss_se": self.floor.se, "excess_loss": excess}
        record |= {"grad_norm": grad_norm, "lr": lr, "skipped_steps": counts[1], "tokens_per_s": speed}
        shape, length = self.model.cfg, self.cfg.data.seq_len
        record |= {name: getattr(flops, name)(shape, length, speed, self.peak) for name in ("mfu_causal", "mfu_palm", "hfu")}
        self.sinks.write(record)
        self.run.summary.update(steps=state.step, tokens=state.tokens, train_loss=loss, skipped_steps=counts[1])
        if counts[2] >= min(self.cfg.train.max_skipped, -(-self.cfg.train.steps // 2)):
            self._fail(f"the gradient was not finite in the last {counts[2]} steps")
        self._start_interval()
        shown = {"loss": f"{loss:.4f}" if loss is not None else "-", "tok/s": f"{speed:,.0f}"}
        return shown | ({"excess": f"{record['excess_loss']:.4f}"} if record.get("excess_loss") is not None else {})

    def _position(self, split: str) -> dict[str, Any]:
        """What every record begins with; ``flops`` are those of this run so far, forward and backward."""
        spent = self.added_tokens * self.flops_per_token
        return {"step": self.state.step, "tokens": self.state.tokens, "flops": spent, "split": split}

    def _fail(self, why: str) -> NoReturn:
        """End as ``nan``; what was saved before stays, and the weights as they are now are saved beside it to look at."""
        self._save(prune=False)
        raise RunFailed(f"{why}, at step {self.state.step}; a lower optim.lr, a longer optim.warmup or optim.clip may help", status="nan")

    def _evaluate_and_save(self) -> None:
        """Periodic work between two steps; its time does not count as training time."""
        cfg, step = self.cfg, self.state.step
        if step == cfg.train.steps:
            return
        began = time.perf_counter()
        before_decay = cfg.optim.schedule == "wsd" and step == decay_start(cfg.optim, cfg.train.steps)
        if before_decay or (cfg.checkpoint.period and step % cfg.checkpoint.period == 0):
            self._save()
        if cfg.eval.period and step % cfg.eval.period == 0:
            self._evaluate()
        self._interval = (self._interval[0] + time.perf_counter() - began, self._interval[1])

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        batch = max(1, self.cfg.train.micro_batch or 1)
        records = evaluate(self.model, self.held_out, batch, self.ranks, self.cfg.train.precision)
        for split, record in records.items():
            self.sinks.write({**self._position(split), **record})
            self.best[split] = min(record["loss"], self.best.get(split, math.inf))
        broken = [split for split, record in records.items() if not math.isfinite(record["loss"])]
        if broken:
            self._fail(f"the loss on {', '.join(broken)} is not finite")
        return records

    def _save(self, prune: bool = True) -> None:
        numbers = {**self.state.numbers(), "planned_steps": self.cfg.train.steps, "best": self.best, "added_tokens": self.added_tokens}
        self.store.save(self.state.step, self.state.tensors(), numbers, prune)

    def _stop_if_asked(self, stop: StopFlag) -> None:
        """End between two steps, with a checkpoint. Several ranks agree at log steps only, since agreeing waits for the device."""
        if self.ranks.world > 1 and self.state.step % self.cfg.train.log_period:
            return
        kind = self.ranks.max(stop.kind)
        if kind and self.state.step < self.cfg.train.steps:
            self._save()
            where = self.run.path
            text = f"saved step {self.state.step} of {self.cfg.train.steps} in {where}; the same command with run_dir={where} continues"
            raise Interrupted(text) if kind == 1 else Requeue(text)

    # --- ending -----------------------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        final = self._evaluate()
        self._save()
        main = final.get("valid", {})
        return {
            **self.run.summary,
            **{
                key: main[key] for key in ("loss", "loss_se", "bayes_loss", "excess_loss", "excess_loss_se", "bits_per_byte") if key in main
            },
            "final": final,
            "best": self.best,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "parameters": sizing.num_params(self.cfg.model),
            "flops": self.added_tokens * self.flops_per_token,
            "peak_memory_bytes": peak_memory(self.ranks.device),
            "checkpoint": str(numbered(self.store.folder)[-1]),
        }


def parent_optim(checkpoint: Path) -> OptimConfig | None:
    """The optimiser config of the run that wrote ``RUN/checkpoints/<step>``, if its config is still there."""
    file = checkpoint.parent.parent / "config.yaml"
    return OptimConfig(**yaml.safe_load(file.read_text())["optim"]) if file.is_file() else None


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's resident peak on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
