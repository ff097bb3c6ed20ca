"""The loop: learns, records, resumes bit for bit, stops when asked, refuses continuations that would be no prefix."""

import json
import os
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from toy_training import ENTROPY, Counting, ToyConfig, run_toy

from src.nanollama.checkpoint.find import numbered
from src.nanollama.checkpoint.reader import SafeReader
from src.nanollama.checkpoint.store import Store, load, quiet
from src.nanollama.config import ConfigError, Interrupted, Requeue, RunFailed
from src.nanollama.distributed import Ranks
from src.nanollama.metrics.sinks import read_jsonl
from src.nanollama.model.transformer import Transformer
from src.nanollama.train import scale
from src.nanollama.train.state import TrainState

TIMED = ("tokens_per_s", "mfu_causal", "mfu_palm")


def records(path: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in TIMED} for record in read_jsonl(path / "metrics.jsonl")]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Model and optimiser tensors of the newest checkpoint, read without our loading code's target tensors."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    newest = path / "checkpoints" / f"{numbered(path / 'checkpoints')[-1]}"
    reader = SafeReader(newest)
    found = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in reader.read_metadata().state_dict_metadata.items()
        if isinstance(meta, TensorStorageMetadata)
    }
    with quiet():
        dcp.load(found, storage_reader=SafeReader(newest), no_dist=True)
    return found


