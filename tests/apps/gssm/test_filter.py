import itertools

import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_gssm import graphs, predictive, reference_graph, steps

from src.apps.gssm import filter as exact
from src.apps.gssm import graph, kernels
from src.apps.gssm.node import NodeConfig
from src.apps.gssm.sampler import Sampler
from src.nanollama.config import ConfigError


def node(name, dim, parents=(), **more):
    return NodeConfig(name=name, state_dim=dim, parents=parents, **more)


CYCLIC = [node("A", 2, ("X",)), node("B", 3, ("A", "X")), node("X", 4, ("A", "B"))]
ACYCLIC = [node("A", 3), node("B", 2, ("A",)), node("X", 4, ("B",))]
SELF = [node("A", 3, ("X",)), node("X", 4, ("A", "X"))]
TWO = [node("A", 3, ("Y",)), node("B", 2), node("Y", 2, ("A", "B", "W"), observed=True), node("W", 3, ("B", "Y"), observed=True)]
WIDE = [node("A", 20, ("X",)), node("B", 2, ("A",)), node("X", 3, ("A", "B"))]
NO_LATENT = [node("X", 4, ("X",))]
GRAPHS = {"cyclic": CYCLIC, "acyclic": ACYCLIC, "self": SELF, "two observed": TWO, "wide": WIDE, "no latent": NO_LATENT}


def draw(nodes, alpha=0.5, seed=0):
    return kernels.draw(graph.build(nodes, alpha, alpha), seed)


