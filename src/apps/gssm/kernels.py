"""Transition tables of a graph: every row an exact Dirichlet draw, and a continuous function of its concentration.

A Dirichlet row is a vector of independent Gamma(alpha) variables, normalised. For small alpha these underflow, so they are drawn in
log space, through Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha) (Marsaglia and Tsang 2000, section 6): with a fixed uniform u and a
fixed exponential e per entry, log g = log F^-1_{alpha+1}(u) - e / alpha. The same (u, e) serve every alpha (common random numbers),
which is what lets a root finder move alpha along a smooth curve.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from src.nanollama.arrays import Array

from .graph import Graph, Node
from .philox import derive_key

PRODUCT_CLIP = 1e-10  # floor of each expert's probabilities in a product kernel
CLIP_SHARE = 0.5  # share of rows ruled by the clip above which a product kernel warns


@dataclass(frozen=True)
class Kernels:
    """Probability tables of ``graph``, one per node, shape ``graph.kernel_shape(i)``, last axis summing to one.

    The table of a ``context`` node is the draw that sequences of no particular index would get; ``for_sequence`` gives the one in force.
    """

    graph: Graph
    seed: int
    tables: tuple[Array, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tables: equal only for bit-identical laws."""
        digest = hashlib.sha256()
        for table in self.tables:
            digest.update(repr(table.shape).encode())
            digest.update(np.ascontiguousarray(table).tobytes())
        return digest.hexdigest()

    def context_table(self, index: int, *stream: int | str) -> Array:
        """The table that node ``index`` has in the sequence identified by ``stream``."""
        return _table(self.graph, index, self.seed, *stream)

    def for_sequence(self, *stream: int | str) -> Kernels:
        """The tables in force in one sequence, as a graph without context nodes."""
        nodes = self.graph.nodes
        tables = [self.context_table(i, *stream) if n.mode == "context" else self.tables[i] for i, n in enumerate(nodes)]
        graph = Graph(tuple(replace(n, mode="default") if n.mode == "context" else n for n in nodes))
        return Kernels(graph, self.seed, tuple(tables))


def draw(graph: Graph, seed: int) -> Kernels:
    """Draw every table. A table depends on ``seed``, the node's name, its shape and alpha, and not on the rest of the graph."""
    return Kernels(graph, seed, tuple(_table(graph, i, seed) for i in range(len(graph.nodes))))


def _table(graph: Graph, index: int, seed: int, *stream: int | str) -> Array:
    node = graph.nodes[index]
    shape = graph.kernel_shape(index)

    def rng(part: str) -> np.random.Generator:
        low, high = derive_key("kernel", seed, node.name, part, *stream)
        return np.random.Generator(np.random.Philox(key=low | high << 32))

    if node.kernel_type == "product" and node.inputs:
        table = _product([dirichlet((dim, node.state_dim), node.alpha, rng(str(axis))) for axis, dim in enumerate(shape[:-1])], node)
    else:
        table = dirichlet(shape, node.alpha, rng(""))
    return _apply_mode(table, graph, index)


def dirichlet(shape: tuple[int, ...], alpha: float | tuple[float, ...], rng: np.random.Generator) -> Array:
    """Rows (last axis of ``shape``) ~ Dirichlet(alpha per entry), exact in float64 for any alpha of ``graph.ALPHA_RANGE``."""
    uniform = rng.random(shape)
    logs = np.log(np.maximum(uniform, 2.0**-54, out=uniform)) - np.log1p(-uniform)  # logit, finite on both sides
    exponential = -np.log1p(-rng.random(shape))
    if isinstance(alpha, tuple):
        for k, a in enumerate(alpha):
            logs[..., k] = _log_gamma_quantile(a)(logs[..., k])
    else:
        logs = _log_gamma_quantile(alpha)(logs)
    logs -= np.divide(exponential, np.asarray(alpha), out=exponential)
    logs -= logs.max(axis=-1, keepdims=True)
    table: Array = np.exp(logs, out=logs)
    table /= table.sum(axis=-1, keepdims=True)
    return table


