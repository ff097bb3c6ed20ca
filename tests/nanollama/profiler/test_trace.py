"""The heavy profiler leaves a trace that other tools read, and a table in TensorBoard."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from toy_training import ToyConfig, run_toy

from src.nanollama.config.schema import ProfilerConfig, TraceConfig


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    path = tmp_path_factory.mktemp("traced")
    cfg = replace(ToyConfig(), profiler=ProfilerConfig(trace=TraceConfig(active=True, wait=2, steps=2, repeat=2)))
    run_toy(path, replace(cfg, metrics=replace(cfg.metrics, tensorboard=True)))
    return path


def test_each_recording_is_a_chrome_trace_with_the_operators_of_its_steps(traced) -> None:
    files = sorted((traced / "traces").glob("rank0.*.pt.trace.json.gz"))
    assert len(files) == 2
    for file in files:
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        names = [event.get("name", "") for event in events]
        assert sum(name.startswith("ProfilerStep#") for name in names) >= 2
        assert any("aten::mm" in name or "aten::addmm" in name for name in names)


def test_tensorboard_holds_the_table_of_operators_scalars_and_hparams(traced) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(traced / "tb"))
    events.Reload()
    text = events.Tensors("profiler/top_ops/text_summary")
    assert len(text) == 2 and b"| operator | calls |" in text[0].tensor_proto.string_val[0]
    assert [e.step for e in events.Scalars("loss/train")] == [3, 6, 9, 12]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["optim.lr"].number_value == 1e-3 and hparams["train.mode"].string_value == "eager"
    assert events.Scalars("result/loss")[0].value > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_memory_snapshot_lies_beside_the_trace(tmp_path) -> None:
    cfg = replace(ToyConfig(), profiler=ProfilerConfig(trace=TraceConfig(active=True, wait=2, steps=2, memory=True)))
    run_toy(tmp_path, replace(cfg, train=replace(cfg.train, device="cuda")))
    (snapshot,) = (tmp_path / "traces").glob("memory_rank0_step*.pickle")
    assert snapshot.stat().st_size > 0
