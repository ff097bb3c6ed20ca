"""When checkpoints are written, which stay, and evaluation of saved ones."""

import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from traceback import StackSummary

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_loop import StopAt, records, same_weights
from torch.distributed.checkpoint.api import CheckpointException
from toy_training import Counting, SignalDuringEvaluation, ToyConfig, run_toy

from src.nanollama.checkpoint.find import numbered
from src.nanollama.checkpoint.reader import SafeReader
from src.nanollama.checkpoint.store import PIN, Store, load
from src.nanollama.config import ROOT, ConfigError, Interrupted, Requeue, RunFailed, RunFolder
from src.nanollama.config.schema import CheckpointConfig
from src.nanollama.distributed import Ranks
from src.nanollama.launcher.signals import StopFlag
from src.nanollama.metrics.sinks import read_jsonl
from src.nanollama.model.transformer import Transformer
from src.nanollama.train import background, evaluate, loop

HERE = Ranks(0, 1, torch.device("cpu"))


def saving(**checkpoint: object) -> ToyConfig:
    cfg = ToyConfig()
    return replace(cfg, checkpoint=replace(cfg.checkpoint, **checkpoint))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("unbroken")
    run_toy(path, ToyConfig())
    return path


def test_a_checkpoint_written_in_the_background_holds_the_step_it_was_asked_at(unbroken, tmp_path) -> None:
    cfg = saving(asynchronous=True, period=2, keep=10)
    with pytest.raises(Interrupted):
        run_toy(tmp_path, cfg, StopAt(9, signal.SIGINT))
    assert not list((tmp_path / "checkpoints").glob(".*"))  # nothing is left half-written
    for step in numbered(tmp_path / "checkpoints")[-1:]:
        (tmp_path / "checkpoints" / f"{step}" / ".metadata").unlink()  # so that one saved while training went on is taken up
    run_toy(tmp_path, cfg)
    assert records(tmp_path) == records(unbroken) and same_weights(tmp_path, unbroken)


def test_a_background_write_that_fails_is_not_silent(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path, HERE, CheckpointConfig(asynchronous=True))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    store.save(1, {"model": {"w": torch.zeros(3)}}, {})
    with pytest.raises(RunFailed, match=r"checkpoints/1 could not be written \(disk full\)"):
        store.wait()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_was_saved(asynchronous: bool, tmp_path) -> None:
    store = Store(tmp_path, HERE, CheckpointConfig(asynchronous=asynchronous))
    store.save(1, {"model": {"w": torch.zeros(3)}}, {})
    store.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(RunFailed, match=r"checkpoints/2 could not be written \(File too large\)"):
            store.save(2, {"model": {"w": torch.zeros(1 << 18)}}, {})
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in store.folder.iterdir()] == ["1"]
    store.save(2, {"model": {"w": torch.zeros(1 << 18)}}, {})
    store.wait()
    assert numbered(store.folder) == [1, 2]


TORN = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # torch.save's, on a full disk


