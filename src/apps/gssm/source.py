"""GSSM sequences as a data source of the training loop, with their exact floor."""

from __future__ import annotations

import numpy as np

from src.nanollama.train.evaluate import HeldOut
from src.nanollama.train.loop import Floor

from . import graph, kernels
from .config import GssmConfig
from .filter import Filter, bayes_loss
from .sampler import Sampler


class OnFly:
    """Infinite data: sequence i of a split is a function of (train.seed, graph_seed, split, i)."""

    def __init__(self, cfg: GssmConfig) -> None:
        self.graph = graph.build(cfg.gssm, cfg.alpha_X, cfg.alpha_Z)
        self.kernels = kernels.draw(self.graph, cfg.graph_seed)
        self.sampler = Sampler(self.kernels, cfg.train.seed)
        self.filter = Filter(self.kernels)
        self.vocab_size = self.graph.vocab_size
        self.seq_len = cfg.data.seq_len

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """(count, seq_len + 1) tokens: inputs and the targets one to their right."""
        return self.sampler.sample(split, start, count, self.seq_len + 1)

    def held_out(self, sequences: int) -> dict[str, HeldOut]:
        """The validation sequences with the exact Bayes loss of each over its predicted positions."""
        tokens = self.batch("valid", 0, sequences)
        return {"valid": HeldOut(tokens, floor=self.filter.nll(tokens)[:, 1:].mean(axis=1))}

    def floor(self) -> Floor:
        """Expected Bayes loss of the training stream."""
        found = bayes_loss(self.sampler, self.filter, self.seq_len)
        return Floor(found.mean, found.se)
