"""Bounds on the Bayes loss where no exact filter is possible: too many joint states, or kernels drawn anew for every sequence.

*Above*: the loss of a real predictor, a particle filter that knows the graph. Every particle carries latent states and, for kernels
that are drawn per sequence, the counts of what it has seen of them; their rows are integrated out (Dirichlet-multinomial), so nothing
is lost when the latents are certain. Any predictor's expected loss is at least the Bayes loss; more particles bring it closer.

*Below*: the expected entropy of the next token for someone who knows more, the sequence's kernels or the true previous states.
Knowing more cannot raise an expected entropy, and averaging the law over few draws of the new latents only lowers it (Jensen).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.nanollama.arrays import Array
from src.nanollama.config.errors import ConfigError

from . import alias
from .filter import Filter, check_feasible
from .graph import Graph
from .kernels import Kernels
from .philox import derive_key
from .sampler import Sampler

DEFENCE = 1e-3  # share of the uniform law in the predictor, against a token that no particle foresaw; costs as many nats at most
ORACLE_DRAWS = 64
PARTICLES = (128, 4096)
LOOK_AHEAD = 4096  # joint states up to which a particle sums over all of its next states


@dataclass(frozen=True)
class Bounds:
    """The Bayes loss lies between ``lower`` and ``upper`` (nats per token), up to their standard errors over sequences."""

    lower: float
    lower_se: float
    upper: float
    upper_se: float
    name: str  # of the estimators


def bounds(
    sampler: Sampler, seq_len: int, sequences: int = 32, particles: int | None = None, split: str = "floor", threads: int = 1
) -> Bounds:
    """Bounds on the expected Bayes loss over the predicted positions of sequences of ``seq_len + 1`` tokens."""
    tokens, latents = sampler.sample_with_latents(split, 0, sequences, seq_len + 1)
    predictor = ParticleFilter(sampler.kernels, particles)
    seeds = [derive_key("particles", sampler.seed, split, i)[0] for i in range(sequences)]
    with ThreadPoolExecutor(threads) as pool:
        upper = np.stack(list(pool.map(predictor.losses, tokens, seeds)))
        known = (sampler.kernels_of(split, i) for i in range(sequences))
        lower = np.stack(list(pool.map(informed_entropy, known, tokens, latents, seeds)))
    knows = "the sequence's kernels" if _feasible(sampler.kernels.for_sequence().graph) else "kernels and previous states"
    name = f"bounds: a particle filter with {predictor.particles} particles above, a predictor that knows {knows} below"
    return Bounds(*_mean_and_error(lower[:, 1:]), *_mean_and_error(upper[:, 1:]), name)


class ParticleFilter:
    """A predictor that knows the graph and its shared kernels, and follows ``particles`` guesses of the rest.

    Up to 4096 joint latent states each particle sums over all of its next states, and 128 particles are the default; above, it draws
    them blindly, and 4096 are. Raises ``ConfigError`` for product kernels that are drawn per sequence: these cannot be integrated out.
    """

    def __init__(self, kernels: Kernels, particles: int | None = None) -> None:
        graph = kernels.graph
        for node in graph.nodes:
            if node.mode == "context" and node.kernel_type == "product" and len(node.inputs) > 1:
                raise ConfigError(
                    f"no bounds on the Bayes loss: node {node.name!r} has a product kernel drawn per sequence, which cannot be "
                    "integrated out; use kernel_type: fullrank"
                )
        looks_ahead = graph.nb_states <= LOOK_AHEAD
        self.vocab_size = graph.vocab_size
        self.particles = particles or PARTICLES[not looks_ahead]
        self._states = graph.nb_states if looks_ahead else 0
        self._own_emission = any(node.mode == "context" for node in graph.observed)
        self._entries = _entries(kernels)
        self._prior = np.zeros((len(graph.nodes), max(node.state_dim for node in graph.nodes)))
        for i, node in enumerate(graph.nodes):
            self._prior[i, : node.state_dim] = node.alpha
        self._table, self._plan = _tables(kernels)

    def losses(self, tokens: NDArray[Any], seed: int) -> Array:
        """-log of the probability that the predictor gives to each token of one sequence (T,), in nats."""
        from . import particles_native

        losses = np.empty(len(tokens))
        particles_native.predictor_losses(  # type: ignore[call-arg]
            tokens.astype(np.int64), self.particles, DEFENCE, self.vocab_size, self._table, *self._entries, self._prior, *self._plan,
            seed, np.empty(self._states), self._own_emission, losses,
        )  # fmt: skip
        return losses


def informed_entropy(kernels: Kernels, tokens: NDArray[Any], latents: NDArray[Any], seed: int) -> Array:
    """Entropy of each next token of one sequence (T,), in nats, for a predictor that knows more than the tokens.

    It knows ``kernels`` if an exact filter can use them; else it knows the true previous states as well.
    """
    from . import particles_native

    if _feasible(kernels.graph):
        return Filter(kernels).entropy(tokens[None])[0]
    table, plan = _tables(kernels)
    entropy = np.empty(len(tokens))
    particles_native.oracle_entropy(  # type: ignore[call-arg]
        tokens.astype(np.int64), latents.astype(np.int64), ORACLE_DRAWS, kernels.graph.vocab_size, table, *plan, seed, entropy
    )
    return entropy


def _feasible(graph: Graph) -> bool:
    """Whether to run an exact filter for every sequence by itself."""
    if graph.nb_states > LOOK_AHEAD:
        return False
    try:
        check_feasible(graph)
    except ConfigError:
        return False
    return True


def _entries(kernels: Kernels) -> tuple[int, int]:
    """Entries of tables that all sequences share, and of those drawn per sequence."""
    drawn = sum(t.size for t, node in zip(kernels.tables, kernels.graph.nodes, strict=True) if node.mode == "context")
    return sum(t.size for t in kernels.tables) - drawn, drawn


def _tables(kernels: Kernels) -> tuple[Array, tuple[Any, ...]]:
    """The flat probability table in the order of ``alias.structure`` (context tables last), and that structure."""
    nodes = kernels.graph.nodes
    order = sorted(range(len(nodes)), key=lambda i: nodes[i].mode == "context")
    plan = alias.structure(kernels.graph)
    arrays = (plan.base, plan.dims, plan.first_input, plan.source, plan.stride)
    table = np.concatenate([kernels.tables[i].ravel() for i in order])
    return table, (*(a.astype(np.int64) for a in arrays), plan.nb_latents, plan.nb_previous)


def _mean_and_error(losses: Array) -> tuple[float, float]:
    each = losses.mean(axis=1)
    return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each)))
