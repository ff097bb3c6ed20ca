"""Run folders as a training leaves them, made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

GRAPH = [{"name": "Z", "state_dim": 4, "parents": ["X"]}, {"name": "X", "state_dim": 32, "parents": ["Z"]}]
DOMAINS = {"python": 2.1, "cpp": 2.4, "prose": 2.9, "web": 2.6, "data": 1.9}


def write_run(path: Path, config: dict[str, Any], records: list[dict[str, Any]], result: dict[str, Any] | None, **files: Any) -> Path:
    """A run folder; ``files`` are further JSON files by stem."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "env.json").write_text(json.dumps({"commit": "0123456789abcdef", "dirty": False, "host": "elsewhere", "pid": 1}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for stem, value in {**files, **({"result": result} if result else {})}.items():
        (path / f"{stem}.json").write_text(json.dumps(value))
    return path


@pytest.fixture
def gssm_run() -> Callable[..., Path]:
    """Make a finished GSSM training at a path: losses fall as a power law on their floor."""

    def make(path: Path, floor: float = 1.7, alpha_X: float = 1e-3, steps: int = 300, scale: float = 1.0, **config: Any) -> Path:
        records: list[dict[str, Any]] = []
        for step in range(10, steps + 1, 10):
            excess = scale * 1.75 * (1 + step / 12) ** -0.9
            noisy = excess + 0.03 * math.sin(step * 1.7)
            base = {"step": step, "tokens": step * 4096, "bayes_loss": floor}
            numbers = {"grad_norm": 0.4 + 2 / step, "lr": 3e-3 * min(1, step / 20), "tokens_per_s": 30_000.0 + step}
            records.append({**base, "split": "train", "loss": floor + noisy, "excess_loss": noisy, **numbers})
            if step % 30 == 0:
                errors = {"loss_se": 0.02, "excess_loss_se": 0.004}
                records.append({**base, "split": "valid", "loss": floor + excess, "excess_loss": excess, **errors})
        final = {key: records[-1][key] for key in ("loss", "bayes_loss", "excess_loss")} | {"excess_loss_se": 0.004}
        result = {"status": "ok", "parameters": 812_345, "tokens": steps * 4096, "steps": steps, "wall_s": 81.25, **final}
        cfg = {"name": "gssm", "gssm": GRAPH, "alpha_X": alpha_X, "alpha_Z": 0.125, "graph_seed": 0, **config}
        return write_run(path, cfg, records, result)

    return make


@pytest.fixture
def text_run() -> Callable[[Path], Path]:
    """Make a finished training on five domains of bytes at a path."""

    def make(path: Path) -> Path:
        records: list[dict[str, Any]] = []
        for step in range(10, 301, 10):
            fall = 5 * (1 + step / 20) ** -0.7
            base = {"step": step, "tokens": step * 4096}
            numbers = {"grad_norm": 1.0, "lr": 1e-3, "tokens_per_s": 21_000.0}
            records.append({**base, "split": "train", "loss": (2.4 + fall) * math.log(2), **numbers})
            for domain, end in DOMAINS.items() if step % 30 == 0 else ():
                losses = {"loss": (end + fall) * math.log(2), "loss_se": 0.01, "bits_per_byte": end + fall}
                records.append({**base, "split": f"valid/{domain}", **losses})
        packed = {f"valid/{domain}": {"gzip": end + 0.5, "xz": end + 0.25} for domain, end in DOMAINS.items()}
        result = {"status": "ok", "parameters": 901_000, "tokens": 300 * 4096, "steps": 300, "wall_s": 120.0, "loss": 2.5}
        return write_run(path, {"name": "mixture", "data": {"weights": [0.2] * 5}}, records, result, compressors=packed)

    return make


@pytest.fixture
def difficulty_run() -> Callable[..., Path]:
    """Make the folder of a difficulty measurement at a path."""

    def make(path: Path, floor: float = 1.7, alpha_X: float = 1e-3) -> Path:
        found = {
            "gzip_legacy": 0.748,
            "gzip_normalised": 0.755,
            "unigram_loss": 3.381,
            "bigram_loss": 2.723,
            "bayes_loss": floor,
            "bayes_loss_se": 0.0123,
            "log_vocab": math.log(32),
        }
        config = {"name": "difficulty", "gssm": GRAPH, "alpha_X": alpha_X, "alpha_Z": 0.125, "graph_seed": 0}
        return write_run(path, config, [], {"status": "ok", "wall_s": 3.0}, difficulty=found)

    return make