@pytest.mark.parametrize(
    ("causes", "kind", "said"),
    [
        ([TORN, OSError(28, "No space left on device")], RunFailed, r"checkpoints/1 could not be written \(No space left on device\)"),
        ([TORN], RunFailed, "is the disk full"),
        ([ZeroDivisionError("1/0")], ZeroDivisionError, "1/0"),
        ([KeyboardInterrupt("now")], KeyboardInterrupt, "now"),
    ],
)
def test_what_other_ranks_could_not_write_is_told_as_well(causes: list[BaseException], kind, said: str, tmp_path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise CheckpointException("write", {rank: (cause, StackSummary()) for rank, cause in enumerate(causes)})

    monkeypatch.setattr(dcp, "save", fails)  # the errors come pickled from two processes
    with pytest.raises(kind, match=said):
        Store(tmp_path, HERE, CheckpointConfig()).save(1, {"model": {"w": torch.zeros(1)}}, {})
    assert not list((tmp_path / "checkpoints").iterdir())


class EndsAfter(Counting):
    """Has data for so many steps only."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        if start >= self.steps * count:
            raise RuntimeError("no more data")
        return super().batch(split, start, count)


def test_a_run_that_fails_ends_after_what_it_writes_in_the_background(tmp_path, monkeypatch) -> None:
    def slow(*args: object) -> None:
        time.sleep(0.3)
        publish(*args)

    publish = Store._publish
    monkeypatch.setattr(Store, "_publish", slow)
    with pytest.raises(RuntimeError, match="no more data"):
        run_toy(tmp_path, saving(asynchronous=True, period=4), EndsAfter(4))
    assert numbered(tmp_path / "checkpoints") == [4]


def test_deleting_half_of_a_checkpoint_leaves_none(tmp_path, monkeypatch) -> None:
    def killed(path: Path, **_: object) -> None:
        if path.name == ".1.partial":
            (path / "state.json").unlink()
            raise KeyboardInterrupt

    store = Store(tmp_path, HERE, CheckpointConfig(keep=1))
    store.save(1, {"model": {"w": torch.zeros(3)}}, {})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        store.save(2, {"model": {"w": torch.zeros(3)}}, {})
    assert numbered(store.folder) == [2] and len(list(store.folder.iterdir())) == 2
    Store(tmp_path, HERE, CheckpointConfig())
    assert [path.name for path in store.folder.iterdir()] == ["2"]


def test_what_is_saved_in_the_background_does_not_move_any_more(tmp_path) -> None:
    store = Store(tmp_path, HERE, CheckpointConfig(asynchronous=True))
    weight = torch.zeros(1 << 20)
    path = store.save(1, {"model": {"w": weight}}, {})
    weight.fill_(7)
    store.wait()
    load(path, {"model": {"w": weight}}, HERE)
    assert weight.eq(0).all()


def test_the_best_checkpoint_outlives_newer_ones(tmp_path) -> None:
    store = Store(tmp_path, HERE, CheckpointConfig(keep=1, keep_best=True))
    for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, 1.5)]:
        store.save(step, {"model": {"w": torch.zeros(1)}}, {})
        store.rate(step, loss)
    assert numbered(store.folder) == [20, 40]


def test_a_loss_that_is_not_finite_is_not_the_best(tmp_path) -> None:
    run = loop.Loop(saving(keep=1, keep_best=True), RunFolder(tmp_path), Counting(), {}, None, HERE, StopFlag())
    for step, losses in [(10, (math.nan, 1.0)), (20, (2.0, 2.0)), (30, (3.0, None)), (40, (3.0, 3.0))]:
        run.store.save(step, {"model": {"w": torch.zeros(1)}}, {})
        run._note(step, {"a": {"loss": losses[0]}, "b": {"loss": losses[1]}})
    assert numbered(run.store.folder) == [20, 40] and run.best == {"a": 2.0, "b": 1.0}


def test_keep_best_knows_the_losses_of_before_a_resume(tmp_path) -> None:
    cfg = saving(keep=1, keep_best=True)
    cfg = replace(cfg, optim=replace(cfg.optim, lr=1e-2, warmup=0), train=replace(cfg.train, steps=12))
    run_toy(tmp_path, cfg)
    run_toy(tmp_path, replace(cfg, train=replace(cfg.train, steps=24)))
    losses = {r["step"]: r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl") if r["split"] == "valid"}
    assert set(losses) == {4, 8, 12, 16, 20, 24}
    assert numbered(tmp_path / "checkpoints") == sorted({min(losses, key=losses.__getitem__), 24})


def test_a_pinned_checkpoint_stays_until_it_is_rated(tmp_path) -> None:
    store = Store(tmp_path, HERE, CheckpointConfig(keep=1))
    for step in (10, 20, 30):
        store.save(step, {"model": {"w": torch.zeros(1)}}, {}, pin=step < 30)
    assert numbered(store.folder) == [10, 20, 30] and store.waiting() == [10, 20]
    store.rate(10, 1.0)
    store.prune()
    assert numbered(store.folder) == [20, 30]


def test_an_evaluation_that_fails_comes_after_the_save_and_is_made_up_for(unbroken, tmp_path, monkeypatch) -> None:
    cfg = saving(period=4)

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loop, "evaluate", fails)
    with pytest.raises(MemoryError):
        run_toy(tmp_path, cfg)
    assert numbered(tmp_path / "checkpoints") == [4]
    monkeypatch.setattr(loop, "evaluate", evaluate.evaluate)
    run_toy(tmp_path, cfg)
    assert records(tmp_path) == records(unbroken)


@pytest.mark.parametrize(("batch", "step"), [(2, 4), (12, 12)])  # five batches an evaluation: the first one, and the final one
def test_a_signal_during_an_evaluation_ends_it_and_a_resume_repeats_it(batch: int, step: int, tmp_path) -> None:
    cfg = replace(ToyConfig(), train=replace(ToyConfig().train, micro_batch=1))
    tokens = SignalDuringEvaluation(batch, signal.SIGTERM)
    with pytest.raises(Requeue, match=f"saved step {step} of 12"):
        run_toy(tmp_path / "stopped", cfg, tokens=tokens)
    assert tokens.taken == batch and numbered(tmp_path / "stopped" / "checkpoints") == [step]
    run_toy(tmp_path / "stopped", cfg)
    run_toy(tmp_path / "straight", cfg)
    assert records(tmp_path / "stopped") == records(tmp_path / "straight")


def test_a_signal_stops_the_evaluation_of_a_saved_checkpoint(unbroken, tmp_path) -> None:
    cfg = replace(ToyConfig(), eval=replace(ToyConfig().eval, checkpoint=str(unbroken / "checkpoints" / "12")))
    tokens = SignalDuringEvaluation(1, signal.SIGUSR1)
    with pytest.raises(Requeue, match="not evaluated yet"):
        run_toy(tmp_path, cfg, tokens=tokens)
    assert tokens.taken == 1


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it is meant to outlive the training
def test_a_signal_ends_the_wait_for_evaluations_which_a_resume_takes_in(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(background.sys.modules["__main__"], "__spec__", ModuleSpec("toy_evaluation", None))
    monkeypatch.setenv("STOP_TRAINING", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{Path(__file__).parent}")
    cfg = ToyConfig(eval=replace(ToyConfig().eval, period=8, asynchronous=True), checkpoint=CheckpointConfig(keep=1))
    with pytest.raises(Requeue, match="saved step 12 of 12"):
        run_toy(tmp_path, cfg)
    assert (tmp_path / "checkpoints" / "8" / PIN).exists()
    run_toy(tmp_path, cfg)
    assert [(r["split"], r["step"]) for r in records(tmp_path) if r["split"] != "train"] == [("valid", 12), ("final", 12), ("valid", 8)]
    assert numbered(tmp_path / "checkpoints") == [12]


def test_starting_a_finished_run_again_changes_no_record(tmp_path) -> None:
    first = run_toy(tmp_path, ToyConfig())
    before = records(tmp_path)
    again = run_toy(tmp_path, ToyConfig())
    assert records(tmp_path) == before and again["final"] == first["final"]


def test_a_saved_checkpoint_is_evaluated_without_training(tmp_path) -> None:
    trained = run_toy(tmp_path / "run", ToyConfig())
    cfg = ToyConfig(eval=replace(ToyConfig().eval, checkpoint=str(tmp_path / "run" / "checkpoints" / "12")))
    found = run_toy(tmp_path / "eval", cfg)
    assert found["final"] == trained["final"] and found["loss"] == trained["loss"]
    assert (found["steps"], found["tokens"], found["flops"]) == (12, trained["tokens"], trained["flops"])
    assert not (tmp_path / "eval" / "checkpoints").exists()
    with pytest.raises(ConfigError, match="not a checkpoint"):
        run_toy(tmp_path / "bad", replace(cfg, eval=replace(cfg.eval, checkpoint=str(tmp_path))))


def test_a_saved_checkpoint_that_is_nan_is_recorded_as_json(tmp_path) -> None:
    cfg = ToyConfig()
    weights = {name: torch.full_like(w, math.nan) for name, w in Transformer(cfg.model).state_dict().items()}
    path = Store(tmp_path, HERE, cfg.checkpoint).save(1, {"model": weights}, {"step": 1, "tokens": 48, "flops": 1})
    run_toy(tmp_path / "eval", replace(cfg, eval=replace(cfg.eval, checkpoint=str(path))))
    assert [record["loss"] for record in records(tmp_path / "eval")] == [None]


def spoil(checkpoint: Path, damage: str) -> None:
    shard = next(checkpoint.glob("*.distcp"))
    if damage == "missing shard":
        shard.unlink()
    elif damage == "missing index":
        (checkpoint / ".metadata").unlink()
    elif damage == "no state":
        (checkpoint / "state.json").unlink()
    elif damage == "state torn":
        (checkpoint / "state.json").write_text('{"step": 1')
    elif damage == "shard torn":
        shard.write_bytes(shard.read_bytes()[:100])
    elif damage == "a bit flipped":
        content = bytearray(shard.read_bytes())
        parts = SafeReader(checkpoint).read_metadata().storage_data
        stored = next(part for index, part in parts.items() if index.fqn == "model.embed.weight")
        with zipfile.ZipFile(io.BytesIO(content[stored.offset : stored.offset + stored.length])) as tensor:
            numbers = tensor.read(next(name for name in tensor.namelist() if name.endswith("/data/0")))
        content[content.index(numbers) + len(numbers) // 2] ^= 1
        shard.write_bytes(content)
    else:
        shard.write_bytes(bytes(shard.stat().st_size))


DAMAGES = ["missing shard", "missing index", "no state", "state torn", "shard torn", "a bit flipped", "shard of zeros"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_damage_falls_back(damage: str, unbroken, tmp_path, caplog) -> None:
    cfg = saving(period=4, keep=3)
    run_toy(tmp_path, cfg)
    newest = tmp_path / "checkpoints" / "12"
    spoil(newest, damage)
    assert Path(run_toy(tmp_path, cfg)["checkpoint"]).name == "12"
    assert "checkpoint 12 is not readable" in caplog.text
    assert records(tmp_path) == records(unbroken)
    assert same_weights(tmp_path, unbroken)  # a checkpoint 12 that can be read
    assert (newest.parent / ".12.damaged").is_dir()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_given_by_name_is_wrong_input(damage: str, unbroken, tmp_path) -> None:
    given = tmp_path / "checkpoints" / "12"
    shutil.copytree(unbroken / "checkpoints" / "12", given)
    spoil(given, damage)
    for cfg in (saving(init_from=str(given)), replace(ToyConfig(), eval=replace(ToyConfig().eval, checkpoint=str(given)))):
        with pytest.raises(ConfigError, match=r"12 is (damaged|not a checkpoint)"):  # never tried with one that nobody asked for
            run_toy(tmp_path / "run", cfg)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_half_written_checkpoint_is_not_seen(tmp_path) -> None:
    cfg = saving(period=4, keep=3)
    run_toy(tmp_path, cfg)
    (tmp_path / "checkpoints" / "12").rename(tmp_path / "checkpoints" / ".16.partial")
    assert run_toy(tmp_path, cfg)["steps"] == 12
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "4", "8"]  # it would have taken room for ever


def gssm(*more: str) -> subprocess.CompletedProcess:
    small = ["experiment=debug", "model=tiny", "data.seq_len=16", "data.batch_size=4", "eval.sequences=5", "eval.period=10"]
    argv = [sys.executable, "-m", "src.apps.gssm.train", *small, "train.steps=30", "checkpoint.keep=1", *more]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_evaluations_in_the_background_land_in_the_same_records(tmp_path) -> None:
    probing = "eval.probe=[layers.*.mixer]"
    assert gssm(f"run_dir={tmp_path / 'inline'}", probing).returncode == 0
    out = gssm(f"run_dir={tmp_path / 'beside'}", probing, "eval.asynchronous=true")
    assert out.returncode == 0, out.stderr
    found, expected = (
        sorted((r for r in read_jsonl(tmp_path / name / "metrics.jsonl") if r["split"] in ("valid", "probe")), key=lambda r: r["step"])
        for name in ("beside", "inline")
    )
    assert [(r["step"], r["split"]) for r in found] == [(step, split) for step in (10, 20, 30) for split in ("valid", "probe")]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and list(a.values())[4:] == pytest.approx(list(b.values())[4:]) and a["flops"] == b["flops"]
    assert numbered(tmp_path / "beside" / "checkpoints") == [30]  # evaluated ones have gone
    best = [json.loads((tmp_path / name / "result.json").read_text())["best"] for name in ("beside", "inline")]
    assert best[0] == pytest.approx(best[1])


def test_a_failed_evaluation_keeps_its_checkpoint_and_says_so(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(background.sys.modules["__main__"], "__spec__", ModuleSpec("src.nanollama.no_such_command", None))
    cfg = ToyConfig(eval=replace(ToyConfig().eval, asynchronous=True), checkpoint=replace(ToyConfig().checkpoint, keep=1))
    run_toy(tmp_path, cfg)
    assert "evaluation of checkpoint 4 failed" in caplog.text
    assert numbered(tmp_path / "checkpoints") == [4, 8, 12]
    assert all((tmp_path / "checkpoints" / s / PIN).exists() for s in ("4", "8"))


def test_a_resumed_run_leaves_the_evaluation_of_its_checkpoint_to_others(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(background.sys.modules["__main__"], "__spec__", ModuleSpec("src.nanollama.no_such_command", None))
    cfg = ToyConfig(eval=replace(ToyConfig().eval, asynchronous=True))
    run_toy(tmp_path, cfg)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    run_toy(tmp_path, cfg)
    assert (tmp_path / "checkpoints" / "8" / PIN).exists()
    assert [record["step"] for record in records(tmp_path) if record["split"] == "valid"] == [12]


def test_a_checkpoint_of_another_device_has_no_random_state_for_this_one_and_loads(tmp_path) -> None:
    store = Store(tmp_path, HERE, CheckpointConfig())
    path = store.save(1, {"model": {"w": torch.ones(3)}, "rng": {"0": {"cpu": torch.full((4,), 5)}}}, {"step": 1})
    here = {"model": {"w": torch.zeros(3)}, "rng": {"0": {"cpu": torch.zeros(4, dtype=torch.int64), "cuda": torch.zeros(4)}}}
    assert load(path, here, HERE) == {"step": 1}
    assert here["model"]["w"].eq(1).all() and here["rng"]["0"]["cpu"].eq(5).all()
