"""The exact Bayes-optimal predictor of a graph: a forward filter over the joint latent states, one latent at a time.

The belief p(z_t | x_<=t) is a tensor with one axis per latent. A step replaces the axes one by one, in topological order: the axis of
z_i goes through the kernel of node i, at the already new states of its latent parents and the known previous token. Then comes
p(x_t | z_t), and the normaliser is p(x_t | x_<t). A step costs O(S sum_i d_i) for S joint states, where the flat hidden Markov model
of the same process costs O(S^2); with edges from the observed node back to the latents the kernel is just read at x_{t-1}.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.nanollama.arrays import Array, Ints
from src.nanollama.config.errors import ConfigError

from .graph import MAX_TABLE, Graph
from .kernels import Kernels
from .sampler import Sampler

MAX_STATES = 2**20  # joint latent states
LANES = (8, 64)  # least and most sequences advanced in lock-step
MAX_PAIRS = 2**24  # joint latent state and token
CACHED = 2**17  # belief entries that stay in a core's cache
_NONE = np.empty((0, 0))


@dataclass(frozen=True)
class Floor:
    """Bayes-optimal loss in nats per token, over the predicted positions (tokens 2 to seq_len + 1 of each sequence).

    ``per_position`` has shape (seq_len,), ``per_sequence`` (sequences,). The errors are standard errors over sequences.
    """

    mean: float
    se: float
    per_position: Array
    per_position_se: Array
    per_sequence: Array


class Filter:
    """Exact filter of ``kernels``. Raises ``ConfigError`` where it is out of reach (context nodes, too many joint states).

    All methods take tokens of shape (B, T) and condition on the start state (all nodes in state 0) before the first token. States and
    transitions less likely than 1e-150 count as impossible. An impossible token costs inf; after it there is no law, and all is nan.
    """

    def __init__(self, kernels: Kernels, threads: int = 1) -> None:
        check_feasible(kernels.graph)
        self.kernels = kernels
        self.graph = kernels.graph
        self.threads = threads

    def nll(self, tokens: NDArray[Any]) -> Array:
        """-log p(x_t | x_<t) in nats, shape (B, T), for every position including the first."""
        return self._run(tokens, "nll")["nll"]

    def entropy(self, tokens: NDArray[Any]) -> Array:
        """Entropy of p(. | x_<t) in nats, shape (B, T): on sampled tokens the same mean as ``nll``, with less noise (Rao-Blackwell)."""
        return self._run(tokens, "entropy")["entropy"]

    def predictive(self, tokens: NDArray[Any]) -> Array:
        """p(x_t = v | x_<t), shape (B, T, V)."""
        return self._run(tokens, "predictive")["predictive"]

    def beliefs(self, tokens: NDArray[Any]) -> dict[str, Array]:
        """Filtered marginals p(z_i,t | x_<=t) by latent name, each of shape (B, T, state_dim)."""
        joint = self._run(tokens, "beliefs")["beliefs"]
        ends = np.cumsum([node.state_dim for node in self.graph.latents])
        return {node.name: joint[..., end - node.state_dim : end] for node, end in zip(self.graph.latents, ends, strict=True)}

    def window_predictive(self, windows: NDArray[Any], prior: Array) -> Array:
        """Law of the last token of each window (B, k + 1), k >= 1, given only the k tokens before it; shape (B, V).

        ``prior`` is the law of what the window does not show, as ``occupancy`` gives it: (contexts, S), before its first token.
        """
        return self._run(windows, "predictive", prior=prior)["predictive"][:, -1]

    def occupancy(self, positions: int) -> Array:
        """Exact law of (what observed nodes read of the previous token, joint latent state) at the first ``positions`` tokens, averaged.

        Shape (contexts, S); a token's own emission is yet to come. Works on all S V pairs of state and token: ``ConfigError`` above 2^24.
        """
        from .filter_native import advance

        emission, group, context_of, *transitions = self._plan
        states, vocab = len(group), self.graph.vocab_size
        if states * vocab > MAX_PAIRS:
            raise ConfigError(f"no window loss: {states} latent states x {vocab} tokens; the law is computed for up to {MAX_PAIRS} pairs")
        law, total = np.zeros((states, vocab)), np.zeros((len(emission), states))
        law[0, 0] = 1.0
        tokens, contexts = np.arange(vocab), np.arange(len(emission))[:, None] == context_of
        for _ in range(positions):
            advance(law, tokens, *transitions)
            now = contexts @ law.T
            total += now
            law = np.einsum("cs,csv->sv", now, emission[:, group])
        return total / positions

    @cached_property
    def _plan(self) -> tuple[Any, ...]:
        return _emission(self.kernels) + _transitions(self.kernels)

    def _run(self, tokens: NDArray[Any], *wanted: str, prior: Array = _NONE) -> dict[str, Array]:
        from . import filter_native

        tokens = _check_tokens(tokens, self.graph.vocab_size)
        count, length = tokens.shape
        width = {"predictive": (self.graph.vocab_size,), "beliefs": (sum(node.state_dim for node in self.graph.latents),)}
        out = {
            name: np.full((count if name in wanted else 0, length, *width.get(name, ())), np.nan)
            for name in ("nll", "entropy", "predictive", "beliefs")
        }
        lanes = max(LANES[0], min(LANES[1], CACHED // self.graph.nb_states))

        def block(first: int) -> None:
            part = slice(first, first + lanes)
            filter_native.forward(tokens[part], prior, *self._plan, *(out[name][part] for name in out))

        if self.threads == 1 or count <= lanes:
            for first in range(0, count, lanes):
                block(first)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(block, range(0, count, lanes)))
        return out


def work(graph: Graph) -> int:
    """Multiplications that the filter spends on one token."""
    return graph.nb_states * max(1, sum(node.state_dim for node in graph.latents))


def check_feasible(graph: Graph) -> None:
    """Raise ``ConfigError``, with the reason, where no exact filter is possible."""
    if names := [node.name for node in graph.nodes if node.mode == "context"]:
        raise ConfigError(f"no exact Bayes loss: the kernel of context node {', '.join(names)} is drawn anew for every sequence")
    if graph.nb_states > MAX_STATES:
        raise ConfigError(f"no exact Bayes loss: the latents have {graph.nb_states} joint states; the filter takes up to {MAX_STATES}")
    groups, contexts = _readers(graph)
    size = _size(graph, contexts) * graph.vocab_size * _size(graph, groups)
    if size > MAX_TABLE:
        raise ConfigError(f"no exact Bayes loss: p(token | latents) would have {size} entries; the filter takes up to {MAX_TABLE}")


def bayes_loss(sampler: Sampler, filter: Filter, seq_len: int, sequences: int = 256, split: str = "floor", start: int = 0) -> Floor:
    """Expected Bayes loss of sequences of ``seq_len + 1`` tokens, by averaging the predictive entropy along sampled ones."""
    losses = filter.entropy(sampler.sample(split, start, sequences, seq_len + 1))[:, 1:]
    per_sequence = losses.mean(axis=1)
    return Floor(
        mean=float(losses.mean()),
        se=float(per_sequence.std(ddof=1) / np.sqrt(sequences)),
        per_position=losses.mean(axis=0),
        per_position_se=losses.std(axis=0, ddof=1) / np.sqrt(sequences),
        per_sequence=per_sequence,
    )


def _check_tokens(tokens: NDArray[Any], vocab_size: int) -> Ints:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers of shape (B, T); got {tokens.dtype} of shape {tokens.shape}")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise ValueError(f"tokens must lie in 0..{vocab_size - 1}; got {tokens.min()}..{tokens.max()}")
    return tokens.astype(np.int64)


def _readers(graph: Graph) -> tuple[list[int], list[int]]:
    """Latents that some observed node reads, and observed nodes whose previous state some observed node reads; as node indices."""
    read = {edge.node for node in graph.observed for edge in node.inputs}
    nb_latents = len(graph.latents)
    return sorted(i for i in read if i < nb_latents), sorted(i for i in read if i >= nb_latents)


def _size(graph: Graph, nodes: list[int]) -> int:
    return int(np.prod([graph.nodes[i].state_dim for i in nodes], dtype=object))


def _emission(kernels: Kernels) -> tuple[Any, ...]:
    """p(token | previous token's context, group of latent states) as (contexts, groups, V), and the maps into it.

    States that agree on all latents an observed node reads form a group; tokens that agree on all observed nodes which are read again
    form a context. Returns emission, group of each state (S,), context of each token (V,).
    """
    graph = kernels.graph
    groups, contexts = _readers(graph)
    axes = contexts + groups + list(range(len(graph.latents), len(graph.nodes)))  # previous observed, latents, new observed
    shape = [graph.nodes[i].state_dim for i in axes]
    joint = np.ones(shape)
    for i, node in enumerate(graph.nodes):
        if not node.observed:
            continue
        wanted = [contexts.index(e.node) if e.lag else len(contexts) + groups.index(e.node) for e in node.inputs]
        wanted.append(len(contexts) + len(groups) + i - len(graph.latents))
        view = [1] * len(axes)
        for axis in wanted:
            view[axis] = shape[axis]
        joint *= kernels.tables[i].transpose(np.argsort(wanted)).reshape(view)
    emission = joint.reshape(_size(graph, contexts), _size(graph, groups), graph.vocab_size)
    latent_dims = [node.state_dim for node in graph.latents]
    observed_dims = [node.state_dim for node in graph.observed]
    context_axes = [i - len(graph.latents) for i in contexts]
    return _without_tiny(emission), _project(latent_dims, groups), _project(observed_dims, context_axes)


def _without_tiny(table: Array) -> Array:
    from .filter_native import TINY

    return np.where(table < TINY, 0.0, table)


def _project(dims: list[int], kept: list[int]) -> Ints:
    """For each mixed-radix number over ``dims``, the number formed by the digits ``kept``."""
    digits = np.indices(dims).reshape(len(dims), -1) if dims else np.zeros((0, 1), np.int64)
    number = np.zeros(digits.shape[1], np.int64)
    for axis in kept:
        number = number * dims[axis] + digits[axis]
    return number


def _transitions(kernels: Kernels) -> tuple[Any, ...]:
    """The latents' kernels for ``filter_native.advance``: flat table, first row of each configuration of the latents before a node, etc."""
    graph = kernels.graph
    nb_latents = len(graph.latents)
    dims = [node.state_dim for node in graph.latents]
    observed_digits = np.indices([node.state_dim for node in graph.observed]).reshape(len(graph.observed), -1)
    rows, tables, own, token_offset = [], [], [], np.zeros((nb_latents, graph.vocab_size), np.int64)
    offset = 0
    for i, node in enumerate(graph.latents):
        strides = graph.input_strides(i)
        before = np.indices(dims[:i]).reshape(i, -1) if i else np.zeros((0, 1), np.int64)
        row = np.full(before.shape[1], offset, np.int64)
        own.append(strides[0])
        for edge, stride in zip(node.inputs[1:], strides[1:], strict=True):
            if edge.lag:
                token_offset[i] += stride * observed_digits[edge.node - nb_latents]
            else:
                row += stride * before[edge.node]
        rows.append(row)
        tables.append(kernels.tables[i].ravel())
        offset += kernels.tables[i].size
    first_row = np.cumsum([0, *(len(r) for r in rows)])
    flat = _without_tiny(np.concatenate(tables)) if tables else np.empty(0)
    return flat, np.concatenate(rows or [np.empty(0, np.int64)]), first_row, token_offset, np.array(dims, np.int64), np.array(own, np.int64)
