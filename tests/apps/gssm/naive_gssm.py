"""The semantics of a graph written the slow and obvious way, to check the fast ones against; and random graphs to check them on."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import strategies as st

from src.apps.gssm import graph
from src.apps.gssm.kernels import Kernels
from src.apps.gssm.node import NodeConfig

State = tuple[int, ...]


def reference_graph(alpha_X: float = 1e-3, alpha_Z: float = 0.125, latents: int = 4, dim: int = 4, vocab: int = 32) -> graph.Graph:
    """The seed experiment: every Z reads X, X reads every Z."""
    names = [f"Z{i + 1}" for i in range(latents)]
    nodes = [NodeConfig(name=n, state_dim=dim, parents=("X",)) for n in names]
    return graph.build([*nodes, NodeConfig(name="X", state_dim=vocab, parents=tuple(names))], alpha_X, alpha_Z)


def steps(kernels: Kernels, old: State) -> dict[State, float]:
    """Law of the next state of all nodes (in ``graph.nodes`` order)."""
    law: dict[State, float] = {(): 1.0}
    for node, table in zip(kernels.graph.nodes, kernels.tables, strict=True):
        law = {
            (*new, outcome): p * q
            for new, p in law.items()
            for outcome, q in enumerate(table[tuple(new[i.node] if i.lag == 0 else old[i.node] for i in node.inputs)])
            if q > 0
        }
    return law


def token_of(kernels: Kernels, state: State) -> int:
    number = 0
    for node, value in zip(kernels.graph.nodes, state, strict=True):
        if node.observed:
            number = number * node.state_dim + value
    return number


def predictive(kernels: Kernels, tokens: list[int]) -> tuple[np.ndarray, list[dict[State, float]]]:
    """p(x_t | x_<t) (T, V) and the filtered law of the whole state after each token, by summing over every path."""
    weight: dict[State, float] = {(0,) * len(kernels.graph.nodes): 1.0}
    ahead, filtered = np.zeros((len(tokens), kernels.graph.vocab_size)), []
    for t, token in enumerate(tokens):
        following: dict[State, float] = defaultdict(float)
        for old, p in weight.items():
            for new, q in steps(kernels, old).items():
                following[new] += p * q
        for new, p in following.items():
            ahead[t, token_of(kernels, new)] += p
        weight = {new: p / ahead[t, token] for new, p in following.items() if token_of(kernels, new) == token}
        filtered.append(weight)
    return ahead, filtered


@st.composite
def graphs(draw: st.DrawFn, max_states: int = 64, modes: tuple[str, ...] = ("default", "dead", "slow")) -> graph.Graph:
    """Random graphs: latents in any acyclic order, any edges from and to one or two observed nodes, any mode and kernel type."""
    nb_latents, nb_observed = draw(st.integers(0, 3)), draw(st.integers(1, 2))
    latents, observed = [f"Z{i}" for i in range(nb_latents)], [f"X{i}" for i in range(nb_observed)]
    nodes, joint = [], 1
    for i, name in enumerate(latents):
        dim = draw(st.integers(1, min(5, max_states // joint)))
        joint *= dim
        parents = draw(st.lists(st.sampled_from(latents[:i] + observed), unique=True, max_size=3))
        nodes.append(_node(draw, name, dim, parents, False, modes))
    for name in observed:
        parents = draw(st.lists(st.sampled_from(latents + observed), unique=True, max_size=4))
        nodes.append(_node(draw, name, draw(st.integers(1, 4)), parents, True, modes))
    return graph.build(draw(st.permutations(nodes)))


def _node(draw: st.DrawFn, name: str, dim: int, parents: list[str], observed: bool, modes: tuple[str, ...]) -> NodeConfig:
    allowed = [m for m in modes if m != "slow" or not observed or name in parents]
    return NodeConfig(
        name=name,
        state_dim=dim,
        parents=tuple(parents),
        alpha=draw(st.sampled_from([0.1, 0.5, 2.0])),
        mode=draw(st.sampled_from(allowed)),
        kernel_type=draw(st.sampled_from(["fullrank", "product"])),
        observed=observed,
    )
