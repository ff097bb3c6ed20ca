"""The search for the largest batch: never far past the bound, within 5 % of the answer; and once for real."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.config import ROOT, ConfigError, RunFailed, compose
from src.nanollama.config.main import entry_of
from src.nanollama.train.fit_batch import Trial, best, main, measure, memory_bound, parts_of, search
from src.nanollama.train.step import Step


@given(st.integers(0, 10**9), st.integers(1, 10**7), st.integers(1, 5000))
def test_finds_the_largest_batch_to_within_five_percent(base: int, each: int, answer: int) -> None:
    bound = base + each * answer + each // 2
    tried = search(lambda batch: Trial(batch, base + each * batch), bound)
    found = best(tried, bound).batch
    assert found <= answer and answer - found <= max(1, answer // 20)
    assert len(tried) < 25 and max(trial.batch for trial in tried) <= 8 * answer


@given(st.integers(1, 300))
def test_running_out_of_memory_is_a_measurement_too(answer: int) -> None:
    tried = search(lambda batch: Trial(batch, batch if batch <= answer else None), 1 << 40)
    found = best(tried, 1 << 40).batch
    assert found <= answer and answer - found <= max(1, answer // 20)


def test_nothing_fits() -> None:
    with pytest.raises(RunFailed, match="not even one"):
        best(search(lambda batch: Trial(batch, 100), 50), 50)


def test_the_bound_has_a_unit() -> None:
    assert memory_bound("1.5G", "cpu")[0] == 3 << 29
    with pytest.raises(ConfigError, match="memory=8"):
        memory_bound("8", "cpu")


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_measured_has_document_masks_if_the_training_has(masks: bool, monkeypatch) -> None:
    shape = ["model.emb_dim=16", "model.nb_layers=1", "model.nb_heads=1", "data.seq_len=8", "train.device=cpu"]
    cfg = compose(entry_of("src.apps.mixbo.train"), [*shape, f"data.document_masks={str(masks).lower()}"])
    seen: list[torch.Size] = []

    class Watched(Step):
        def __call__(self, step: int, tokens: torch.Tensor) -> float:
            seen.append(tokens.shape)
            return super().__call__(step, tokens)

    monkeypatch.setattr("src.nanollama.train.step.Step", Watched)
    assert measure(parts_of(cfg, 3))["tokens_per_s"] > 0
    assert seen == [(3, 2, 9) if masks else (3, 9)] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without CUDA")
@pytest.mark.parametrize("asked", ["train.mode=cudagraph", "train.device=cuda"])
def test_what_a_training_refuses_is_refused_before_any_trial(asked: str, capsys) -> None:
    assert main(["script=src.apps.gssm.train", "experiment=debug", asked]) == 2
    assert "CUDA" in capsys.readouterr().err


def test_what_is_found_really_fits(tmp_path) -> None:
    argv = ["script=src.apps.gssm.train", "experiment=debug", "model=tiny", "data.seq_len=256", "memory=560M", f"run_dir={tmp_path}"]
    out = subprocess.run(
        [sys.executable, "-m", "src.nanollama.train.fit_batch", *argv], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert out.returncode == 0, out.stderr
    found = json.loads((tmp_path / "fit_batch.json").read_text())
    peaks = {trial["batch"]: trial["peak"] for trial in found["trials"]}
    assert peaks[found["micro_batch"]] == found["peak"] <= 560 << 20 and found["micro_batch"] > 1
    assert any(peak > 560 << 20 for peak in peaks.values()) or found["peak"] > 0.9 * (560 << 20)
