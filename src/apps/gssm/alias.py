"""The sampler's form of the kernels: packed alias tables, and flat arrays that say how each node finds its row.

An alias table (Walker 1977, built as in Vose 1991) draws from K outcomes with one load: outcome c stands alone with some probability
and shares its slot with one other outcome. Both fit in 32 bits: the alias in the low b = ceil(log2 K) bits, the threshold above. A
32-bit random word r gives the slot c = floor(r K / 2^32), and the fraction left over is compared with the threshold. Everything is
integer arithmetic, so two implementations agree bit for bit. A slot's share and its threshold are off by up to 2^-32 each, and an outcome
that is the alias of many slots by the sum of theirs: 4 x 2^-32 was the most seen with 256 outcomes, 11 x 2^-32 with 60,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from src.nanollama.arrays import Array, Ints

from .graph import Graph
from .kernels import Kernels

GROUP = 4  # inputs are read four at a time; shorter lists are padded with a zero stride


@dataclass(frozen=True)
class Layout:
    """How one time step runs, node by node, on an array of *slots*: each node's state, then each observed node's previous state.

    The entry that node i reads is ``table[base[i] + sequence * per_sequence[i] + sum_k stride[k] slots[source[k]] + c]``, with k in
    ``first_input[i]:first_input[i + 1]`` and c the slot of its random word; ``per_sequence`` is non-zero for context nodes only.
    """

    table: NDArray[np.uint32]
    base: NDArray[np.uint32]
    per_sequence: NDArray[np.uint32]
    dims: NDArray[np.uint32]
    bits: NDArray[np.uint32]
    first_input: Ints
    source: Ints
    stride: NDArray[np.uint32]
    nb_latents: int
    nb_previous: int  # observed nodes whose previous state is kept apart, because an observed node reads it
    context: tuple[int, ...]  # nodes whose tables are drawn per sequence

    @property
    def nb_nodes(self) -> int:
        return len(self.dims)


def packed_table(probabilities: Array) -> NDArray[np.uint32]:
    """Alias entries of each row (last axis) of a probability table, same shape."""
    from .sampler_native import build_alias

    dim = probabilities.shape[-1]
    rows = np.ascontiguousarray(probabilities).reshape(-1, dim)
    packed = np.empty(rows.shape, np.uint32)
    build_alias(rows, alias_bits(dim), packed)
    return packed.reshape(probabilities.shape)


def alias_bits(dim: int) -> int:
    """Low bits of an entry that hold the alias."""
    return (dim - 1).bit_length()


def layout(kernels: Kernels) -> Layout:
    """Flatten ``kernels`` for the sampler. Context tables follow the shared ones, one block per sequence (see ``Sampler``)."""
    plan = structure(kernels.graph)
    shared = [packed_table(t).ravel() for i, t in enumerate(kernels.tables) if i not in plan.context]
    return replace(plan, table=np.concatenate(shared)) if shared else plan


def structure(graph: Graph) -> Layout:
    """A layout whose table is still empty."""
    nodes, nb_latents, nb_observed = range(len(graph.nodes)), len(graph.latents), len(graph.observed)
    size = [math.prod(graph.kernel_shape(i)) for i in nodes]
    context = tuple(i for i in nodes if graph.nodes[i].mode == "context")
    base, per_sequence = np.zeros(len(nodes), np.uint32), np.zeros(len(nodes), np.uint32)
    offset = 0
    for i in sorted(nodes, key=lambda i: i in context):  # context blocks start where the shared tables end
        base[i] = offset
        offset += size[i]
    per_sequence[list(context)] = sum(size[i] for i in context)
    first_input, source, stride = [0], [], []
    for i, node in enumerate(graph.nodes):
        for edge, step in zip(node.inputs, graph.input_strides(i), strict=True):
            kept_apart = node.observed and edge.lag == 1
            source.append(edge.node + nb_observed if kept_apart else edge.node)
            stride.append(step)
        padding = max(-len(node.inputs) % GROUP, 0 if node.inputs else GROUP)
        source += [0] * padding
        stride += [0] * padding
        first_input.append(len(source))
    return Layout(
        table=np.empty(0, np.uint32),
        base=base,
        per_sequence=per_sequence,
        dims=np.array([node.state_dim for node in graph.nodes], np.uint32),
        bits=np.array([alias_bits(node.state_dim) for node in graph.nodes], np.uint32),
        first_input=np.array(first_input, np.int64),
        source=np.array(source, np.int64),
        stride=np.array(stride, np.uint32),
        nb_latents=nb_latents,
        nb_previous=nb_observed if any(edge.lag for node in graph.observed for edge in node.inputs) else 0,
        context=context,
    )
