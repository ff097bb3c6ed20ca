import gzip

import numpy as np
import pytest
from naive_gssm import reference_graph

from src.apps.gssm import compression, kernels
from src.apps.gssm.sampler import Sampler

GRAPH_SEEDS = 8


def legacy(count, **graph):
    streams = (Sampler(kernels.draw(reference_graph(**graph), seed), 0) for seed in range(GRAPH_SEEDS))
    return np.mean([compression.gzip_legacy(compression.stream(sampler, count)) for sampler in streams])


def test_golden_legacy_ratio_of_the_first_setting():
    assert 0.71 < legacy(131_072, alpha_X=1e-3, alpha_Z=0.125) < 0.78


def test_golden_legacy_ratio_of_the_second_setting():
    assert 0.70 < legacy(131_072, alpha_X=5e-2, alpha_Z=1e-3) < 0.78


def test_golden_legacy_ratios_of_the_larger_graph():
    """Eight latents, 64 tokens: an emission table of four million entries."""
    larger = {"latents": 8, "vocab": 64}
    assert 0.71 < legacy(131_072, alpha_X=1e-3, alpha_Z=4e-3, **larger) < 0.83
    assert 0.70 < legacy(131_072, alpha_X=2e-3, alpha_Z=1e-3, **larger) < 0.80


def test_legacy_ratio_counts_bytes_of_int64_per_token():
    tokens = np.random.default_rng(0).integers(0, 32, (4, 500)).astype(np.uint8)
    with_header = gzip.compress(tokens.astype(np.int64).tobytes(), compresslevel=9)
    assert compression.gzip_legacy(tokens) == pytest.approx(len(with_header) / 2000, abs=0.02)


@pytest.mark.parametrize(("vocab", "ratio"), [(4, 0.442), (32, 0.990), (64, 1.158), (256, 1.469)])
def test_noise_has_the_published_ratios(vocab, ratio):
    assert compression.gzip_noise(vocab, 65_536) == pytest.approx(ratio, abs=0.015)


def test_the_stream_is_whole_sequences_one_after_the_other():
    sampler = Sampler(kernels.draw(reference_graph(), 0), 0)
    tokens = compression.stream(sampler, 5000)
    assert tokens.shape == (5000,)
    np.testing.assert_array_equal(tokens[:2048], sampler.sample("compression", 0, 1, 2048)[0])
