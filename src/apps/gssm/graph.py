"""The graph of discrete nodes behind a GSSM data set: parsing and checking, without any array library.

A graph is a two-slice dynamic Bayesian network. At every step each latent node, in topological order, draws its new state given
its own previous state, the *new* states of its latent parents and the *previous* state of its observed parents; then each observed
node draws given the new latents (and the previous state of every observed parent, itself included where it lists itself). Edges that
leave an observed node therefore always point to the next step, so a cycle through an observed node is fine and any other cycle is not.
All nodes start in state 0, which is not emitted. A token is the mixed-radix number of the observed states, first node first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from src.nanollama.config.errors import ConfigError

from .node import NodeConfig

MAX_STATE_DIM = 2**16  # an alias entry keeps the other symbol in at most 16 of its 32 bits
MAX_VOCAB = 2**16
MAX_TABLE = 2**26  # entries of all kernel tables together: 512 MiB as float64
ALPHA_RANGE = (1e-9, 1e6)  # inside it every Dirichlet row is finite in float64


@dataclass(frozen=True)
class Input:
    """What a kernel reads: node ``node`` (an index in ``Graph.nodes``), now (``lag`` 0) or one step ago (``lag`` 1)."""

    node: int
    lag: int


@dataclass(frozen=True)
class Node:
    """A checked node. Its kernel has one axis per entry of ``inputs`` and a last axis of ``state_dim`` outcomes."""

    name: str
    state_dim: int
    alpha: float | tuple[float, ...]
    mode: str
    kernel_type: str
    observed: bool
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which a step updates them: latents first (topological), then the observed ones (as listed)."""

    nodes: tuple[Node, ...]

    @property
    def latents(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if not node.observed)

    @property
    def observed(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.observed)

    @cached_property
    def vocab_size(self) -> int:
        return math.prod(node.state_dim for node in self.observed)

    @cached_property
    def nb_states(self) -> int:
        """Joint states of the latent nodes: the size of the exact filter's belief."""
        return math.prod(node.state_dim for node in self.latents)

    def kernel_shape(self, index: int) -> tuple[int, ...]:
        node = self.nodes[index]
        return (*(self.nodes[i.node].state_dim for i in node.inputs), node.state_dim)

    def input_strides(self, index: int) -> tuple[int, ...]:
        """Entries of the flat table of node ``index`` between neighbouring states of each input."""
        shape = self.kernel_shape(index)
        return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape) - 1))

    @property
    def table_size(self) -> int:
        return sum(math.prod(self.kernel_shape(i)) for i in range(len(self.nodes)))

    @property
    def has_context(self) -> bool:
        """Whether some kernel is drawn anew for every sequence, which puts the exact filter out of reach."""
        return any(node.mode == "context" for node in self.nodes)

    def describe(self) -> list[dict[str, Any]]:
        """The graph as plain data, for run records and fingerprints."""
        return [
            {**asdict(node), "inputs": [f"{self.nodes[i.node].name}[{'t' if i.lag == 0 else 't-1'}]" for i in node.inputs]}
            for node in self.nodes
        ]


def build(nodes: Sequence[NodeConfig], alpha_X: float | None = None, alpha_Z: float | None = None) -> Graph:
    """Check ``nodes`` and put them in update order.

    ``alpha_X`` and ``alpha_Z`` are the concentrations of observed and latent nodes that set none themselves. Raises ``ConfigError``
    that names the node and the rule; takes no memory that grows with the tables.
    """
    if not nodes:
        raise ConfigError("gssm: the graph is empty; list at least one node, and name the observed one X (or set observed: true)")
    by_name: dict[str, NodeConfig] = {}
    for config in nodes:
        if not config.name:
            raise ConfigError("gssm: a node has an empty name")
        if config.name in by_name:
            raise ConfigError(f"gssm: two nodes are named {config.name!r}; names must be unique")
        by_name[config.name] = config
    observed = {c.name for c in nodes if (c.name == "X" if c.observed is None else c.observed)}
    if not observed:
        raise ConfigError(f"gssm: no node is observed; name one X or set observed: true (nodes: {', '.join(by_name)})")
    for config in nodes:
        _check_node(config, by_name, observed)
    order = [*_topological(nodes, observed), *(c.name for c in nodes if c.name in observed)]
    index = {name: i for i, name in enumerate(order)}
    graph = Graph(tuple(_node(by_name[name], index, observed, alpha_X, alpha_Z) for name in order))
    _check_size(graph)
    return graph


