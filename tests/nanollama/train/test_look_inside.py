"""``eval.probe``: numbers against a direct computation, at every evaluation, without a trace in the training."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_loop import records, same_weights
from toy_training import Counting, ToyConfig, run_toy

from src.nanollama.checkpoint.store import load
from src.nanollama.config import ConfigError
from src.nanollama.distributed import Ranks
from src.nanollama.metrics.sinks import read_jsonl
from src.nanollama.model.rope import rotate, rotation
from src.nanollama.model.transformer import Transformer
from src.nanollama.train.evaluate import HeldOut
from src.nanollama.train.look_inside import SEQUENCES, look_inside

HERE = Ranks(0, 1, torch.device("cpu"))


def probing(*patterns: str, **more: object) -> ToyConfig:
    cfg = ToyConfig()
    return replace(cfg, eval=replace(cfg.eval, probe=patterns, **more), metrics=replace(cfg.metrics, tensorboard=True))


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probed")
    run_toy(path, probing("layers.*.mixer", "norm", probe_gradients=True))
    return path


def seen(path: Path) -> list[dict]:
    return [record for record in read_jsonl(path / "metrics.jsonl") if record["split"] == "probe"]


def test_the_numbers_are_those_of_a_direct_computation(probed: Path) -> None:
    model = Transformer(ToyConfig().model)
    load(probed / "checkpoints" / "12", {"model": model.state_dict()}, HERE)
    tokens = torch.from_numpy(Counting().batch("valid", 0, SEQUENCES)).long()
    block = model.layers[0]
    x = model.embed(tokens[:, :-1])
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in block.mixer.qkv(block.mixer_norm(x)).chunk(3, dim=-1))
    cos, sin = rotation(torch.arange(12), model.inv_freq, 1.0, torch.float32)
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2) / 8**0.5
    weights = scores.masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf).softmax(-1)
    mixed = block.mixer.out((weights @ v).transpose(1, 2).flatten(2))
    x = x + mixed
    last = model.norm(x + block.ffn(block.ffn_norm(x)))
    loss = F.cross_entropy((last @ model.head.weight.T).flatten(0, 1), tokens[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, (mixed, last))
    entropy = torch.special.entr(weights).sum(-1).mean((0, 2))
    expected = {"rms/layers.0.mixer": mixed, "rms/norm": last, "grad_rms/layers.0.mixer": gradients[0], "grad_rms/norm": gradients[1]}
    numbers = {key: value.square().mean().sqrt().item() for key, value in expected.items()}
    numbers |= {"entropy/layers.0.mixer/0": entropy[0].item(), "entropy/layers.0.mixer/1": entropy[1].item()}
    found = {key: value for key, value in seen(probed)[-1].items() if "/" in key}
    assert found == pytest.approx(numbers, rel=1e-4)


def test_every_evaluation_has_its_record_and_the_training_does_not_notice(probed: Path, tmp_path: Path) -> None:
    assert [record["step"] for record in seen(probed)] == [4, 8, 12]
    run_toy(tmp_path, ToyConfig())
    assert [record for record in records(probed) if record["split"] != "probe"] == records(tmp_path)
    assert same_weights(probed, tmp_path)


def test_a_resumed_run_has_the_records_of_the_unbroken_one(probed: Path, tmp_path: Path) -> None:
    cfg = probing("layers.*.mixer", "norm", probe_gradients=True)
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, period=8, keep=5))
    run_toy(tmp_path, cfg)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    run_toy(tmp_path, cfg)
    assert records(tmp_path) == records(probed)


def test_tensorboard_shows_them_by_statistic_and_module(probed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(probed / "tb"))
    events.Reload()
    shown = events.Scalars("entropy/layers.0.mixer/1")
    assert [event.step for event in shown] == [4, 8, 12]
    assert shown[-1].value == pytest.approx(seen(probed)[-1]["entropy/layers.0.mixer/1"])


def test_a_saved_checkpoint_is_looked_into_too(probed: Path, tmp_path: Path) -> None:
    run_toy(tmp_path, probing("norm", checkpoint=str(probed / "checkpoints" / "12")))
    (record,) = seen(tmp_path)
    assert record["rms/norm"] == seen(probed)[-1]["rms/norm"]
    assert not any(key.startswith("grad_rms") for key in record)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_loses_no_gradient(precision: str, probed: Path) -> None:
    cfg = probing("norm", probe_gradients=True)
    model = Transformer(cfg.model)
    held_out = {"valid": HeldOut(Counting().batch("valid", 0, 3))}
    exact = look_inside(model, cfg, held_out, HERE)["probe"]
    low = look_inside(model, replace(cfg, train=replace(cfg.train, precision=precision)), held_out, HERE)["probe"]
    assert low == pytest.approx(exact, rel=2e-2) and low != exact
    assert all(p.grad is None for p in model.parameters())


def test_compiled_blocks_are_looked_into_too() -> None:
    cfg = probing("layers.*.ffn", "layers.*.mixer")
    model = Transformer(cfg.model)
    held_out = {"valid": HeldOut(Counting().batch("valid", 0, 3))}
    expected = look_inside(model, cfg, held_out, HERE)
    model.layers[0].compile(backend="eager")
    with torch.no_grad():
        model(torch.zeros(4, 12, dtype=torch.int64))
    assert look_inside(model, cfg, held_out, HERE) == expected


def test_an_unknown_module_is_an_error_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers\.7\.mixer; there are embed, layers, layers\.0"):
        run_toy(tmp_path, probing("layers.0", "layers.7.mixer"))
    assert not (tmp_path / "metrics.jsonl").exists()