@lru_cache(maxsize=64)
def _log_gamma_quantile(alpha: float) -> Callable[[Array], Array]:
    """logit(u) -> log of the u-quantile of Gamma(alpha + 1), to about 1e-12 relative.

    Inverting the incomplete gamma function costs a microsecond an entry; the quantile is a smooth function of logit(u), so a cubic
    Hermite interpolant through exact values and slopes is as good and thirty times faster on a large table.
    """
    from scipy.interpolate import CubicHermiteSpline
    from scipy.special import expit, gammainccinv, gammaincinv, gammaln

    grid = np.linspace(-38.0, 38.0, 8193)  # covers every double that a 53-bit uniform can be
    shape = alpha + 1.0
    quantile = np.where(grid < 0, gammaincinv(shape, expit(grid)), gammainccinv(shape, expit(-grid)))
    log_quantile = np.log(quantile)
    log_density = alpha * log_quantile - quantile - gammaln(shape)
    log_logistic = -np.abs(grid) - 2 * np.log1p(np.exp(-np.abs(grid)))  # du/dlogit
    slope = np.exp(log_logistic - log_density - log_quantile)
    return CubicHermiteSpline(grid, log_quantile, slope)


def _product(experts: list[Array], node: Node) -> Array:
    """Full table of a product of experts, p(x | a, b, ..) proportional to p(x | a) p(x | b) ..; experts: (parent's dim, state_dim) each.

    Each expert is clipped at ``PRODUCT_CLIP``. Where every symbol of a row is clipped by some expert, the row says more about the clip
    than about the draw; this warns when that is so for most rows.
    """
    logs = np.zeros(node.state_dim)
    clipped = np.zeros(node.state_dim, bool)
    for expert in experts:
        logs = logs[..., None, :] + np.log(np.maximum(expert, PRODUCT_CLIP))
        clipped = clipped[..., None, :] | (expert < PRODUCT_CLIP)
    share = float(clipped.all(axis=-1).mean())
    if share > CLIP_SHARE:
        warnings.warn(
            f"node {node.name!r}: {share:.0%} of the rows of its product kernel are ruled by the clip at {PRODUCT_CLIP:g}, because its "
            f"experts contradict one another at alpha {node.alpha}; use a larger alpha, or kernel_type: fullrank",
            stacklevel=4,
        )
    logs -= logs.max(axis=-1, keepdims=True)
    table: Array = np.exp(logs, out=logs)
    table /= table.sum(axis=-1, keepdims=True)
    return table


def _apply_mode(table: Array, graph: Graph, index: int) -> Array:
    """``dead``: each row's largest probability moves to state 0; ``slow``: to the node's own previous state. It swaps two entries."""
    node = graph.nodes[index]
    if node.mode == "dead":
        target = np.zeros((1,) * table.ndim, np.intp)
    elif node.mode == "slow":
        own = next(axis for axis, i in enumerate(node.inputs) if i.node == index)
        target = np.arange(node.state_dim).reshape([-1 if axis == own else 1 for axis in range(table.ndim)])
    else:
        return table
    target = np.broadcast_to(target, (*table.shape[:-1], 1))
    best = table.argmax(axis=-1, keepdims=True)
    largest, other = np.take_along_axis(table, best, -1), np.take_along_axis(table, target, -1)
    np.put_along_axis(table, best, other, -1)
    np.put_along_axis(table, target, largest, -1)
    return table


def row_entropy(table: Array) -> float:
    """Mean entropy of a table's rows, in nats: what the kernel really adds per step, whatever its alpha says."""
    return float(-np.sum(np.where(table > 0, table * np.log(np.where(table > 0, table, 1.0)), 0.0)) / math.prod(table.shape[:-1]))
