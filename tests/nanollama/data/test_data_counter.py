import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.data.counter import _stream_key, random_words, uniform, words_at

MASK = 2**64 - 1


def philox4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """Ten rounds in plain Python, from the formulas of Salmon et al. (2011), section 4.3."""
    c = [(counter >> (64 * i)) & MASK for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c


def test_the_reference_gives_the_published_vector() -> None:
    # first line for philox4x64 10 in Random123's known answer tests
    assert philox4x64(0, (0, 0)) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@given(seed=st.integers(-(2**63), 2**63), index=st.integers(0, 2**62))
def test_words_are_philox_of_seed_stream_and_index(seed: int, index: int) -> None:
    # NumPy steps the counter before it uses it
    expected = philox4x64(index + 1, (seed % 2**64, _stream_key("text/train")))
    assert random_words(seed, "text/train", index, 1)[0].tolist() == expected


@given(start=st.integers(0, 2**60), count=st.integers(1, 40), data=st.data())
def test_a_row_depends_on_its_index_only(start: int, count: int, data: st.DataObject) -> None:
    words = random_words(3, "s", start, count)
    chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=10)), dtype=np.int64)
    assert np.array_equal(words_at(3, "s", start + chosen), words[chosen])


def test_streams_and_seeds_are_unrelated() -> None:
    rows = [random_words(seed, name, 0, 100) for seed in (0, 1, -1) for name in ("a", "b", "a/train", "a/valid")]
    assert len(np.unique(np.stack(rows))) == len(rows) * 400


def test_uniform_stays_inside_the_open_interval() -> None:
    ends = uniform(np.array([0, MASK], dtype=np.uint64))
    assert 0 < ends[0] < ends[1] < 1
    counts = np.histogram(uniform(random_words(0, "u", 0, 25_000)), bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 148.2  # chi-square with 99 degrees of freedom, p = .001


def test_negative_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="start -1"):
        random_words(0, "s", -1, 2)
