"""Several processes compute what one computes: DDP and FSDP under torchrun, on CPU through gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks_worker import RUNS, SAME_AS_DDP, from_llama, variant
from test_loop import same_weights
from toy_training import run_toy

from src.nanollama.checkpoint.find import numbered
from src.nanollama.config import ROOT, read_result
from src.nanollama.metrics.sinks import read_jsonl
from src.nanollama.model import hf
from src.nanollama.model.transformer import Transformer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*argv: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    return subprocess.run([*TORCHRUN, *argv], capture_output=True, text=True, timeout=300, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What the worker leaves."""
    folder = tmp_path_factory.mktemp("ranks")
    run_toy(folder / "resumed-by-two", variant(steps=6))
    model = Transformer(variant().model)
    model.init_weights(seed=9)
    hf.save(model, folder / "llama")
    out = torchrun(str(Path(__file__).with_name("ranks_worker.py")), str(folder), cwd=folder)
    assert out.returncode == 0, out.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same trainings in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, cfg in RUNS.items():
        run_toy(folder / name, cfg)
    return folder


def curve(path: Path, key: str = "loss", splits: tuple[str, ...] = ("train", "valid")) -> list[float]:
    return [record[key] for record in read_jsonl(path / "metrics.jsonl") if key in record and record["split"] in splits]


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_follow_the_loss_curve_of_one(name: str, two: Path, alone: Path) -> None:
    tolerance = {"bf16": 2e-2, "muon": 1e-3}.get(name, 2e-6)  # Muon iterates in bf16 whatever the precision
    assert len(curve(two / name)) == 7
    assert curve(two / name) == pytest.approx(curve(alone / name), rel=tolerance)
    assert curve(two / name, "grad_norm") == pytest.approx(curve(alone / name, "grad_norm"), rel=5 * tolerance)
    assert curve(two / name)[-1] < curve(two / name)[0]


@pytest.mark.parametrize("name", SAME_AS_DDP)
def test_other_ways_follow_the_same_curve(name: str, two: Path, alone: Path) -> None:
    assert curve(two / name, splits=("train",)) == pytest.approx(curve(alone / "ddp", splits=("train",)), rel=1e-4)


def test_ranks_save_in_the_background_what_they_save_at_once(two: Path) -> None:
    assert numbered(two / "saved-beside" / "checkpoints") == [4, 8, 12]
    assert same_weights(two / "saved-beside", two / "ddp")


def test_evaluations_beside_two_ranks_land_in_the_same_records(two: Path, alone: Path) -> None:
    found, expected = (
        {r["step"]: r["loss"] for r in read_jsonl(path / "metrics.jsonl") if r["split"] == "valid"}
        for path in (two / "evaluated-beside", alone / "ddp")
    )
    assert found == {step: pytest.approx(expected[step], rel=1e-5) for step in (8, 12)}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_gradients_are_exchanged_once_a_step_however_many_micro_batches(parallel: str, two: Path) -> None:
    found = json.loads((two / "collectives.json").read_text())[parallel]
    once, accumulated = ({operation: count for operation, count in step.items() if "reduce" in operation} for step in found)
    assert once == accumulated and sum(once.values()) > 0


def test_a_signal_to_one_rank_ends_an_evaluation_on_all(two: Path, alone: Path) -> None:
    assert all((two / f"rank-{rank}-requeued-in-evaluation").exists() for rank in (0, 1))
    assert numbered(two / "stopped-in-evaluation" / "checkpoints") == [4] and not curve(two / "stopped-in-evaluation", splits=("valid",))
    run_toy(two / "stopped-in-evaluation", variant())  # between two log lines: the losses of both ranks go on to be counted
    assert curve(two / "stopped-in-evaluation") == pytest.approx(curve(alone / "ddp"), rel=2e-6)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
@pytest.mark.parametrize("key", ["rms/layers.1", "grad_rms/layers.0", "entropy/layers.1.mixer/0"])
def test_every_parallelism_sees_the_same_inside(name: str, key: str, two: Path, alone: Path) -> None:
    found = curve(two / name, key, splits=("probe",))
    assert len(found) == 3 and found == pytest.approx(curve(alone / name, key, splits=("probe",)), rel=1e-5)


def test_a_checkpoint_of_one_process_is_continued_by_two_shards(two: Path, alone: Path) -> None:
    assert curve(two / "resumed-by-two", splits=("train",)) == pytest.approx(curve(alone / "fsdp", splits=("train",)), rel=2e-6)


def test_two_shards_begin_with_the_weights_of_a_hugging_face_folder(two: Path, alone: Path) -> None:
    run_toy(alone / "from-llama", from_llama(two / "llama"))
    assert curve(two / "from-llama") == pytest.approx(curve(alone / "from-llama"), rel=2e-6)
    assert curve(two / "from-llama")[0] != pytest.approx(curve(two / "fsdp")[0], rel=1e-3)


def test_a_checkpoint_of_two_shards_is_continued_by_one_process(two: Path, alone: Path) -> None:
    run_toy(two / "resumed-by-one", variant())
    assert curve(two / "resumed-by-one", splits=("train",)) == pytest.approx(curve(alone / "ddp", splits=("train",)), rel=2e-6)


def test_a_signal_to_one_rank_stops_all_with_one_checkpoint(two: Path, alone: Path) -> None:
    assert all((two / f"rank-{rank}-requeued").exists() for rank in (0, 1))
    (saved,) = (two / "stopped" / "checkpoints").iterdir()
    assert saved.name in ("3", "6")  # ranks agree where they log
    run_toy(two / "stopped", variant())
    assert curve(two / "stopped") == pytest.approx(curve(alone / "ddp"), rel=2e-6)


def test_torchrun_leaves_one_run_folder_and_equals_one_process(tmp_path) -> None:
    small = ["experiment=debug", "model=tiny", "data.seq_len=16", "data.batch_size=4", "eval.sequences=5", "train.steps=20"]
    out = torchrun("-m", "src.apps.gssm.train", *small, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-3000:]
    (run,) = (tmp_path / "runs").iterdir()
    result = read_result(run)
    assert result is not None and result["status"] == "ok" and result["steps"] == 20
    assert {p.name for p in (run / "logs").iterdir()} == {"rank_0.log", "rank_1.log"}
    single = subprocess.run(
        [sys.executable, "-m", "src.apps.gssm.train", *small, f"run_dir={tmp_path / 'single'}"],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert single.returncode == 0, single.stderr
    assert curve(run) == pytest.approx(curve(tmp_path / "single"), rel=1e-4)
