"""A data source and a config small enough to train in a second."""

import os
from dataclasses import field

import numpy as np

from src.nanollama.config import RunFolder
from src.nanollama.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    MetricsConfig,
    ModelConfig,
    OptimConfig,
    ProfilerConfig,
    TrainConfig,
    config,
)
from src.nanollama.train.evaluate import HeldOut
from src.nanollama.train.loop import Floor, train

VOCAB = 7


@config
class ToyConfig:
    run_dir: str | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(vocab_size=VOCAB, emb_dim=16, nb_layers=1, nb_heads=2))
    data: DataConfig = field(default_factory=lambda: DataConfig(seq_len=12, batch_size=4))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=12, micro_batch=4, log_period=3, device="cpu"))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(schedule="constant", warmup=3))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(period=4, sequences=5))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=lambda: MetricsConfig(tensorboard=False))
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)


class Counting:
    """Noisy counting modulo VOCAB: learnable in a few steps; a sample depends on its index alone."""

    vocab_size, seq_len = VOCAB, 12

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        rows = []
        for i in range(start, start + count):
            rng = np.random.default_rng([i, len(split)])
            steps = rng.choice([1, 2], p=[0.8, 0.2], size=self.seq_len + 1)
            rows.append((rng.integers(VOCAB) + steps.cumsum()) % VOCAB)
        return np.array(rows, dtype=np.uint8)


ENTROPY = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))  # of every predicted token, given the one before it


class SignalDuringEvaluation:
    """Held-out sequences; this process is sent a signal while it takes its ``at``-th batch of them."""

    def __init__(self, at: int, number: int, count: int = 5) -> None:
        self.tokens, self.at, self.number, self.taken = Counting().batch("valid", 0, count), at, number, 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.taken += 1
        if self.taken == self.at:
            os.kill(os.getpid(), self.number)
        return self.tokens[rows]


def run_toy(path, cfg: ToyConfig, source=None, tokens=None, run: RunFolder | None = None) -> dict:
    """Train in ``path``; returns what would go to result.json."""
    path.mkdir(parents=True, exist_ok=True)
    source = source or Counting()
    tokens = Counting().batch("valid", 0, cfg.eval.sequences) if tokens is None else tokens
    held_out = {"valid": HeldOut(tokens, floor=np.full(len(tokens), ENTROPY))}
    return train(cfg, run or RunFolder(path), source, held_out, Floor(ENTROPY, 0.0))
