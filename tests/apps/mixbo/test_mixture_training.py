"""Trainings on text through their config keys: tokenizer and document masks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from src.apps.mixbo.config import TRAIN
from src.apps.mixbo.corpus import open_domains
from src.apps.mixbo.train import train
from src.nanollama.checkpoint.opened import open_model
from src.nanollama.config import ConfigError, compose, read_result
from src.nanollama.config.main import run_command
from src.nanollama.data.tokenizer import main as make_tokenizer

SMALL = ["model.emb_dim=16", "model.nb_layers=2", "model.nb_heads=2", "data.seq_len=32", "data.batch_size=4", "eval.sequences=6",
         "train.steps=6", "eval.period=3", "checkpoint.period=3", "optim.schedule=constant", "data.held_out=0.4"]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(12):  # documents shorter than a window, so that borders fall into every one
        path = folder / "texts" / ("even" if i % 2 == 0 else "odd") / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{i} and {j * i}, " for j in range(3)))
    pytest.importorskip("tokenizers")
    assert make_tokenizer([str(folder / "texts"), "vocab=270", f"out={folder}/tokenizer.json", f"cache={folder}/cache"]) == 0
    return folder


def run(corpus: Path, run_dir: Path, *overrides: str) -> dict:
    args = [f"data.corpus={corpus}/texts", f"data.cache={corpus}/cache", *SMALL, *overrides]
    assert run_command(TRAIN, train.__wrapped__, [*args, f"run_dir={run_dir}"]) == 0  # type: ignore[attr-defined]
    return read_result(run_dir) or {}


def test_the_reported_loss_sees_no_other_document(corpus, tmp_path) -> None:
    """Against each document's own part of a window, evaluated alone by the plain causal model."""
    result = run(corpus, tmp_path / "run", "data.document_masks=true")
    model, config = open_model(tmp_path / "run")
    cfg = compose(TRAIN, [f"config={tmp_path / 'run' / 'config.yaml'}"])
    rows = open_domains(cfg).held_out["valid/odd"].tokens
    losses = []
    for tokens, documents in rows.astype(np.int64):
        assert documents.max() >= 1
        for document in np.unique(documents[:-1]):
            at = np.flatnonzero(documents[:-1] == document)
            logits = model(torch.from_numpy(tokens[at])[None])[0]
            losses += F.cross_entropy(logits, torch.from_numpy(tokens[at + 1]), reduction="none").tolist()
    assert np.mean(losses) == pytest.approx(result["final"]["valid/odd"]["loss"], abs=1e-5)
    assert config["data"]["document_masks"] is True


def test_masks_change_the_training_and_it_resumes_exactly(corpus, tmp_path) -> None:
    whole = run(corpus, tmp_path / "whole", "data.document_masks=true")
    run(corpus, tmp_path / "half", "data.document_masks=true", "train.steps=3")
    resumed = run(corpus, tmp_path / "half", "data.document_masks=true")
    assert resumed["final"] == whole["final"]
    assert run(corpus, tmp_path / "plain")["final"]["valid/odd"]["loss"] != whole["final"]["valid/odd"]["loss"]


def test_a_corpus_too_short_for_the_sequences_leaves_the_folder_free(corpus, tmp_path) -> None:
    args = [f"data.corpus={corpus}/texts", f"data.cache={corpus}/cache", *SMALL, "data.seq_len=100000", f"run_dir={tmp_path / 'run'}"]
    assert run_command(TRAIN, train.__wrapped__, args) == 2  # type: ignore[attr-defined]
    assert run(corpus, tmp_path / "run", "train.steps=1")["status"] == "ok"


def test_a_tokenizer_is_a_config_key(corpus, tmp_path, capsys) -> None:
    file = corpus / "tokenizer.json"
    result = run(corpus, tmp_path / "run", f"data.tokenizer={file}", "data.seq_len=16")
    config = compose(TRAIN, [f"config={tmp_path / 'run' / 'config.yaml'}"])
    assert config.model.vocab_size == 270
    record = result["final"]["valid/even"]
    per_token = record["loss"] / math.log(2) / record["bits_per_byte"]
    assert 1 < per_token < 8  # bytes
    compressed = json.loads((tmp_path / "run" / "compressors.json").read_text())
    assert compressed["valid/even"]["gzip"] > 0

    from src.nanollama.generate import main as generate

    assert generate([str(tmp_path / "run"), "prompt=2 and", "tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("2 and")


def test_a_tokenizer_that_is_not_there(corpus) -> None:
    with pytest.raises(ConfigError, match="no tokenizer file"):
        compose(TRAIN, [f"data.corpus={corpus}/texts", "data.tokenizer=nowhere.json"])
