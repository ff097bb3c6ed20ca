"""The training loop of every app: step, log, evaluate, save, stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint.find import config_file, numbered
from ..checkpoint.store import Store, load
from ..config import ConfigError, RunFailed, RunFolder
from ..config.folder import read_yaml
from ..config.schema import OptimConfig
from ..data.prefetch import Prefetch, batches
from ..data.source import DataSource
from ..distributed import Ranks, ranks
from ..launcher.signals import StopFlag, stop_flag, stopped
from ..metrics.sinks import read_jsonl
from ..model import hf, probe, sizing
from ..model.transformer import Transformer
from ..profiler import flops, memory
from ..profiler.trace import Tracer
from .background import Background
from .evaluate import HeldOut, evaluate, final_metrics
from .journal import Journal
from .look_inside import look_inside
from .resolve import Training
from .saved import evaluate_saved, main_split
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
        if cfg.eval.checkpoint:
            return evaluate_saved(cfg, run, held_out, here, stop)
        loop = Loop(cfg, run, source, held_out, floor, here, stop)
        try:
            loop.restore()
            return loop.run_to_the_end()
        finally:
            loop.close()


class Loop:
    """The parts of one training and the order in which they work."""

    def __init__(
        self,
        cfg: Training,
        run: RunFolder,
        source: DataSource,
        held_out: Mapping[str, HeldOut],
        floor: Floor | None,
        here: Ranks,
        stop: StopFlag,
    ) -> None:
        self.cfg, self.run, self.source, self.held_out, self.floor, self.ranks, self.stop = cfg, run, source, held_out, floor, here, stop
        check_mode(cfg, here)
        self.model = Transformer(cfg.model).to(here.device)
        self.model.init_weights(cfg.train.seed)
        probe.matching(self.model, cfg.eval.probe)
        here.shard(self.model, self.model.layers, cfg.train.parallel)
        self.state = TrainState(self.model, cfg.train, cfg.optim, here)
        self.journal = Journal(cfg, run, here)
        self.step = Step(self.state, cfg.train, cfg.optim, here, self.journal.clock.lap)
        self.continuable = decay_start(cfg.optim, cfg.train.steps) if cfg.optim.schedule == "wsd" else None  # where longer runs start
        self.store = Store(run.path, here, cfg.checkpoint, kept=() if self.continuable is None else (self.continuable,))
        self.background = Background(cfg, self.store) if cfg.eval.asynchronous and here.rank == 0 else None
        self.flops_per_token = flops.training(self.model.cfg, cfg.data.seq_len)
        self.best: dict[str, float] = {}  # lowest loss so far, by split
        self.evaluated: set[int] = set()
        self.added_tokens = 0  # by this run; a continued one does not count its parent's

    def close(self) -> None:
        """Finish what is being written, and say how far the run came, however it ends."""
        self._sum_up()
        self.journal.close()
        self.store.close()

    # --- starting ---------------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take up this folder's newest checkpoint, or what ``checkpoint.init_from`` names; open the journal at that step."""
        numbers: dict[str, Any] | None = None
        if numbered(self.store.folder):
            tensors = self.state.tensors()
            numbers = self.store.load_newest(tensors)
            self._check_continuable(numbers, self.cfg.optim, str(self.store.folder))
        elif self.cfg.checkpoint.init_from:
            path = Path(self.cfg.checkpoint.init_from)
            if hf.is_llama(path):
                hf.load_into(self.model, path)
            else:
                tensors = self.state.tensors()
                numbers = {**load(path, tensors, self.ranks), "added_tokens": 0}
                self._check_continuable(numbers, parent_optim(path) or self.cfg.optim, str(path))
        if numbers is not None:
            self.state.restore(tensors, numbers)
            self.best = dict(numbers.get("best", {}))
            self.added_tokens = numbers.get("added_tokens", 0)
            log.info("continuing at step %d of %d", self.state.step, self.cfg.train.steps)
        self.journal.open(self.state.step)
        self._remember_evaluations()

    def _remember_evaluations(self) -> None:
        """Those of the records that stayed: a checkpoint is older than the evaluations of its own step. Every rank has to know."""
        file = self.run.path / "metrics.jsonl"
        self.ranks.barrier()
        found: dict[int, dict[str, Any]] = {}
        for record in read_jsonl(file) if file.exists() else []:
            if record["split"] not in ("train", "final") and record["step"] <= self.state.step:
                found.setdefault(record["step"], {})[record["split"]] = record
        for step, records in found.items():
            self._note(step, records)

    def _check_continuable(self, numbers: Mapping[str, Any], optim: OptimConfig, where: str) -> None:
        """A run can get another length only while its learning rate has not begun to depend on the old one."""
        planned, step, asked = numbers["planned_steps"], numbers["step"], self.cfg.train.steps
        if step > asked:
            raise ConfigError(f"{where}: {step} steps are done, train.steps = {asked} asks for fewer; ask for {step} or more")
        if planned != asked and step > min(decay_start(optim, planned), decay_start(optim, asked)) and step > 0:
            raise ConfigError(
                f"{where}: step {step} of a {optim.schedule} schedule over {planned} steps is past the start of its decay, so it is no "
                f"prefix of a run of {asked}; use optim.schedule=constant, or wsd from a checkpoint before its decay"
            )

    # --- running ----------------------------------------------------------------------------------------------------------------

    def run_to_the_end(self) -> dict[str, Any]:
        """All remaining steps, then the final checkpoint and evaluation."""
        cfg, state, clock = self.cfg, self.state, self.journal.clock
        quiet = None if self.ranks.rank == 0 else True  # None: only where standard error is no terminal
        bar = tqdm(total=cfg.train.steps, initial=state.step, desc=self.run.path.name, unit="step", disable=quiet)
        stream = batches(self.source, "train", cfg.data.batch_size, state.step, self.ranks.rank, self.ranks.world)
        tracer = Tracer(self.run.path, cfg.profiler.trace, self.ranks.rank, self.ranks.device)
        left_to_others = cfg.eval.asynchronous and state.step in self.store.waiting()
        if self._evaluation_is_due() and not left_to_others:  # the run ended between saving and evaluating
            self._evaluate()
        with bar, tracer, Prefetch(islice(stream, cfg.train.steps - state.step)) as prefetched:
            self.journal.start_interval(state.tokens)
            for tokens in self._to_device(prefetched):
                clock.lap("data")
                lr = self.step(state.step, tokens)
                self._count()
                bar.update()
                if state.step % cfg.train.log_period == 0 or state.step == cfg.train.steps:
                    bar.set_postfix(self._log(lr), refresh=False)
                self._save_and_evaluate()
                tracer.step(state.step)
                if self.ranks.world == 1 or state.step % cfg.train.log_period == 0:  # agreeing makes ranks wait for each other
                    self._stop_if_asked()
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
        self.journal.count_step()

    def _log(self, lr: float) -> dict[str, str]:
        """One training record: losses are means over the finite steps since the last one. The only place that waits for the device."""
        tally = self.state.tally
        tally.average(self.ranks)
        counts = torch.stack([tally.steps, tally.skipped, tally.in_a_row]).tolist()
        loss, grad_norm = float(tally.loss) / counts[0] if counts[0] else None, float(self.step.norm)
        tally.start_interval()
        record: dict[str, Any] = {**self._position(), "split": "train", "loss": loss}
        if self.floor:
            excess = loss - self.floor.mean if loss is not None else None
            record |= {"bayes_loss": self.floor.mean, "bayes_loss_se": self.floor.se, "excess_loss": excess}
        record |= {"grad_norm": grad_norm, "lr": lr, "skipped_steps": counts[1]}
        record = self.journal.interval(record)
        self._sum_up(train_loss=loss, skipped_steps=counts[1])
        if counts[2] >= min(self.cfg.train.max_skipped, -(-self.cfg.train.steps // 2)):
            self._fail(f"the gradient was not finite in the last {counts[2]} steps")
        self._take_in(self.background.poll() if self.background else [])
        shown = {"loss": f"{loss:.4f}" if loss is not None else "-", "tok/s": f"{record['tokens_per_s']:,.0f}"}
        return shown | ({"excess": f"{record['excess_loss']:.4f}"} if record.get("excess_loss") is not None else {})

    def _position(self) -> dict[str, Any]:
        """What every record begins with; ``flops`` are those of this run so far, forward and backward."""
        spent = self.added_tokens * self.flops_per_token
        return {"step": self.state.step, "tokens": self.state.tokens, "flops": spent}

    def _sum_up(self, **more: Any) -> None:
        """What ``result.json`` is to say of the run so far, also if it ends badly."""
        position = self._position()
        self.run.summary.update(steps=position["step"], tokens=position["tokens"], flops=position["flops"], **more)

    def _fail(self, why: str) -> NoReturn:
        """End as ``nan``; what was saved before stays, and the weights as they are now are saved beside it to look at."""
        self._save(prune=False)
        self.store.wait()
        raise RunFailed(f"{why}, at step {self.state.step}; a lower optim.lr, a longer optim.warmup or optim.clip may help", status="nan")

    def _evaluation_is_due(self) -> bool:
        period, step = self.cfg.eval.period, self.state.step
        return bool(period and step and step % period == 0 and step < self.cfg.train.steps and step not in self.evaluated)

    def _save_and_evaluate(self) -> None:
        """Periodic work between two steps, in this order, so that an evaluation that fails loses nothing."""
        cfg, step = self.cfg, self.state.step
        if step == cfg.train.steps:
            return
        evaluating, beside = self._evaluation_is_due(), cfg.eval.asynchronous
        periodic = cfg.checkpoint.period and step % cfg.checkpoint.period == 0
        saving = step == self.continuable or periodic or (evaluating and (beside or cfg.checkpoint.keep_best))
        if saving:
            self._save(pin=evaluating and beside)
        if evaluating and not beside:
            self._evaluate()
        if saving or evaluating:
            self.journal.clock.lap("other")

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        """On the held-out splits; recorded unless it was before (when a finished run is started again)."""
        records = evaluate(self.model, self.held_out, self.cfg.train, self.ranks, self._stop_if_asked)
        if self.state.step not in self.evaluated:
            self._record(self._position(), {**records, **look_inside(self.model, self.cfg, self.held_out, self.ranks)})
        broken = [split for split, record in records.items() if not math.isfinite(record["loss"])]
        if broken:
            self._fail(f"the loss on {', '.join(broken)} is not finite")
        return records

    def _record(self, position: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down an evaluation."""
        for split, record in records.items():
            self.journal.write({**position, "split": split, **record})
        self._note(position["step"], records)

    def _note(self, step: int, records: Mapping[str, Mapping[str, Any]]) -> None:
        self.evaluated.add(step)
        found = {split: record["loss"] for split, record in records.items() if "loss" in record}
        losses = {split: loss if loss is not None and math.isfinite(loss) else math.inf for split, loss in found.items()}
        self.best |= {split: min(loss, self.best.get(split, math.inf)) for split, loss in losses.items() if loss < math.inf}
        if losses and self.ranks.rank == 0:
            self.store.rate(step, sum(losses.values()) / len(losses))

    def _take_in(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Results of evaluations in the background."""
        for result in results:
            self._record({key: result[key] for key in ("step", "tokens", "flops")}, {**result["final"], **result["probed"]})

    def _save(self, prune: bool = True, pin: bool = False) -> None:
        self.state.tally.average(self.ranks)
        flops_so_far = self._position()["flops"]
        numbers = {"planned_steps": self.cfg.train.steps, "best": self.best, "added_tokens": self.added_tokens, "flops": flops_so_far}
        self.store.save(self.state.step, self.state.tensors(), {**self.state.numbers(), **numbers}, prune, pin)

    def _stop_if_asked(self) -> None:
        """End with a checkpoint, between two steps or two batches of an evaluation; all ranks have to be at the same place."""
        if kind := self.ranks.max(self.stop.kind):
            self._save()
            self.store.wait()
            raise self._stopped(kind)

    def _stopped(self, kind: int) -> Exception:
        where = self.run.path
        saved = f"saved step {self.state.step} of {self.cfg.train.steps} in {where}"
        return stopped(kind, f"{saved}; the same command with run_dir={where} continues")

    # --- ending -----------------------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        self._save()
        evaluated_before = self.state.step in self.evaluated
        final = self._evaluate()
        parameters = sizing.num_params(self.cfg.model)
        metrics = final_metrics(final, parameters)
        if not evaluated_before:
            self.journal.write({**self._position(), "split": "final", "loss": metrics["final/test_loss"], **metrics})
        self.store.wait()
        if self.background:
            self._take_in(self.background.drain(self.stop))
            if self.stop.kind and self.background.running:
                raise self._stopped(self.stop.kind)
        if self.ranks.rank == 0:
            self.store.prune()
        result = {
            **self.run.summary,
            **main_split(final),
            "final": final,
            "best": self.best,
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "parameters": parameters,
            **metrics,
            "flops": self._position()["flops"],
            "peak_memory_bytes": memory.peak(self.ranks.device),
            "checkpoint": str(numbered(self.store.folder)[-1]),
        }
        self.journal.finish(result)
        return result


def parent_optim(checkpoint: Path) -> OptimConfig | None:
    """The optimiser config of the run that wrote ``RUN/checkpoints/<step>``, if its config is still there."""
    file = config_file(checkpoint)
    return OptimConfig(**read_yaml(file)["optim"]) if file.is_file() else None