@pytest.mark.parametrize("name", ["cyclic", "acyclic", "self", "two observed"])
def test_likelihood_is_the_sum_over_all_paths(name):
    """Enumerate the latent paths themselves: no recursion in common with the filter."""
    drawn = draw(GRAPHS[name])
    tokens = Sampler(drawn, 0).sample("test", 0, 3, 4)
    for row in tokens:
        total = 0.0
        possible = [range(n.state_dim) for n in drawn.graph.nodes]
        first_observed = len(drawn.graph.latents)
        dims = [n.state_dim for n in drawn.graph.observed]
        seen = [tuple(int(x) for x in np.unravel_index(int(t), dims)) for t in row]
        latent = list(itertools.product(*possible[:first_observed]))
        laws = {s: steps(drawn, s) for s in itertools.product(*possible)}
        for path in itertools.product(latent, repeat=len(row)):
            states = [(0,) * len(possible)] + [z + x for z, x in zip(path, seen, strict=True)]
            total += np.prod([laws[a].get(b, 0.0) for a, b in itertools.pairwise(states)])
        nll = exact.Filter(drawn).nll(row[None]).sum()
        assert nll == pytest.approx(-np.log(total), abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(graphs(), st.integers(0, 10**6))
@pytest.mark.filterwarnings("ignore:node .* ruled by the clip")
def test_random_graphs_match_the_naive_filter(g, seed):
    drawn = kernels.draw(g, seed)
    tokens = Sampler(drawn, seed).sample("test", 0, 2, 6)
    found = exact.Filter(drawn)
    ahead, nll, entropy, beliefs = found.predictive(tokens), found.nll(tokens), found.entropy(tokens), found.beliefs(tokens)
    for b, row in enumerate(tokens):
        expected, filtered = predictive(drawn, [int(t) for t in row])
        np.testing.assert_allclose(ahead[b], expected, atol=1e-10)
        np.testing.assert_allclose(nll[b], -np.log(expected[np.arange(len(row)), row]), atol=1e-10)
        np.testing.assert_allclose(entropy[b], [-sum(p * np.log(p) for p in law if p > 0) for law in expected], atol=1e-10)
        for i, latent in enumerate(g.latents):
            marginal = np.zeros((len(row), latent.state_dim))
            for t, law in enumerate(filtered):
                for state, p in law.items():
                    marginal[t, state[i]] += p
            np.testing.assert_allclose(beliefs[latent.name][b], marginal, atol=1e-10)


@pytest.mark.parametrize("name", list(GRAPHS))
def test_equals_a_dense_hidden_markov_model(name):
    """hmmlearn on the flattened process: hidden state = all nodes, emission = the token they spell."""
    drawn = draw(GRAPHS[name])
    g = drawn.graph
    states = list(itertools.product(*(range(n.state_dim) for n in g.nodes)))
    index = {s: i for i, s in enumerate(states)}
    transition = np.zeros((len(states), len(states)))
    for s in states:
        for new, p in steps(drawn, s).items():
            transition[index[s], index[new]] += p
    token = np.array([np.ravel_multi_index(s[len(g.latents) :], [n.state_dim for n in g.observed]) for s in states])
    dense = CategoricalHMM(n_components=len(states))
    dense.startprob_ = transition[0]
    dense.transmat_ = transition
    dense.emissionprob_ = np.eye(g.vocab_size)[token]
    dense.n_features = g.vocab_size
    tokens = Sampler(drawn, 1).sample("test", 0, 4, 60)
    found = exact.Filter(drawn).nll(tokens).sum(axis=1)
    for row, nll in zip(tokens.astype(int), found, strict=True):
        with np.errstate(divide="ignore"):
            assert nll == pytest.approx(-dense.score(row[:, None]), abs=1e-8, rel=1e-10)


def test_results_do_not_depend_on_the_batch_or_the_threads():
    drawn = kernels.draw(reference_graph(0.05, 0.1, latents=3), 0)
    tokens = Sampler(drawn, 0).sample("test", 0, 130, 20)
    whole = exact.Filter(drawn).entropy(tokens)
    np.testing.assert_array_equal(whole, exact.Filter(drawn, threads=2).entropy(tokens))
    np.testing.assert_allclose(whole[70:75], exact.Filter(drawn).entropy(tokens[70:75]), atol=1e-13)


def test_near_deterministic_kernels_stay_finite():
    drawn = kernels.draw(reference_graph(1e-3, 1e-3), 0)
    tokens = Sampler(drawn, 0).sample("test", 0, 32, 300)
    nll = exact.Filter(drawn).nll(tokens)
    assert np.isfinite(nll).all() and (nll >= -1e-12).all()


def test_an_impossible_token_costs_infinity():
    drawn = kernels.draw(graph.build([node("X", 2, ("X",))], 1e-9), 0)
    likely = drawn.tables[0].argmax(-1)
    tokens = np.array([[likely[0], 1 - likely[likely[0]], 0]])
    assert exact.Filter(drawn).nll(tokens)[0].tolist()[:2] == [0.0, np.inf]
    assert np.isnan(exact.Filter(drawn).nll(tokens)[0, 2])


def test_bayes_loss_averages_the_predicted_positions():
    drawn = kernels.draw(reference_graph(0.05, 0.1, latents=2), 0)
    sampler, found = Sampler(drawn, 0), exact.Filter(drawn)
    floor = exact.bayes_loss(sampler, found, seq_len=30, sequences=400)
    assert floor.per_position.shape == floor.per_position_se.shape == (30,)
    assert floor.mean == pytest.approx(floor.per_position.mean())
    tokens = sampler.sample("other", 0, 2000, 31)
    nll = found.nll(tokens)[:, 1:].mean(axis=1)
    spread = np.hypot(floor.se, nll.std() / np.sqrt(len(nll)))
    assert abs(floor.mean - nll.mean()) < 4 * spread
    assert floor.se < 0.5 * nll.std() / np.sqrt(400)  # what Rao-Blackwell is for


def test_floors_of_the_seed_settings():
    """Published floors of the two seed settings, in nats per token over 6 graph seeds: 1.72 and 1.23, sd .03 to .05 between graphs."""
    for alphas, expected in [((1e-3, 0.125), 1.717), ((5e-2, 1e-3), 1.233)]:
        floors = []
        for seed in range(6):
            drawn = kernels.draw(reference_graph(*alphas), seed)
            floors.append(exact.bayes_loss(Sampler(drawn, 0), exact.Filter(drawn), 512, sequences=32).mean)
        assert np.mean(floors) == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("Z", 4, mode="context"), node("X", 4, ("Z",))], "context node Z"),
        ([*(node(f"Z{i}", 8) for i in range(8)), node("X", 4, ("Z0",))], "16777216 joint states"),
        ([*(node(f"Z{i}", 16) for i in range(5)), *(node(f"X{i}", 8, (f"Z{i}", f"Z{i + 1}"), observed=True) for i in range(4))], "entries"),
    ],
)
def test_out_of_reach_says_why(nodes, words):
    with pytest.raises(ConfigError, match=f"no exact Bayes loss.*{words}"):
        exact.Filter(draw(nodes))


@pytest.mark.parametrize("tokens", [np.array([[0, 4]]), np.array([[-1, 0]]), np.array([0, 1]), np.array([[0.0, 1.0]])])
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens must"):
        exact.Filter(draw(CYCLIC)).nll(tokens)
