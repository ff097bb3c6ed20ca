import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_gssm import graphs, predictive, reference_graph, steps, token_of
from scipy import stats

from src.apps.gssm import alias, graph, kernels
from src.apps.gssm.node import NodeConfig
from src.apps.gssm.sampler import Sampler


def node(name, dim, parents=(), **more):
    return NodeConfig(name=name, state_dim=dim, parents=parents, **more)


def make(alpha_X=0.05, alpha_Z=0.125, graph_seed=0, seed=0, **more):
    return Sampler(kernels.draw(reference_graph(alpha_X, alpha_Z), graph_seed), seed, **more)


def probabilities(packed):
    """The law that an alias table draws from, in exact integer arithmetic."""
    dim = packed.shape[-1]
    bits = alias.alias_bits(dim)
    full = 2 ** (32 - bits)
    law = np.zeros(packed.shape)
    for row, entries in zip(law.reshape(-1, dim), packed.reshape(-1, dim), strict=True):
        for slot, entry in enumerate(int(e) for e in entries):
            threshold, other = entry >> bits, entry & (2**bits - 1)
            row[slot] += threshold / full
            row[other] += 1 - threshold / full
    return law / dim


@pytest.mark.parametrize("dim", [1, 2, 3, 32, 256, 300])
@pytest.mark.parametrize("alpha", [1e-3, 0.3, 10.0])
def test_alias_tables_hold_the_law_to_32_bits(dim, alpha):
    """Upstream defect 13: a cumulative table that ends below one gave its remainder to symbol 0."""
    table = kernels.dirichlet((20, dim), alpha, np.random.default_rng(1))
    np.testing.assert_allclose(probabilities(alias.packed_table(table)), table, atol=2.0**-31)


