"""Save and load checkpoints with torch.distributed.checkpoint (DCP).

A checkpoint is the folder ``checkpoints/<step>``: DCP's files (tensors only) and ``state.json`` (plain numbers). It is written under a
hidden name and renamed when complete, and renamed before it is deleted, so a folder with a number for a name is always whole. Nothing is
unpickled but DCP's index, through an allow-list (``reader``).
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ..config import ConfigError, RunFailed
from ..config.schema import CheckpointConfig
from ..distributed import Ranks
from .find import numbered
from .reader import SafeReader
from .retention import expired

log = logging.getLogger("nanollama")

OPTIONAL = {"scale", "rng"}
ALONE = "torch.distributed is disabled"
PIN = "awaiting-evaluation"
Tensors = Mapping[str, Any]  # nested dictionaries with tensors as leaves


@contextmanager
def quiet() -> Iterator[None]:
    """DCP warns that a single process is alone; it is meant to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=ALONE)
        yield


class Store:
    """The checkpoints of one run folder. Never deleted: the steps ``kept``, and what holds the file ``PIN``, which waits for evaluation."""

    def __init__(self, run_dir: Path, ranks: Ranks, cfg: CheckpointConfig, kept: Collection[int] = ()) -> None:
        self.folder = run_dir / "checkpoints"
        self.ranks = ranks
        self.cfg = cfg
        self.kept = kept
        self.losses: dict[int, float] = {}  # held-out, by step, of those that were evaluated
        self._writing: Future | None = None
        if cfg.asynchronous:
            warnings.filterwarnings("ignore", message=ALONE)  # a filter that comes and goes would not hold in the writing thread
        if ranks.rank == 0:
            for left in self.folder.glob(".*.partial"):  # of a process that was killed
                shutil.rmtree(left)
        # of its own, so that writing in the background never meets the training's collectives
        self._group = dist.new_group(backend="gloo") if cfg.asynchronous and ranks.world > 1 else None

    def save(self, step: int, tensors: Tensors, numbers: Mapping[str, Any], prune: bool = True, pin: bool = False) -> Path:
        """Write ``checkpoints/<step>`` (collective); with ``prune``, delete what retention lets go. A step saved before stays as it is.

        With ``checkpoint.asynchronous`` returns when the tensors are copied, and waits only for the writing of the save before. Raises
        RunFailed, from here or from ``wait``, where the disk does not take it; no part of it is left then.
        """
        self.wait()
        target = self.folder / f"{step}"
        if target.exists():
            return target
        scratch = self.folder / f".{step}.partial"
        with quiet(), self._whole(scratch):
            if self.ranks.rank == 0:
                scratch.mkdir(parents=True)
                (scratch / "state.json").write_text(json.dumps(dict(numbers)))
                if pin:
                    (scratch / PIN).touch()
            self.ranks.barrier()
            if self.cfg.asynchronous:
                # without a writer of our own DCP copies again, through the stream that the training computes on
                writer = dcp.FileSystemWriter(scratch)
                future = dcp.async_save(dict(tensors), storage_writer=writer, process_group=self._group, no_dist=self.ranks.world == 1)
                assert isinstance(future, Future)
                self._writing = self._then_publish(future, scratch, target, prune)
            else:
                dcp.save(dict(tensors), checkpoint_id=scratch, no_dist=self.ranks.world == 1)
                self._publish(scratch, target, prune)
                self.ranks.barrier()
        return target

    @contextmanager
    def _whole(self, scratch: Path) -> Iterator[None]:
        """What ends the writing leaves no part behind (a full disk has to take ``result.json`` yet) and is raised as what it is: DCP's
        own exception is no Exception, and would pass by all that say how a run ended."""
        try:
            yield
        except BaseException as error:
            if self.ranks.rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
            causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
            if refused := [text for cause in causes if (text := _refused(cause))]:
                raise RunFailed(
                    f"{scratch.with_name(scratch.stem[1:])} could not be written ({min(refused, key=len)}); "
                    "mend that and start again: the run continues from its newest checkpoint"
                ) from error
            if causes == [error]:
                raise
            raise causes[0] from error

    def _then_publish(self, future: Future, scratch: Path, target: Path, prune: bool) -> Future:
        """A future that is done when the checkpoint that ``future`` writes has its name, too, which it gets in that thread."""
        both: Future = Future()

        def finish(done: Future) -> None:
            try:
                with self._whole(scratch):
                    done.result()
                    self._publish(scratch, target, prune)
                both.set_result(None)
            except BaseException as error:
                both.set_exception(error)

        future.add_done_callback(finish)
        return both

    def _publish(self, scratch: Path, target: Path, prune: bool) -> None:
        """Rank 0: every rank has written, so the checkpoint gets its name."""
        if self.ranks.rank == 0:
            os.replace(scratch, target)
            if prune:
                self.prune()

    def wait(self) -> None:
        """Return when nothing is being written any more (collective); raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing:
            with quiet():
                writing.result()
            self.ranks.barrier()

    def close(self) -> None:
        """Return when nothing is being written any more, however the run ends; what goes wrong with it is only logged."""
        writing, self._writing = self._writing, None
        if writing and (error := writing.exception()):
            log.error("%s", error)

    def prune(self) -> None:
        """Delete what retention lets go. Only for rank 0."""
        for step in expired(numbered(self.folder), self.cfg.keep, self.pinned()):
            leaving = self.folder / f".{step}.partial"  # by one rename, since a number for a name means whole
            os.replace(self.folder / f"{step}", leaving)
            shutil.rmtree(leaving)

    def pinned(self) -> set[int]:
        """Steps that stay whatever their age: ``kept``, waiting for evaluation, or the best with ``checkpoint.keep_best``."""
        rated = [step for step in numbered(self.folder) if self.losses.get(step, math.inf) < math.inf]
        best = min(rated, key=self.losses.__getitem__, default=None) if self.cfg.keep_best else None
        return {*self.kept, *self.waiting(), *([best] if best is not None else [])}

    def waiting(self) -> list[int]:
        """Steps whose evaluation has not come in, ascending."""
        return [step for step in numbered(self.folder) if (self.folder / f"{step}" / PIN).exists()]

    def rate(self, step: int, loss: float) -> None:
        """Take note of the held-out loss at a step, and let its checkpoint go when its time comes."""
        self.losses[step] = loss
        (self.folder / f"{step}" / PIN).unlink(missing_ok=True)

    def load_newest(self, tensors: Tensors) -> dict[str, Any]:
        """Fill ``tensors`` in place from the newest readable checkpoint (collective); returns its numbers.

        Unreadable newer ones are set aside as ``.<step>.damaged``, so that their steps can be saved again. Raises RunFailed if none is
        readable, ConfigError if they are of another model.
        """
        damaged: list[int] = []
        for step in reversed(numbered(self.folder)):
            try:
                numbers = _fill(self.folder / f"{step}", tensors, self.ranks)
            except ConfigError:
                raise
            except (Exception, CheckpointException) as error:  # a damaged file can fail in any way; an older one may be whole
                log.warning("checkpoint %s is not readable (%s), trying the one before it", step, type(error).__name__)
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return numbers
        raise RunFailed(f"no checkpoint in {self.folder} is readable; delete the run folder to start over")

    def _set_aside(self, damaged: Collection[int]) -> None:
        self.ranks.barrier()  # nobody looks at them any more
        for step in damaged if self.ranks.rank == 0 else ():
            aside = self.folder / f".{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder / f"{step}", aside)
        self.ranks.barrier()


def _refused(error: BaseException | None) -> str:
    """What the file system said; empty if it was something else. Where the disk fills up in the middle of a file, torch.save says that its
    zip writer (``inline_container``) is not where it should be, and of another rank's error nothing else arrives here."""
    while isinstance(error, RuntimeError):
        before = error.__cause__ or error.__context__
        if before is None and "inline_container" in str(error):
            return f"{error}; is the disk full?"
        error = before
    return error.strerror or str(error) if isinstance(error, OSError) else ""