def _check_node(config: NodeConfig, by_name: dict[str, NodeConfig], observed: set[str]) -> None:
    where = f"gssm: node {config.name!r}"
    if not 1 <= config.state_dim <= MAX_STATE_DIM:
        raise ConfigError(f"{where} has state_dim {config.state_dim}; allowed: 1 to {MAX_STATE_DIM}")
    for parent in config.parents:
        if parent not in by_name:
            raise ConfigError(f"{where} has an unknown parent {parent!r}; nodes: {', '.join(by_name)}")
    if len(set(config.parents)) != len(config.parents):
        raise ConfigError(f"{where} lists a parent twice: {', '.join(config.parents)}")
    if config.name in config.parents and config.name not in observed:
        raise ConfigError(f"{where} lists itself as parent; a latent node always reads its own previous state, so leave it out")
    if config.mode == "slow" and config.name in observed and config.name not in config.parents:
        raise ConfigError(f"{where} cannot be slow: an observed node reads its previous state only if it lists itself as parent")


def _check_alpha(alpha: float, where: str) -> float:
    low, high = ALPHA_RANGE
    if not low <= alpha <= high:  # also refuses NaN
        raise ConfigError(f"{where} is {alpha}; a Dirichlet concentration must be between {low:g} and {high:g}")
    return float(alpha)


def _node(
    config: NodeConfig, index: dict[str, int], observed: set[str], alpha_X: float | None, alpha_Z: float | None
) -> Node:
    is_observed = config.name in observed
    fallback = "alpha_X" if is_observed else "alpha_Z"
    alpha = config.alpha if config.alpha is not None else alpha_X if is_observed else alpha_Z
    if alpha is None:
        raise ConfigError(f"gssm: node {config.name!r} has no concentration; set its alpha, or {fallback}")
    where = f"gssm: alpha of node {config.name!r}"
    if isinstance(alpha, (list, tuple)):
        if len(alpha) != config.state_dim:
            raise ConfigError(f"{where} has {len(alpha)} values; give one number, or one per state ({config.state_dim})")
        alpha = tuple(_check_alpha(a, where) for a in alpha)
    else:
        alpha = _check_alpha(alpha, where)
    own = () if is_observed else (Input(index[config.name], 1),)
    parents = tuple(Input(index[p], int(p in observed)) for p in config.parents)
    return Node(config.name, config.state_dim, alpha, config.mode, config.kernel_type, is_observed, own + parents)


def _topological(nodes: Sequence[NodeConfig], observed: set[str]) -> list[str]:
    """Latent names, parents before children, otherwise in the order given."""
    parents = {c.name: [p for p in c.parents if p not in observed] for c in nodes if c.name not in observed}
    order: list[str] = []
    while waiting := [name for name in parents if name not in order]:
        ready = next((name for name in waiting if all(p in order for p in parents[name])), None)
        if ready is None:
            raise ConfigError(
                f"gssm: the latent nodes {' -> '.join(_cycle(parents, order))} form a cycle within one time step; only a cycle through "
                f"an observed node is possible ({', '.join(sorted(observed))}): remove one of these edges"
            )
        order.append(ready)
    return order


def _cycle(parents: dict[str, list[str]], done: list[str]) -> list[str]:
    """A cycle, as a path parent -> child that ends where it starts. Every node not yet done has such a parent, so walking up finds one."""
    path = [next(name for name in parents if name not in done)]
    while path[-1] not in path[:-1]:
        path.append(next(p for p in parents[path[-1]] if p not in done))
    return path[path.index(path[-1]) :][::-1]


def _check_size(graph: Graph) -> None:
    if graph.vocab_size > MAX_VOCAB:
        names = ", ".join(f"{node.name} ({node.state_dim})" for node in graph.observed)
        raise ConfigError(f"gssm: the observed nodes {names} make {graph.vocab_size} tokens; at most {MAX_VOCAB} are allowed")
    for i, node in enumerate(graph.nodes):
        size = math.prod(graph.kernel_shape(i))
        if size > MAX_TABLE:
            shape = " x ".join(map(str, graph.kernel_shape(i)))
            raise ConfigError(
                f"gssm: the kernel of node {node.name!r} would have {shape} = {size} entries; at most {MAX_TABLE} "
                f"({MAX_TABLE * 8 >> 20} MiB) are allowed: give it fewer parents or fewer states"
            )
    if graph.table_size > MAX_TABLE:
        raise ConfigError(f"gssm: the kernels would have {graph.table_size} entries together; at most {MAX_TABLE} are allowed")
