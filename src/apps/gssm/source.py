"""GSSM sequences as data sources of the training loop, with their exact floor."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.nanollama.config import ConfigError
from src.nanollama.config.ranks import world_size
from src.nanollama.data.counter import WORDS, random_words
from src.nanollama.data.mixture import Mixture
from src.nanollama.data.source import DataSource, check_split
from src.nanollama.train.evaluate import HeldOut, standard_error
from src.nanollama.train.loop import Floor

from . import files, graph, kernels
from .config import GssmConfig, domain
from .estimate import bounds
from .filter import Filter, bayes_loss, work
from .sampler import Sampler

log = logging.getLogger("nanollama")

FLOOR_SEQUENCES = (8, 256)  # least and most sequences that the floor of the training stream is averaged over
FLOOR_WORK = 1e10  # multiplications spent on it: some 20 seconds of one core
BOUND_SEQUENCES = 16  # that bounds are averaged over where there is no exact filter
SLOW = 1e11  # multiplications of the filter from which on it is worth a word


class Law:
    """The distribution that a config describes: its kernels, a sampler, and the exact filter where there is one."""

    def __init__(self, cfg: GssmConfig) -> None:
        self.graph = graph.build(cfg.gssm, cfg.alpha_X, cfg.alpha_Z)
        self.kernels = kernels.draw(self.graph, cfg.graph_seed)
        self.sampler = Sampler(self.kernels, cfg.train.seed)
        self.seq_len = cfg.data.seq_len
        self.threads = max(1, (os.cpu_count() or 1) // world_size())
        self.filter: Filter | None = None
        try:
            self.filter = Filter(self.kernels, threads=self.threads)
        except ConfigError as error:
            log.warning("%s; the result says between which bounds the floor lies", error)

    @cached_property
    def floor_facts(self) -> dict[str, Any]:
        """How the floor is known, for ``result.json``: by the exact filter, or between two estimated bounds, or not at all and why not."""
        if self.filter is not None:
            return {"floor": "exact filter"}
        try:
            found = bounds(self.sampler, self.seq_len, BOUND_SEQUENCES, threads=self.threads)
        except ConfigError as error:
            return {"floor": f"none ({error})"}
        facts = {"bayes_lower": found.lower, "bayes_lower_se": found.lower_se, "bayes_upper": found.upper, "bayes_upper_se": found.upper_se}
        return {"floor": found.name, **facts}

    @property
    def floor_sequences(self) -> int:
        """How many sequences the floor of the training stream is averaged over."""
        least, most = FLOOR_SEQUENCES
        return int(min(most, max(least, FLOOR_WORK / (work(self.graph) * self.seq_len))))

    def losses(self, tokens: np.ndarray) -> np.ndarray | None:
        """Bayes-optimal loss of each sequence over its predicted positions, (N,) nats per token, or None."""
        if self.filter is None:
            return None
        multiplications = work(self.graph) * tokens.size
        if multiplications > SLOW:
            seconds = multiplications * 2e-9
            log.info("filtering %d sequences over %d joint states takes about %.0f s", len(tokens), self.graph.nb_states, seconds)
        return self.filter.nll(tokens)[:, 1:].mean(axis=1)


class OneLaw(ABC):
    """Sequences of one law, wherever they come from."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.vocab_size, self.seq_len = law.graph.vocab_size, law.seq_len

    @abstractmethod
    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """(count, seq_len + 1) tokens: inputs and the targets one to their right."""

    @property
    def floor_facts(self) -> dict[str, Any]:
        """How the floor is known."""
        return self.law.floor_facts

    def held_out(self, sequences: int) -> dict[str, HeldOut]:
        """The first validation sequences, with the exact floor of each."""
        tokens = self.batch("valid", 0, sequences)
        return {"valid": HeldOut(tokens, floor=self.law.losses(tokens))}


class OnFly(OneLaw):
    """Infinite data: sequence i of a split is a function of (train.seed, graph_seed, split, i)."""

    def __init__(self, cfg: GssmConfig, law: Law) -> None:
        super().__init__(law)

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """(count, seq_len + 1) tokens: inputs and the targets one to their right."""
        return self.law.sampler.sample(split, start, count, self.seq_len + 1)

    def floor(self) -> Floor | None:
        """Expected Bayes loss of the training stream."""
        if self.law.filter is None:
            return None
        found = bayes_loss(self.law.sampler, self.law.filter, self.seq_len, self.law.floor_sequences)
        return Floor(found.mean, found.se)


