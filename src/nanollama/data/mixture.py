"""A weighted mixture of data sources: every sample index picks its domain, then takes the domain's sample of that same index.

The pick is an exponential race: domain d finishes at time E_d(i) / w_d with E_d(i) ~ Exp(1) drawn by counter for (seed, domain, i),
and the first one wins, which happens with probability w_d. Hence

- sample i of a domain is the same whatever the weights, so two mixtures differ only in *which* domain gives a sample;
- they differ seldom: with total variation t between two weight vectors, an index changes its domain with probability at most
  2t / (1 + t), against t for the best coupling possible (which must know both vectors), so losses of neighbouring mixtures share most of
  their data noise;
- a domain of weight 0 might as well be absent, and the order of the domains does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..config import ConfigError
from .counter import random_words, uniform
from .source import DataSource, ScatteredSource, check_split, token_dtype
from .windows import WindowSource


def check_weights(weights: Sequence[float] | Mapping[str, float], domains: Sequence[str]) -> np.ndarray:
    """Weights in the order of ``domains``, ``(len(domains),)``; ``ConfigError`` unless they are non-negative and sum to 1 within 1e-6."""
    if isinstance(weights, Mapping):
        if set(weights) != set(domains):
            raise ConfigError(f"weights are given for {sorted(weights)}, the domains are {sorted(domains)}; name each domain once")
        weights = [weights[domain] for domain in domains]
    if len(weights) != len(domains):
        raise ConfigError(f"{len(weights)} weights for {len(domains)} domains ({', '.join(domains)}); give one each, in this order")
    array = np.asarray(weights, dtype=np.float64)
    for domain, weight in zip(domains, array, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"the weight of {domain} is {weight}; weights are finite and not negative")
    if abs(array.sum() - 1) > 1e-6:
        raise ConfigError(f"the weights {array.tolist()} sum to {array.sum():.8g}; they must sum to 1 (within 1e-6)")
    return array


class Mixture:
    """Data source that draws each sample from one of ``sources``, by ``weights``.

    ``sources`` maps domain names to sources of one vocabulary and sequence length. For the loss of each domain apart, validate on
    ``sources[domain]``; the mixture's own "valid" split is a weighted sample of their validation rows.
    """

    def __init__(self, sources: Mapping[str, DataSource], weights: Sequence[float] | Mapping[str, float], seed: int = 0) -> None:
        if not sources:
            raise ConfigError("a mixture needs at least one domain")
        self.sources = dict(sources)
        self.domains = tuple(self.sources)
        self.weights = check_weights(weights, self.domains)
        self.seed = seed
        self.vocab_size = self._shared("vocab_size")
        self.seq_len = self._shared("seq_len")

    def _shared(self, field: str) -> int:
        values = {name: int(getattr(source, field)) for name, source in self.sources.items()}
        if len(set(values.values())) > 1:
            raise ConfigError(f"the domains of a mixture must agree in {field}, these do not: {values}")
        return next(iter(values.values()))

    def domains_of(self, split: str, start: int, count: int) -> np.ndarray:
        """Position in ``self.domains`` of the domain of each sample ``start .. start + count - 1``, ``(count,)`` of int64."""
        check_split(split)
        finish = np.full((len(self.domains), count), np.inf)
        for row, (domain, weight) in enumerate(zip(self.domains, self.weights, strict=True)):
            if weight > 0:
                words = random_words(self.seed, f"mixture/{domain}/{split}", start, count)[:, 0]
                finish[row] = -np.log(uniform(words)) / weight
        return finish.argmin(axis=0)

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        """See :class:`~src.nanollama.data.source.DataSource`."""
        batch = np.empty((count, self.seq_len + 1), token_dtype(self.vocab_size))
        for source, where in self._shares(split, start, count):
            batch[where] = _rows(source, split, start + where)
        return batch

    def segments(self, split: str, start: int, count: int) -> np.ndarray:
        """Documents of ``batch(split, start, count)``, see ``WindowSource.segments``; an error if a domain knows no documents."""
        segments = np.empty((count, self.seq_len + 1), np.int32)
        for source, where in self._shares(split, start, count):
            if not isinstance(source, WindowSource):
                raise ConfigError(f"a {type(source).__name__} has no documents, so a mixture with it cannot be masked by document")
            segments[where] = source.segment_rows(split, start + where)
        return segments

    def _shares(self, split: str, start: int, count: int) -> Iterator[tuple[DataSource, np.ndarray]]:
        """The domains present in a batch, each with the positions of its samples."""
        picks = self.domains_of(split, start, count)
        for position, source in enumerate(self.sources.values()):
            where = np.flatnonzero(picks == position)
            if len(where):
                yield source, where


def _rows(source: DataSource, split: str, indices: np.ndarray) -> np.ndarray:
    if isinstance(source, ScatteredSource):
        return source.rows(split, indices)
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return np.concatenate([source.batch(split, int(run[0]), len(run)) for run in runs])
