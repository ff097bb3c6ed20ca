import itertools

import numpy as np
import pytest
from naive_gssm import reference_graph
from scipy import special, stats

from src.apps.gssm import graph, kernels
from src.apps.gssm.node import NodeConfig


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def node(name, dim, parents=(), **more):
    return NodeConfig(name=name, state_dim=dim, parents=parents, **more)


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 0.125, 1.0, 10.0, 1e6])
def test_rows_are_finite_and_sum_to_one(alpha):
    table = kernels.dirichlet((500, 7), alpha, rng())
    assert np.isfinite(table).all() and (table >= 0).all()
    np.testing.assert_allclose(table.sum(-1), 1, rtol=1e-14)


@pytest.mark.parametrize("alpha", [1e-3, 0.125, 1.0, 10.0])
def test_mean_entropy_is_that_of_the_dirichlet(alpha):
    """The trap: at alpha = 1e-3 common samplers give not-a-number or uniform rows, and an entropy many times too high."""
    size, dim = 40_000, 4
    table = kernels.dirichlet((size, dim), alpha, rng())
    entropies = special.entr(table).sum(-1)
    exact = special.digamma(dim * alpha + 1) - special.digamma(alpha + 1)
    assert abs(entropies.mean() - exact) < 5 * entropies.std() / np.sqrt(size)


@pytest.mark.parametrize("alpha", [0.3, 2.0, (0.2, 1.0, 3.0)])
def test_marginals_are_beta(alpha):
    table = kernels.dirichlet((4000, 3), alpha, rng(1))
    each = np.broadcast_to(alpha, 3)
    for k in range(3):
        assert stats.kstest(table[:, k], stats.beta(each[k], each.sum() - each[k]).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-3, 0.125, 1.0, 1000.0])
def test_the_interpolated_quantile_is_the_inverse_incomplete_gamma_function(alpha):
    logit = np.linspace(-36, 36, 3001) + 0.00123
    low, high = special.gammaincinv(alpha + 1, special.expit(logit)), special.gammainccinv(alpha + 1, special.expit(-logit))
    exact = np.where(logit < 0, low, high)
    np.testing.assert_allclose(kernels._log_gamma_quantile(alpha)(logit), np.log(exact), atol=1e-11)


def test_rows_are_continuous_in_alpha():
    tables = [kernels.draw(reference_graph(1e-3, a), 3).tables[0] for a in np.geomspace(0.05, 0.055, 150)]
    jumps = [np.abs(b - a).max() for a, b in itertools.pairwise(tables)]
    assert max(jumps) < 0.01 < np.abs(tables[-1] - tables[0]).max()


def test_a_table_depends_on_the_seed_and_the_name_but_not_on_the_rest_of_the_graph():
    small = kernels.draw(graph.build([node("Z1", 4, ("X",)), node("X", 8, ("Z1",))], 0.1, 0.2), 5)
    large = kernels.draw(graph.build([node("Z2", 4, ("X",)), node("Z1", 4, ("X",)), node("X", 8, ("Z1",))], 0.1, 0.2), 5)
    np.testing.assert_array_equal(small.tables[0], large.tables[1])
    assert not np.array_equal(large.tables[0], large.tables[1])
    again, other = kernels.draw(small.graph, 5), kernels.draw(small.graph, 6)
    assert small.fingerprint == again.fingerprint != other.fingerprint


def test_dead_puts_the_largest_probability_on_state_zero():
    plain, dead = (kernels.draw(graph.build([node("Z", 5, ("X",), mode=m), node("X", 8)], 1, 1), 0).tables[0] for m in ("default", "dead"))
    assert (dead.argmax(-1) == 0).all()
    np.testing.assert_array_equal(np.sort(dead, -1), np.sort(plain, -1))


def test_slow_puts_the_largest_probability_on_the_previous_state():
    g = graph.build([node("A", 3), node("Z", 5, ("A", "X"), mode="slow"), node("X", 8, ("X", "Z"), mode="slow")], 1, 1)
    drawn = kernels.draw(g, 0)
    assert (drawn.tables[1].argmax(-1) == np.arange(5)[:, None, None]).all()
    assert (drawn.tables[2].argmax(-1) == np.arange(8)[:, None]).all()


def test_product_of_experts():
    g = graph.build([node("A", 3), node("X", 8, ("A", "X"), kernel_type="product")], 2.0, 2.0)
    table = kernels.draw(g, 0).tables[1]
    assert table.shape == (3, 8, 8)
    logs = np.log(table)  # a sum of one term by expert: differences of differences vanish
    contrast = logs - logs[..., :1]
    mixed = contrast - contrast[:1] - contrast[:, :1] + contrast[:1, :1]
    np.testing.assert_allclose(mixed, 0, atol=1e-9)


def test_product_warns_where_the_clip_rules():
    g = graph.build([node("A", 4), node("B", 4), node("X", 16, ("A", "B"), kernel_type="product")], 1e-3, 1.0)
    with pytest.warns(UserWarning, match=r"node 'X'.*ruled by the clip"):
        kernels.draw(g, 0)


def test_context_tables_differ_by_sequence_and_come_back():
    g = graph.build([node("Z", 4, ("X",), mode="context"), node("X", 8, ("Z",))], 0.1, 0.2)
    drawn = kernels.draw(g, 0)
    first, second = drawn.for_sequence("a", 0), drawn.for_sequence("a", 1)
    assert not np.array_equal(first.tables[0], second.tables[0])
    np.testing.assert_array_equal(first.tables[1], second.tables[1])
    assert first.fingerprint == drawn.for_sequence("a", 0).fingerprint
    assert not first.graph.has_context


def test_row_entropy():
    assert kernels.row_entropy(np.full((3, 4), 0.25)) == pytest.approx(np.log(4))
    assert kernels.row_entropy(np.eye(4)) == 0