class Files(OneLaw):
    """Finite data: the training sequences of a data set, every epoch in a new order.

    Sample i is row ``order(i // n)[i % n]`` of n: a function of the index, so that a training resumes in the middle of an epoch like
    anywhere else. With enough epochs a model can learn these sequences by heart, and its training loss then falls below their floor.
    """

    def __init__(self, cfg: GssmConfig, law: Law) -> None:
        assert cfg.data.path
        super().__init__(law)
        self.data = files.open_data_set(Path(cfg.data.path), law.kernels)
        self.seed = cfg.train.seed
        self.sequences = cfg.data.sequences or len(self.data.train)
        for key, asked, there in (
            ("data.sequences", self.sequences, len(self.data.train)),
            ("eval.sequences", cfg.eval.sequences, len(self.data.test)),
            ("data.seq_len", self.seq_len, self.data.header["length"] - 1),
        ):
            if asked > there:
                raise ConfigError(f"{key}={asked}: the data set {cfg.data.path} has only {there}")
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """(count, seq_len + 1) tokens: inputs and the targets one to their right."""
        check_split(split)
        indices = np.arange(start, start + count)
        if split == "valid":
            return self.data.test[indices % len(self.data.test), : self.seq_len + 1]
        rows = np.array([self.order(int(i) // self.sequences)[int(i) % self.sequences] for i in indices])
        return self.data.train[rows, : self.seq_len + 1]

    def order(self, epoch: int) -> np.ndarray:
        """The order of the training sequences in an epoch: a permutation of 0 .. sequences - 1, a function of (train.seed, epoch)."""
        if epoch not in self._orders:
            words = random_words(self.seed, f"epoch {epoch}", 0, -(-self.sequences // WORDS)).ravel()[: self.sequences]
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}  # a batch may reach into the epoch before
            self._orders[epoch] = np.argsort(words, kind="stable")
        return self._orders[epoch]

    def floor(self) -> Floor | None:
        """Bayes loss of the training sequences, averaged over the first of them."""
        count = min(self.sequences, self.law.floor_sequences)
        losses = self.law.losses(self.data.train[:count, : self.seq_len + 1])
        return None if losses is None else Floor(float(losses.mean()), standard_error(losses) * (1 - count / self.sequences) ** 0.5)


class Domains:
    """A weighted mixture of setups, each a law of its own, drawn on the fly and evaluated apart."""

    def __init__(self, cfg: GssmConfig) -> None:
        assert cfg.data.weights
        alone = {name: domain(cfg, name) for name in cfg.setups}
        self.sources = {name: OnFly(part, Law(part)) for name, part in alone.items()}
        self.mixture = Mixture(self.sources, cfg.data.weights, cfg.train.seed)
        self.vocab_size, self.seq_len = self.mixture.vocab_size, self.mixture.seq_len

    @property
    def floor_facts(self) -> dict[str, Any]:
        """How the floor of the domain that has the least exact one is known."""
        kinds = [source.floor_facts["floor"] for source in self.sources.values()]
        return {"floor": max(kinds, key=lambda kind: kind != "exact filter")}

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """(count, seq_len + 1) tokens: inputs and the targets one to their right."""
        return self.mixture.batch(split, start, count)

    def held_out(self, sequences: int) -> dict[str, HeldOut]:
        """The first validation sequences of every domain."""
        return {f"valid/{name}": source.held_out(sequences)["valid"] for name, source in self.sources.items()}

    def floor(self) -> Floor | None:
        """Expected Bayes loss of the mixture for a reader who knows the domain of every sequence: no model can do better."""
        floors = [source.floor() for source in self.sources.values()]
        weights = self.mixture.weights
        if any(floor is None for floor in floors):
            return None
        mean = sum(w * floor.mean for w, floor in zip(weights, floors, strict=True) if floor)
        return Floor(float(mean), float(sum((w * floor.se) ** 2 for w, floor in zip(weights, floors, strict=True) if floor) ** 0.5))


Source = OnFly | Files | Domains
SOURCES: dict[str, Callable[[GssmConfig, Law], Source]] = {"onfly": OnFly, "files": Files}


def open_source(cfg: GssmConfig) -> Source:
    """The data source that ``data.source`` and ``data.weights`` name."""
    source = Domains(cfg) if cfg.data.weights is not None else SOURCES[cfg.data.source](cfg, Law(cfg))
    assert isinstance(source, DataSource)
    return source
