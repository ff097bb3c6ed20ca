import subprocess
import sys

import pytest
from naive_gssm import reference_graph

from src.apps.gssm import graph
from src.apps.gssm.node import NodeConfig
from src.nanollama.config import ConfigError


def node(name, dim=4, parents=(), **more):
    alpha = more.pop("alpha", None)
    made = NodeConfig(name=name, state_dim=dim, parents=parents, **more)
    object.__setattr__(made, "alpha", alpha)  # also values that the config itself refuses: the graph checks them again
    return made


def build(*nodes, alpha_X=0.1, alpha_Z=0.2):
    return graph.build(nodes, alpha_X, alpha_Z)


def inputs(g, name):
    found = next(n for n in g.nodes if n.name == name)
    return [(g.nodes[i.node].name, i.lag) for i in found.inputs]


def test_the_seed_graph_reads_new_latents_and_the_previous_token():
    g = reference_graph(1e-3, 0.125)
    assert [n.name for n in g.nodes] == ["Z1", "Z2", "Z3", "Z4", "X"]
    assert inputs(g, "Z2") == [("Z2", 1), ("X", 1)]
    assert inputs(g, "X") == [("Z1", 0), ("Z2", 0), ("Z3", 0), ("Z4", 0)]
    assert (g.vocab_size, g.nb_states, g.table_size) == (32, 256, 4 * 4 * 32 * 4 + 256 * 32)
    assert [n.alpha for n in g.nodes] == [0.125] * 4 + [1e-3]


def test_nodes_may_come_in_any_order():
    g = build(node("X", 8, ("B", "A")), node("B", 2, ("A",)), node("A", 3))
    assert [n.name for n in g.nodes] == ["A", "B", "X"]
    assert inputs(g, "B") == [("B", 1), ("A", 0)]
    assert g.kernel_shape(2) == (2, 3, 8)


def test_the_observed_node_reads_itself_only_when_it_says_so():
    assert inputs(build(node("Z"), node("X", 8, ("Z",))), "X") == [("Z", 0)]
    assert inputs(build(node("Z"), node("X", 8, ("Z", "X"))), "X") == [("Z", 0), ("X", 1)]


def test_several_observed_nodes_make_one_token():
    g = build(node("Z"), node("A", 3, ("Z",), observed=True), node("B", 5, ("Z", "A"), observed=True))
    assert g.vocab_size == 15
    assert inputs(g, "B") == [("Z", 0), ("A", 1)]


def test_observed_flag_wins_over_the_name():
    assert [n.name for n in build(node("X", 4, observed=False), node("Y", 6, ("X",), observed=True)).observed] == ["Y"]


def test_own_alpha_wins_and_may_differ_by_symbol():
    g = build(node("Z", 2, alpha=(0.5, 2.0)), node("X", 8, ("Z",), alpha=3.0))
    assert [n.alpha for n in g.nodes] == [(0.5, 2.0), 3.0]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], ["graph is empty"]),
        ([node("")], ["empty name"]),
        ([node("X"), node("X")], ["two nodes", "'X'"]),
        ([node("Z")], ["no node is observed", "Z"]),
        ([node("X", parents=("Q",))], ["'X'", "unknown parent 'Q'"]),
        ([node("Z"), node("X", parents=("Z", "Z"))], ["'X'", "a parent twice"]),
        ([node("Z", parents=("Z",)), node("X")], ["'Z'", "lists itself"]),
        ([node("X", mode="slow")], ["'X'", "slow"]),
        ([node("Z", 2**17), node("X")], ["'Z'", "state_dim", "65536"]),
        ([node("X", 300, observed=True), node("Y", 300, observed=True)], ["X (300)", "90000 tokens"]),
        ([node("Z", 4, alpha=(1.0, 2.0)), node("X")], ["'Z'", "2 values", "(4)"]),
        ([node("Z", alpha=1e-12), node("X")], ["'Z'", "concentration"]),
    ],
)
def test_a_malformed_graph_is_refused_by_name_and_rule(nodes, words):
    with pytest.raises(ConfigError) as error:
        build(*nodes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_a_positive_number(alpha):
    with pytest.raises(ConfigError, match=r"alpha of node 'Z1'.*concentration"):
        reference_graph(0.1, alpha)


def test_missing_alpha_names_the_short_form():
    with pytest.raises(ConfigError, match=r"'Z'.*alpha_Z"):
        graph.build([node("Z"), node("X", parents=("Z",))], alpha_X=1.0)


def test_defect_cycle_among_latents_is_an_error_with_its_path():
    """Upstream, the builder waited for ever."""
    with pytest.raises(ConfigError, match=r"B -> C -> D -> B form a cycle|C -> D -> B -> C form a cycle|D -> B -> C -> D form a cycle"):
        build(node("A"), node("B", parents=("D", "A")), node("C", parents=("B",)), node("D", parents=("C",)), node("X", parents=("D",)))


def test_a_table_over_the_bound_is_refused_before_it_is_made():
    latents = [node(f"Z{i}", 64) for i in range(8)]
    with pytest.raises(ConfigError, match=r"kernel of node 'X' would have 64 x .* entries; at most"):
        build(*latents, node("X", 32, tuple(f"Z{i}" for i in range(8))))


def test_tables_that_are_too_large_only_together_are_refused():
    latents = [node(f"Z{i}", 4096) for i in range(5)]
    with pytest.raises(ConfigError, match="together"):
        build(*latents, node("X", 32))


def test_checking_a_graph_loads_no_array_library():
    code = "import sys; import src.apps.gssm.graph; print([m for m in ('numpy', 'numba', 'torch', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