@pytest.mark.parametrize("dim", [3, 100, 256])
def test_counting_every_random_word_gives_the_law(dim):
    """The words that lead to each outcome, of all 2^32."""
    row = kernels.dirichlet((dim,), 0.05, np.random.default_rng(1))
    bits, words = alias.alias_bits(dim), np.zeros(dim)
    for slot, entry in enumerate(int(e) for e in alias.packed_table(row)):
        first, end = -(-(slot << 32) // dim), -(-((slot + 1) << 32) // dim)
        other = min(end, -(-((slot << 32) + (entry >> bits << bits)) // dim))  # from here on the fraction passes the threshold
        words[slot] += other - first
        words[entry & (2**bits - 1)] += end - other
    assert words.sum() == 2**32 and abs(words / 2**32 - row).max() < 16 * 2.0**-32


@settings(max_examples=25, deadline=None)
@given(graphs(modes=("default", "dead", "slow", "context")), st.integers(0, 2**40), st.integers(1, 40))
@pytest.mark.filterwarnings("ignore:node .* ruled by the clip")
def test_compiled_and_reference_tokens_are_the_same_bits(g, start, length):
    drawn = kernels.draw(g, 1)
    one = Sampler(drawn, 7).sample_with_latents("train", start, 19, length)
    two = Sampler(drawn, 7, backend="numpy").sample_with_latents("train", start, 19, length)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert one[0].max() < g.vocab_size


def test_a_sequence_does_not_depend_on_its_batch():
    sampler = make()
    whole = sampler.sample("train", 0, 200, 50)
    for start, count in [(0, 1), (3, 16), (17, 65), (199, 1)]:
        np.testing.assert_array_equal(whole[start : start + count], sampler.sample("train", start, count, 50))
    np.testing.assert_array_equal(whole[:, :21], sampler.sample("train", 0, 200, 21))
    np.testing.assert_array_equal(whole, make(threads=2).sample("train", 0, 200, 50))


def test_context_sequences_do_not_depend_on_their_batch(monkeypatch):
    nodes = [NodeConfig(name="Z", state_dim=4, parents=("X",), mode="context"), NodeConfig(name="X", state_dim=8, parents=("Z",))]
    drawn = kernels.draw(graph.build(nodes, 0.1, 0.2), 0)
    whole = Sampler(drawn, 0).sample("train", 0, 40, 30)
    monkeypatch.setattr("src.apps.gssm.sampler.CONTEXT_BYTES", 4 * 4 * 8 * 4 * 3)
    np.testing.assert_array_equal(whole, Sampler(drawn, 0, threads=2).sample("train", 0, 40, 30))
    np.testing.assert_array_equal(whole[5:9], Sampler(drawn, 0).sample("train", 5, 4, 30))


def test_defect_context_kernels_differ_by_sequence_and_are_those_announced():
    """Upstream, one kernel served the whole batch, on every rank."""
    nodes = [NodeConfig(name="Z", state_dim=3, parents=("X",), mode="context"), NodeConfig(name="X", state_dim=3, parents=("Z",))]
    sampler = Sampler(kernels.draw(graph.build(nodes, 0.1, 0.5), 0), 0)
    for i in (0, 1):
        tokens, latents = sampler.sample_with_latents("train", i, 1, 20_000)
        z, x = latents[0, :, 0].astype(int), tokens[0].astype(int)
        counts = np.zeros((3, 3, 3))
        np.add.at(counts, (z[:-1], x[:-1], z[1:]), 1)
        visits = counts.sum(-1, keepdims=True)
        announced = sampler.kernels_of("train", i).tables[0]
        assert (np.abs(counts - visits * announced) <= 6 * np.sqrt(visits * announced + 1)).all()
    assert not np.array_equal(sampler.kernels_of("train", 0).tables[0], sampler.kernels_of("train", 1).tables[0])


def test_defect_ranks_have_disjoint_streams_and_resume_continues():
    """Upstream, every rank drew the same batches and a resumed run drew the first one again."""
    sampler, ranks, local, updates = make(), 4, 8, 3
    whole = sampler.sample("train", 0, ranks * local * updates, 64)
    seen = [sampler.sample("train", (u * ranks + r) * local, local, 64) for u in range(updates) for r in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(seen), whole)
    assert len({row.tobytes() for row in whole}) == len(whole)
    resumed = make().sample("train", 2 * ranks * local, ranks * local, 64)
    np.testing.assert_array_equal(resumed, whole[2 * ranks * local :])


def test_defect_the_data_seed_changes_the_data_and_not_the_kernels():
    one, two = make(seed=0), make(seed=1)
    assert one.kernels.fingerprint == two.kernels.fingerprint
    assert not np.array_equal(one.sample("train", 0, 8, 64), two.sample("train", 0, 8, 64))


def test_train_and_test_splits_share_no_sequence():
    sampler = make()
    rows = {split: {row.tobytes() for row in sampler.sample(split, 0, 500, 64)} for split in ("train", "test")}
    assert not rows["train"] & rows["test"]


def test_defect_tokens_take_the_smallest_type():
    """Upstream stored 32 symbols as int64."""
    for vocab, dtype in [(2, np.uint8), (256, np.uint8), (257, np.uint16), (65536, np.uint16)]:
        sampler = Sampler(kernels.draw(graph.build([NodeConfig(name="X", state_dim=vocab)], 1.0), 0), 0)
        assert sampler.sample("train", 0, 1, 5).dtype == dtype


OTHERS = {
    "modes": [node("A", 3, ("X",), mode="slow"), node("B", 2, ("A",), mode="dead"), node("X", 4, ("A", "B", "X"), mode="slow")],
    "product": [node("A", 2, ("X",)), node("B", 2), node("X", 4, ("A", "B", "X"), kernel_type="product")],
    "two observed": [node("A", 2, ("Y", "W")), node("Y", 2, ("A", "W"), observed=True), node("W", 3, ("A", "Y"), observed=True)],
    "alpha by symbol": [node("A", 3, alpha=(0.2, 1.0, 3.0)), node("X", 3, ("A",), alpha=(5.0, 0.1, 1.0))],
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_sampled_steps_follow_the_kernels(name):
    """Law of the first two steps of all nodes, whatever the features of the graph."""
    drawn = kernels.draw(graph.build(OTHERS[name], 1.0, 1.0), 2)
    g, count = drawn.graph, 100_000
    tokens, latents = Sampler(drawn, 0).sample_with_latents("train", 0, count, 2)
    seen = np.stack(np.unravel_index(tokens.astype(int), [n.state_dim for n in g.observed]), axis=-1)
    states = np.concatenate([latents.astype(int), seen], axis=-1).reshape(count, -1)
    law = {(*s1, *s2): p * q for s1, p in steps(drawn, (0,) * len(g.nodes)).items() for s2, q in steps(drawn, s1).items()}
    _chi_square(states, law, count)


@pytest.mark.parametrize("alphas", [(1e-3, 0.125), (0.05, 1e-3), (0.5, 0.5)])
def test_sampled_frequencies_are_the_exact_ones(alphas):
    """Law of (state, next state) from the sampler against the kernels, and of the first two tokens against brute force."""
    g = reference_graph(*alphas, latents=2, dim=2, vocab=3)
    drawn = kernels.draw(g, 4)
    count = 200_000
    tokens, latents = Sampler(drawn, 0).sample_with_latents("train", 0, count, 2)
    states = np.concatenate([latents, tokens[..., None]], axis=-1).astype(int)
    first = steps(drawn, (0, 0, 0))
    law = {(*s1, *s2): p * q for s1, p in first.items() for s2, q in steps(drawn, s1).items()}
    _chi_square(states.reshape(count, -1), law, count)
    bigram = {
        (a, b): predictive(drawn, [a, b])[0][0, a] * predictive(drawn, [a, b])[0][1, b]
        for a in range(3)
        if predictive(drawn, [0])[0][0, a] > 1e-12
        for b in range(3)
    }
    _chi_square(tokens.astype(int), bigram, count)


def _chi_square(rows, law, count):
    values, counts = np.unique(rows, axis=0, return_counts=True)
    observed = {tuple(int(x) for x in v): int(c) for v, c in zip(values, counts, strict=True)}
    assert all(law.get(v, 0) * count > 1e-3 for v in observed)  # nothing that should not happen
    common = [v for v, p in law.items() if p * count >= 5]
    expected = np.array([law[v] * count for v in common])
    found = np.array([observed.get(v, 0) for v in common])
    rest = count - expected.sum()
    if rest >= 5:
        expected, found = np.append(expected, rest), np.append(found, count - found.sum())
    if len(expected) > 1:
        assert stats.chi2.sf(((found - expected) ** 2 / expected).sum(), len(expected) - 1) > 1e-4


def test_rare_symbols_come_as_often_as_they_should():
    g = graph.build([NodeConfig(name="X", state_dim=32)], 0.1)
    drawn = kernels.draw(g, 2)
    tokens = Sampler(drawn, 0).sample("train", 0, 2000, 2000)
    counts = np.bincount(tokens.ravel(), minlength=32)
    expected = drawn.tables[0] * tokens.size
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected) + 1).all()
    assert (expected < 50).any() and (expected > 1e5).any()


def test_tokens_are_the_mixed_radix_number_of_the_observed_states():
    nodes = [NodeConfig(name="Z", state_dim=3)] + [
        NodeConfig(name=n, state_dim=d, parents=("Z",), observed=True) for n, d in (("A", 3), ("B", 5))
    ]
    drawn = kernels.draw(graph.build(nodes, 0.1, 0.5), 0)
    assert token_of(drawn, (0, 2, 4)) == 14
    tokens = Sampler(drawn, 0).sample("train", 0, 300, 40)
    assert {int(t) for t in np.unique(tokens)} <= set(range(15)) and tokens.max() > 4


def test_impossible_requests_are_refused():
    for start, count, length in [(-1, 1, 1), (0, -1, 1), (0, 1, -1), (2**64, 1, 1), (0, 1, 2**40)]:
        with pytest.raises(ValueError, match="no such sequences"):
            make().sample("train", start, count, length)
    assert make().sample("train", 0, 0, 5).shape == (0, 5)
    assert make().sample("train", 0, 5, 0).shape == (5, 0)