def same_weights(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class StopAt(Counting):
    """Sends a signal to this process while the batch of a given step is drawn."""

    def __init__(self, step: int, number: int) -> None:
        self.index, self.number = step * 4, number

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        if start == self.index:
            os.kill(os.getpid(), self.number)
        return super().batch(split, start, count)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("unbroken")
    run_toy(path, ToyConfig())
    return path


def test_loss_falls_towards_the_floor_and_is_recorded_against_it(tmp_path) -> None:
    cfg = ToyConfig()
    result = run_toy(
        tmp_path, replace(cfg, train=replace(cfg.train, steps=150), optim=replace(cfg.optim, lr=1e-2), eval=replace(cfg.eval, period=50))
    )
    train = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if r["split"] == "train"]
    assert train[0]["loss"] > 1.5 > 0.8 > train[-1]["loss"] > ENTROPY - 0.1
    assert train[-1]["excess_loss"] == pytest.approx(train[-1]["loss"] - ENTROPY)
    assert {"grad_norm", "lr", "tokens_per_s", "bayes_loss"} <= train[-1].keys()
    assert result["steps"] == 150 and result["tokens"] == 150 * 4 * 12
    assert result["final"]["valid"]["excess_loss"] == pytest.approx(result["loss"] - ENTROPY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("step", [4, 9])
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(step, number, unbroken, tmp_path) -> None:
    with pytest.raises(Interrupted if number == signal.SIGINT else Requeue, match="continues"):
        run_toy(tmp_path, ToyConfig(), StopAt(step, number))
    assert len(list((tmp_path / "checkpoints").iterdir())) > 0
    run_toy(tmp_path, ToyConfig())
    assert records(tmp_path) == records(unbroken)
    assert same_weights(tmp_path, unbroken)


HYBRID = replace(ToyConfig().model, nb_layers=2, mixers=("attn", "ssm"), ssm_state=8)


@pytest.mark.parametrize(
    "cfg",
    [
        ToyConfig(train=replace(ToyConfig().train, precision="fp16")),
        ToyConfig(optim=replace(ToyConfig().optim, name="muon")),
        ToyConfig(model=HYBRID),
    ],
    ids=["fp16", "muon", "hybrid"],
)
def test_whatever_the_state_holds_is_resumed(cfg: ToyConfig, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scale, "INTERVAL", 3)  # so that fp16's scale has moved
    run_toy(tmp_path / "unbroken", cfg)
    with pytest.raises(Requeue):
        run_toy(tmp_path / "resumed", cfg, StopAt(5, signal.SIGTERM))
    run_toy(tmp_path / "resumed", cfg)
    assert records(tmp_path / "resumed") == records(tmp_path / "unbroken")
    assert same_weights(tmp_path / "resumed", tmp_path / "unbroken")


def test_random_draws_go_on_after_a_resume(tmp_path) -> None:
    """Nothing draws in a step yet; a layer that does (dropout) would rely on it."""
    cfg, here = ToyConfig(), Ranks(0, 1, torch.device("cpu"))
    state = TrainState(Transformer(cfg.model), cfg.train, cfg.optim, here)
    torch.rand(3)
    path = Store(tmp_path, here, cfg.checkpoint).save(0, state.tensors(), state.numbers())
    expected = torch.rand(3)
    tensors = state.tensors()
    state.restore(tensors, load(path, tensors, here))
    assert torch.equal(torch.rand(3), expected)


def test_stop_between_two_log_lines_keeps_the_running_mean(unbroken, tmp_path) -> None:
    with pytest.raises(Interrupted):
        run_toy(tmp_path, ToyConfig(), StopAt(4, signal.SIGINT))
    stopped = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert 0 < stopped < 12
    run_toy(tmp_path, ToyConfig())
    assert records(tmp_path) == records(unbroken)


def test_records_after_the_checkpoint_are_dropped_on_resume(unbroken, tmp_path) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    cfg = ToyConfig(checkpoint=replace(ToyConfig().checkpoint, period=6, keep=5))
    fresh = tmp_path / "fresh"
    run_toy(fresh, cfg)
    shutil.rmtree(fresh / "checkpoints" / "12")  # as if the process had been killed after step 12's records and before its checkpoint
    with (fresh / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "torn')
    run_toy(fresh, cfg)
    assert records(fresh) == records(unbroken)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(unbroken, tmp_path, caplog) -> None:
    cfg = ToyConfig(checkpoint=replace(ToyConfig().checkpoint, period=4, keep=3))
    run_toy(tmp_path, cfg)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    for file in (tmp_path / "checkpoints" / "8").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run_toy(tmp_path, cfg)
    assert "checkpoint 8 is not readable" in caplog.text
    assert records(tmp_path) == records(unbroken)
    assert same_weights(tmp_path, unbroken)


def test_no_readable_checkpoint_is_an_error(tmp_path) -> None:
    run_toy(tmp_path, ToyConfig())
    (tmp_path / "checkpoints" / "12" / ".metadata").write_bytes(b"torn")
    for _ in range(2):  # never a silent start from nothing
        with pytest.raises(RunFailed, match="no checkpoint in"):
            run_toy(tmp_path, ToyConfig())


@pytest.fixture
def saved(tmp_path) -> Path:
    """The only checkpoint of a run."""
    run_toy(tmp_path / "run", ToyConfig())
    return tmp_path / "run" / "checkpoints" / "12"


@pytest.mark.parametrize(
    "function",
    ["os mkdir", "posix mkdir", "torch.distributed.checkpoint.filesystem os.mkdir", "torch.distributed.checkpoint.metadata os.mkdir"],
)
def test_hostile_index_is_not_unpickled(function: str, saved, tmp_path) -> None:
    module, name = function.split()  # since protocol 4 a name may have dots
    (saved / ".metadata").write_bytes(b"\x80\x04" + f"c{module}\n{name}\n(V{tmp_path / 'executed'}\ntR.".encode())
    with pytest.raises(RunFailed):
        run_toy(tmp_path / "run", ToyConfig())
    assert not (tmp_path / "executed").exists()


def test_an_index_that_calls_a_tensor_a_pickled_object_is_refused(saved, tmp_path) -> None:
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save(Hostile(), saved / "hostile")
    index = SafeReader(saved).read_metadata()
    index.state_dict_metadata["tally.loss"] = BytesStorageMetadata()
    index.storage_data[MetadataIndex("tally.loss")] = _StorageInfo("hostile", 0, (saved / "hostile").stat().st_size)
    (saved / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(RunFailed):
        run_toy(tmp_path / "run", ToyConfig())
    assert not (tmp_path / "executed").exists()


def test_accumulating_micro_batches_changes_nothing_but_rounding(tmp_path) -> None:
    cfg = ToyConfig()
    whole = run_toy(tmp_path / "whole", cfg)
    parts = run_toy(tmp_path / "parts", replace(cfg, train=replace(cfg.train, micro_batch=1)))
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    norms = [[r["grad_norm"] for r in records(tmp_path / name) if r["split"] == "train"] for name in ("whole", "parts")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_clipping_limits_the_step_and_logs_the_norm_before_it(tmp_path) -> None:
    cfg = ToyConfig()
    free = run_toy(tmp_path / "free", replace(cfg, optim=replace(cfg.optim, clip=None)))
    tight = run_toy(tmp_path / "tight", replace(cfg, optim=replace(cfg.optim, clip=1e-9, eps=1e-2)))
    first = [records(tmp_path / name)[0]["grad_norm"] for name in ("free", "tight")]
    assert min(first) > 1e-3 and tight["loss"] > free["loss"]


def test_nan_loss_ends_the_run(tmp_path) -> None:
    cfg = ToyConfig()
    with pytest.raises(RunFailed) as caught:
        run_toy(tmp_path, replace(cfg, optim=replace(cfg.optim, lr=1e30, clip=None, warmup=0)))
    assert caught.value.status == "nan"


class TestContinuation:
    """A longer run of the same model and data starts from the checkpoint of a shorter one."""

    def longer(self, cfg: ToyConfig, parent: Path, steps: int) -> ToyConfig:
        newest = max((parent / "checkpoints").iterdir(), key=lambda p: int(p.name))
        return replace(cfg, train=replace(cfg.train, steps=steps), checkpoint=replace(cfg.checkpoint, init_from=str(newest)))

    def test_constant_schedule_continues_exactly(self, unbroken, tmp_path) -> None:
        cfg = ToyConfig()
        run_toy(tmp_path / "parent", replace(cfg, train=replace(cfg.train, steps=6)))
        before = json.dumps(records(tmp_path / "parent"))
        result = run_toy(tmp_path / "child", self.longer(cfg, tmp_path / "parent", 12))
        assert same_weights(tmp_path / "child", unbroken)
        assert result["tokens"] == 12 * 48 and result["flops"] == pytest.approx(
            run_toy(tmp_path / "half", replace(cfg, train=replace(cfg.train, steps=6)))["flops"]
        )
        assert json.dumps(records(tmp_path / "parent")) == before

    def test_cosine_is_refused(self, tmp_path) -> None:
        cfg = ToyConfig(optim=replace(ToyConfig().optim, schedule="cosine"))
        run_toy(tmp_path / "parent", cfg)
        (tmp_path / "parent" / "config.yaml").write_text("optim: {schedule: cosine}\n")
        with pytest.raises(ConfigError, match="no prefix"):
            run_toy(tmp_path / "child", self.longer(cfg, tmp_path / "parent", 20))

    @pytest.mark.parametrize(("period", "kept"), [(0, [6, 12]), (2, [6, 10, 12])])
    def test_wsd_continues_from_before_its_decay_only(self, period, kept, tmp_path) -> None:
        saving = replace(ToyConfig().checkpoint, period=period, keep=2)
        cfg = ToyConfig(optim=replace(ToyConfig().optim, schedule="wsd", decay=0.5), checkpoint=saving)
        run_toy(tmp_path / "parent", cfg)
        assert numbered(tmp_path / "parent" / "checkpoints") == kept  # 6 is saved by itself, where the decay begins, and stays
        with pytest.raises(ConfigError, match="before its decay"):
            run_toy(tmp_path / "bad", self.longer(cfg, tmp_path / "parent", 20))
        good = replace(
            self.longer(cfg, tmp_path / "parent", 20), checkpoint=replace(cfg.checkpoint, init_from=str(tmp_path / "parent/checkpoints/6"))
        )
        run_toy(tmp_path / "child", good)
        run_toy(tmp_path / "straight", replace(cfg, train=replace(cfg.train, steps=20)))
        assert same_weights(tmp_path / "child", tmp_path / "straight")

    def test_another_model_is_refused(self, tmp_path) -> None:
        cfg = ToyConfig()
        run_toy(tmp_path / "parent", cfg)
        wider = self.longer(replace(cfg, model=replace(cfg.model, emb_dim=32)), tmp_path / "parent", 20)
        with pytest.raises(ConfigError, match="another model"):
            run_toy(tmp_path / "child", wider)

    def test_another_optimiser_is_refused(self, tmp_path) -> None:
        cfg = ToyConfig()
        run_toy(tmp_path / "parent", cfg)
        other = self.longer(replace(cfg, optim=replace(cfg.optim, name="muon")), tmp_path / "parent", 20)
        with pytest.raises(ConfigError, match=r"another optimiser: it has no \w+ of layers.*optim\.name"):
            run_toy(tmp_path / "child", other)

    @pytest.mark.parametrize("schedule", ["constant", "wsd"])
    def test_a_shorter_run_than_what_is_done_is_refused(self, schedule, tmp_path) -> None:
        cfg = ToyConfig(optim=replace(ToyConfig().optim, schedule=schedule, decay=0.5))
        with pytest.raises(Interrupted):
            run_toy(tmp_path, cfg, StopAt(7, signal.SIGINT))
        done = numbered(tmp_path / "checkpoints")[-1]
        with pytest.raises(ConfigError, match=f"{done} steps are done.*ask for {done} or more"):
            run_toy(tmp_path, replace(cfg, train=replace(cfg.train, steps=done - 1)))

    def test_a_shorter_run_whose_decay_would_have_begun_is_refused(self, tmp_path) -> None:
        cfg = ToyConfig(optim=replace(ToyConfig().optim, schedule="wsd", decay=0.5))
        run_toy(tmp_path / "parent", cfg)
        before = replace(cfg, train=replace(cfg.train, steps=8))
        asked = replace(before, checkpoint=replace(cfg.checkpoint, init_from=f"{tmp_path}/parent/checkpoints/6"))
        with pytest.raises(ConfigError, match="no prefix of a run of 8"):  # where it begins at step 4
            run_toy(tmp_path / "child", asked)

    def test_the_schedule_of_a_linked_checkpoint_is_known(self, tmp_path) -> None:
        cfg = ToyConfig(optim=replace(ToyConfig().optim, schedule="cosine"))
        run_toy(tmp_path / "parent", cfg)
        (tmp_path / "parent" / "config.yaml").write_text("optim: {schedule: cosine}\n")
        (tmp_path / "best").symlink_to(tmp_path / "parent" / "checkpoints" / "12")
        child = ToyConfig(train=replace(cfg.train, steps=20), checkpoint=replace(cfg.checkpoint, init_from=str(tmp_path / "best")))
        with pytest.raises(ConfigError, match="no prefix"):
            run_toy(tmp_path / "child", child)

    def test_missing_checkpoint_is_named(self, tmp_path) -> None:
        cfg = ToyConfig(checkpoint=replace(ToyConfig().checkpoint, init_from=str(tmp_path / "nowhere")))
        with pytest.raises(ConfigError, match="nowhere"):
            run_toy(tmp_path / "child", cfg)
