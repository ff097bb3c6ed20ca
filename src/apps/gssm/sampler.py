"""Sequences of tokens drawn from a graph, addressed by index.

Sequence i of a split is a function of (seed, split, graph seed, i) and the kernel tables, and of nothing else: not of the batch it
comes in, the number of processes, or the threads. The state of a data stream is therefore one integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import alias
from .kernels import Kernels
from .philox import derive_key, words

LANES = (16, 64)  # least and most sequences advanced in lock-step
CONTEXT_BYTES = 2**26  # context tables held at once


class Sampler:
    """Draws token sequences from ``kernels``.

    ``seed`` is the seed of the data, apart from that of the kernels. Two backends give the same bits: ``numba`` (compiled on first
    use, cached on disk) and ``numpy`` (the reference). ``threads`` share one call's sequences between them.
    """

    def __init__(self, kernels: Kernels, seed: int, backend: Literal["numba", "numpy"] = "numba", threads: int = 1) -> None:
        self.kernels = kernels
        self.seed = seed
        self.backend = backend
        self.threads = threads
        self.token_dtype: np.dtype[Any] = np.min_scalar_type(kernels.graph.vocab_size - 1)
        self.latent_dtype: np.dtype[Any] = np.min_scalar_type(max((n.state_dim for n in kernels.graph.latents), default=1) - 1)

    @property
    def vocab_size(self) -> int:
        return self.kernels.graph.vocab_size

    @cached_property
    def _layout(self) -> alias.Layout:
        return alias.layout(self.kernels)

    def sample(self, split: str, start: int, count: int, length: int) -> NDArray[np.unsignedinteger[Any]]:
        """Sequences ``start`` to ``start + count - 1`` of ``split``: tokens, shape (count, length), in the smallest unsigned type.

        The start state (all zeros) is not among them. A shorter length gives a prefix of the same sequences.
        """
        return self._run(split, start, count, length, latents=False)[0]

    def sample_with_latents(
        self, split: str, start: int, count: int, length: int
    ) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.unsignedinteger[Any]]]:
        """The tokens of ``sample``, and the latent states behind them: (count, length, latents), in the order of ``graph.latents``."""
        return self._run(split, start, count, length, latents=True)

    def kernels_of(self, split: str, sequence: int) -> Kernels:
        """The tables in force in one sequence: they differ from ``kernels`` for context nodes only."""
        return self.kernels.for_sequence(*self._context_stream(split, sequence)) if self.kernels.graph.has_context else self.kernels

    def _context_stream(self, split: str, sequence: int) -> tuple[int | str, ...]:
        return ("context", self.seed, split, sequence)

    def _run(self, split: str, start: int, count: int, length: int, latents: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        if start < 0 or count < 0 or length < 0 or start + count > 2**64 or length * len(self.kernels.graph.nodes) > 2**34:
            raise ValueError(f"no such sequences: start {start}, count {count}, length {length}")
        tokens = np.empty((count, length), self.token_dtype)
        kept = (count, self.latent_dtype) if latents else (0, np.uint8)  # always the same type when not wanted: fewer compiled variants
        states = np.empty((kept[0], length, len(self.kernels.graph.latents)), kept[1])
        key = derive_key("tokens", self.seed, split, self.kernels.seed)
        draw = _draw_native if self.backend == "numba" else _draw_reference

        def fill(first: int, last: int) -> None:
            plan = self._with_context(split, start + first, last - first)
            draw(plan, key, start + first, tokens[first:last], states[first:last])

        parts = list(self._parts(count))
        if self.threads == 1 or len(parts) == 1:
            for part in parts:
                fill(*part)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(lambda part: fill(*part), parts))
        return tokens, states

    def _parts(self, count: int) -> Iterator[tuple[int, int]]:
        """Ranges of sequences: one per thread, smaller where their context tables would not fit."""
        size = -(-count // self.threads)
        if self._layout.context:
            size = min(size, max(1, CONTEXT_BYTES // (4 * int(self._layout.per_sequence.max()))))
        for first in range(0, count, max(size, 1)):
            yield first, min(first + size, count)

    def _with_context(self, split: str, start: int, count: int) -> alias.Layout:
        """The layout with the context tables of these sequences after the shared ones."""
        plan = self._layout
        if not plan.context:
            return plan
        stream = [self._context_stream(split, i) for i in range(start, start + count)]
        drawn = [alias.packed_table(self.kernels.context_table(i, *s)).ravel() for s in stream for i in plan.context]
        return replace(plan, table=np.concatenate([plan.table, *drawn]))


def _draw_native(plan: alias.Layout, key: tuple[int, int], start: int, tokens: NDArray[Any], latents: NDArray[Any]) -> None:
    from . import sampler_native

    least, most = LANES
    lanes = min(most, -(-len(tokens) // least) * least)
    sampler_native.sample(
        plan.table, plan.base, plan.per_sequence, plan.dims, plan.bits, plan.first_input, plan.source, plan.stride, plan.nb_latents,
        plan.nb_previous, np.uint32(key[0]), np.uint32(key[1]), np.uint64(start), lanes, tokens, latents,
    )  # fmt: skip


def _draw_reference(plan: alias.Layout, key: tuple[int, int], start: int, tokens: NDArray[Any], latents: NDArray[Any]) -> None:
    """One step at a time, vectorised over sequences."""
    count, length = tokens.shape
    nodes, first_observed = plan.nb_nodes, plan.nb_latents
    numbers = np.uint64(start) + np.arange(count, dtype=np.uint64)
    slots = np.zeros((nodes + plan.nb_previous, count), np.int64)
    sequence = np.arange(count)
    for t in range(length):
        random = words(numbers, t * nodes, nodes, key).astype(np.uint64)
        slots[nodes:] = slots[first_observed : first_observed + plan.nb_previous]
        for i, dim in enumerate(int(d) for d in plan.dims):
            inputs = slice(plan.first_input[i], plan.first_input[i + 1])
            row = int(plan.base[i]) + sequence * int(plan.per_sequence[i])
            row = row + plan.stride[inputs].astype(np.int64) @ slots[plan.source[inputs]]
            bits = np.uint64(plan.bits[i])
            column, fraction = random[i] * np.uint64(dim) >> np.uint64(32), random[i] * np.uint64(dim) & np.uint64(0xFFFFFFFF)
            entry = plan.table[row + column.astype(np.int64)].astype(np.uint64)
            alone = (fraction >> bits) < (entry >> bits)
            slots[i] = np.where(alone, column, entry & ((np.uint64(1) << bits) - np.uint64(1)))
        tokens[:, t] = np.ravel_multi_index(tuple(slots[first_observed:nodes]), tuple(plan.dims[first_observed:].astype(int)))
        if len(latents):
            latents[:, t] = slots[:first_observed].T
