"""What every run ends with: accuracy, loss and size, alone and as ratios, in the result and in the records."""

from dataclasses import replace

import pytest
import torch
from toy_training import Counting, ToyConfig, run_toy

from src.nanollama.checkpoint.store import load
from src.nanollama.distributed import Ranks
from src.nanollama.metrics.sinks import chart_values, read_jsonl
from src.nanollama.model.transformer import Transformer
from src.nanollama.train.evaluate import final_metrics


def test_a_run_ends_with_accuracy_and_its_ratios(tmp_path) -> None:
    cfg = ToyConfig()
    cfg = replace(cfg, train=replace(cfg.train, steps=60), optim=replace(cfg.optim, lr=1e-2))
    result = run_toy(tmp_path, cfg)
    model = Transformer(cfg.model)
    state = model.state_dict()
    load(tmp_path / "checkpoints" / "60", {"model": state}, Ranks(0, 1, torch.device("cpu")))
    model.load_state_dict(state)
    tokens = torch.from_numpy(Counting().batch("valid", 0, cfg.eval.sequences).astype("int64"))
    with torch.no_grad():
        accuracy = float((model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]).float().mean())
    parameters = sum(p.numel() for p in model.parameters())
    assert result["final/test_accuracy"] == pytest.approx(accuracy) and accuracy > 0.5
    assert result["final/test_loss"] == result["loss"]
    assert result["final/model_params"] == result["parameters"] == parameters
    assert result["final/param_efficiency"] == pytest.approx(accuracy / (parameters / 100_000))
    assert result["final/accuracy_per_million_params"] == pytest.approx(10 * result["final/param_efficiency"])
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert last["split"] == "final" and all(last[key] == result[key] for key in result if key.startswith("final/"))
    assert chart_values(last)["final/test_accuracy"] == result["final/test_accuracy"]
    run_toy(tmp_path, cfg)  # a finished run started again writes nothing twice
    assert [r["split"] for r in read_jsonl(tmp_path / "metrics.jsonl")].count("final") == 1


def test_several_splits_are_averaged() -> None:
    found = final_metrics({"valid/a": {"loss": 1.0, "accuracy": 0.2}, "valid/b": {"loss": 2.0, "accuracy": 0.4}}, 2_000_000)
    assert found["final/test_loss"] == 1.5 and found["final/test_accuracy"] == pytest.approx(0.3)
    assert found["final/accuracy_per_million_params"] == pytest.approx(0.15)