def load(path: Path, tensors: Tensors, ranks: Ranks) -> dict[str, Any]:
    """Fill ``tensors`` in place from the checkpoint ``path`` (saved on any number of ranks); returns its numbers.

    Raises ConfigError if it is no checkpoint, damaged, or of another model.
    """
    if not (path / "state.json").is_file():
        raise ConfigError(f"{path} is not a checkpoint (no state.json); give a folder such as RUN/checkpoints/1000")
    try:
        return _fill(path, tensors, ranks)
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # a damaged file can fail in any way
        what = f"{type(error).__name__}: a file is missing, cut short or changed"
        raise ConfigError(f"{path} is damaged ({what}); give another checkpoint") from error


def _fill(path: Path, tensors: Tensors, ranks: Ranks) -> dict[str, Any]:
    """``load``; a file that is missing or damaged raises what it likes, and ConfigError means a whole checkpoint of another model."""
    numbers = json.loads((path / "state.json").read_text())
    reader = SafeReader(path)
    stored = reader.read_metadata()
    _check_shapes(path, stored, tensors["model"])
    _check_optimizer(path, stored, tensors.get("optimizer", {}))
    with quiet():
        dcp.load(_stored(tensors, stored), storage_reader=reader, no_dist=ranks.world == 1)
    return numbers


def _stored(tensors: Tensors, stored: Metadata) -> dict[str, Any]:
    """``tensors`` without those optional ones that the checkpoint lacks: of another precision, of fewer ranks, or of another device."""
    return dict(tensors) | {key: _held(tensors[key], key, stored) for key in OPTIONAL & tensors.keys()}


def _held(part: Tensors, where: str, stored: Metadata) -> dict[str, Any]:
    """What of ``part`` the checkpoint has, without branches that it knows nothing of."""
    inside = {name: _held(value, f"{where}.{name}", stored) if isinstance(value, Mapping) else value for name, value in part.items()}
    return {
        name: value
        for name, value in inside.items()
        if (value if isinstance(value, dict) else f"{where}.{name}" in stored.state_dict_metadata)
    }


def _check_shapes(path: Path, stored: Metadata, model: Mapping[str, torch.Tensor]) -> None:
    shapes = {name: tuple(meta.size) for name, meta in stored.state_dict_metadata.items() if isinstance(meta, TensorStorageMetadata)}
    for name, tensor in model.items():
        there = shapes.get(f"model.{name}")
        if there != tuple(tensor.shape):
            raise ConfigError(f"{path} holds another model: {name} is {there or 'absent'} there and {tuple(tensor.shape)} here")


def _check_optimizer(path: Path, stored: Metadata, states: Mapping[str, Mapping[str, Any]]) -> None:
    for name, state in states.items():
        if missing := [key for key in state if f"optimizer.{name}.{key}" not in stored.state_dict_metadata]:
            raise ConfigError(f"{path} was saved by another optimiser: it has no {missing[0]} of {name}; take the optim.name of its run")
