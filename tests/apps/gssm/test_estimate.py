import itertools
from math import lgamma

import numpy as np
import pytest
from naive_gssm import reference_graph

from src.apps.gssm import difficulty, difficulty_page, estimate, graph, kernels
from src.apps.gssm.filter import Filter
from src.apps.gssm.measure_config import DifficultyConfig, MeasureConfig
from src.apps.gssm.node import NodeConfig
from src.apps.gssm.sampler import Sampler
from src.nanollama.config import ConfigError


def node(name, dim, parents=(), **more):
    return NodeConfig(name=name, state_dim=dim, parents=parents, **more)


def sampler(nodes, alpha_X=0.4, alpha_Z=0.4):
    return Sampler(kernels.draw(graph.build(nodes, alpha_X, alpha_Z), 0), 0)


def urn(path, dim, alpha):
    """log probability of (row, outcome) pairs drawn from rows that are Dirichlet(alpha) and integrated out."""
    counts, total = {}, 0.0
    for row, outcome in path:
        c = counts.setdefault(row, np.zeros(dim))
        total += np.log((alpha + c[outcome]) / (dim * alpha + c.sum()))
        c[outcome] += 1
    return total


def test_where_nothing_is_hidden_the_particle_filter_is_exact():
    """Dirichlet-multinomial chain: the closed form of its likelihood, by gamma functions."""
    chain = sampler([node("X", 3, ("X",), mode="context")])
    tokens = chain.sample("floor", 0, 4, 40)
    for i, row in enumerate(tokens.astype(int)):
        transitions = np.zeros((3, 3))
        np.add.at(transitions, (np.r_[0, row[:-1]], row), 1)
        log_p = sum(lgamma(1.2) - lgamma(1.2 + c.sum()) + sum(lgamma(0.4 + n) - lgamma(0.4) for n in c) for c in transitions)
        found = estimate.ParticleFilter(chain.kernels, 3).losses(row, seed=i)
        probability = (np.exp(-found) - estimate.DEFENCE / 3) / (1 - estimate.DEFENCE)
        assert np.log(probability).sum() == pytest.approx(log_p, abs=1e-4)


@pytest.mark.parametrize("look_ahead", [True, False])
def test_many_particles_reach_the_exact_likelihood_of_a_graph_with_drawn_kernels(look_ahead, monkeypatch):
    """Against the sum over all latent paths, each with its kernel integrated out."""
    monkeypatch.setattr(estimate, "LOOK_AHEAD", 4096 if look_ahead else 0)
    hidden = sampler([node("Z", 2, ("X",), mode="context"), node("X", 3, ("Z",))])
    emission = hidden.kernels.tables[1]
    tokens = hidden.sample("floor", 0, 3, 6).astype(int)
    for i, row in enumerate(tokens):
        exact = 0.0
        for path in itertools.product(range(2), repeat=len(row)):
            z, x = (0, *path), (0, *row)
            steps = [((z[t], x[t]), z[t + 1]) for t in range(len(row))]
            exact += np.exp(urn(steps, 2, 0.4)) * np.prod(emission[list(path), row])
        found = estimate.ParticleFilter(hidden.kernels, 10_000 if look_ahead else 40_000).losses(row, seed=i)
        assert found.sum() == pytest.approx(-np.log(exact), abs=0.05)


@pytest.mark.parametrize("look_ahead", [True, False])
def test_bounds_hold_the_exact_loss_between_them(look_ahead, monkeypatch):
    monkeypatch.setattr(estimate, "LOOK_AHEAD", 4096 if look_ahead else 0)
    nodes = [node("A", 3, ("X",)), node("B", 2, ("A",)), node("X", 5, ("A", "B", "X"))]
    known = sampler(nodes)
    tokens = known.sample("floor", 0, 48, 33)
    exact = Filter(known.kernels)
    found = estimate.bounds(known, 32, 48, 500)
    entropy, nll = exact.entropy(tokens)[:, 1:].mean(), exact.nll(tokens)[:, 1:].mean()
    previous = _informed_of_previous_states(known, monkeypatch)
    assert previous < entropy and found.lower == pytest.approx(entropy if look_ahead else previous)
    assert nll - 1e-3 <= found.upper <= nll + 0.02
    assert found == estimate.bounds(known, 32, 48, 500, threads=2)


def _informed_of_previous_states(known, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(estimate, "LOOK_AHEAD", 0)
        tokens, latents = known.sample_with_latents("floor", 0, 48, 33)
        seeds = [estimate.derive_key("particles", 0, "floor", i)[0] for i in range(48)]
        return np.mean([estimate.informed_entropy(known.kernels, *rest)[1:] for rest in zip(tokens, latents, seeds, strict=True)])


def test_knowing_the_kernels_is_the_lower_bound_of_drawn_ones():
    drawn = sampler([node("A", 3, ("X",), mode="context"), node("B", 3, ("X",)), node("X", 5, ("A", "B"))])
    found = estimate.bounds(drawn, 64, 16)
    assert 0 < found.lower < found.upper < np.log(5)
    assert "knows the sequence's kernels below" in found.name and "128 particles" in found.name
    tokens = drawn.sample("floor", 0, 16, 65)
    known = [Filter(drawn.kernels_of("floor", i)).entropy(row[None])[0, 1:].mean() for i, row in enumerate(tokens)]
    assert found.lower == pytest.approx(np.mean(known))


def test_a_product_kernel_that_is_drawn_anew_is_refused():
    drawn = sampler([node("A", 3, ("X",), mode="context", kernel_type="product"), node("X", 5, ("A",))], 2.0, 2.0)
    with pytest.raises(ConfigError, match="node 'A' has a product kernel drawn per sequence"):
        estimate.bounds(drawn, 8)


def test_difficulty_names_the_estimator():
    drawn = kernels.draw(graph.build([node("Z", 3, mode="context"), node("X", 4, ("Z",))], 0.3, 0.3), 0)
    found = difficulty.measure(drawn, 16, MeasureConfig(tokens=4096, sequences=64))
    assert found["bayes_estimator"].startswith("bounds: a particle filter with 128 particles")
    assert 0 < found["bayes_lower"] < found["bayes_loss"] < found["log_vocab"]
    assert "context node Z" in found["bayes_note"] and found["sequences"] == 8
    row = {**found, "name": "one", "alpha_X": 0.3, "alpha_Z": 0.3, "graph_seeds": [0]}
    table, text = difficulty_page.settings_table([row]), difficulty_page.difficulty_page([row], DifficultyConfig()).render()
    assert table.rows[0][-2].startswith("≤ ") and "upper bounds (≤) on the Bayes loss on 8 sequences" in table.caption
    assert "exact losses" not in text and "a predictor that knows the sequence" in text and "whole past, upper bound" in text
    exact = difficulty.measure(kernels.draw(reference_graph(latents=1), 0), 16, MeasureConfig(tokens=4096, sequences=64))
    assert exact["bayes_estimator"] == "exact filter" and "bayes_note" not in exact
