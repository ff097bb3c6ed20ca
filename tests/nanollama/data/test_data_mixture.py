import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.config import ConfigError
from src.nanollama.data import DataSource, Mixture, TokenStream, WindowSource, check_weights

NAMES = ("python", "cpp", "prose", "web", "data")


def domain(position: int, seq_len: int = 8, vocab: int = 5000) -> WindowSource:
    """Tokens of domain ``position`` lie between 900 * position and 900 * (position + 1)."""
    ids = np.arange(900 * position, 900 * (position + 1), dtype=np.uint16)
    train, valid = TokenStream(ids[:700], np.array([300, 700])), TokenStream(ids[700:], np.array([200]))
    return WindowSource(NAMES[position], train, valid, vocab, seq_len)


SOURCES = {name: domain(position) for position, name in enumerate(NAMES)}


class RunsOnly:
    """A source with nothing but the protocol's ``batch``, counting its calls."""

    def __init__(self, source: WindowSource) -> None:
        self.source, self.vocab_size, self.seq_len, self.calls = source, source.vocab_size, source.seq_len, 0

    def batch(self, split: str, start: int, count: int) -> np.ndarray:
        self.calls += 1
        return self.source.batch(split, start, count)


@st.composite
def simplex(draw: st.DrawFn) -> list[float]:
    parts = draw(st.lists(st.integers(0, 100), min_size=5, max_size=5).filter(any))
    return [part / sum(parts) for part in parts]


@given(weights=simplex(), start=st.integers(0, 2**40), split=st.sampled_from(["train", "valid"]))
def test_a_row_is_the_same_row_of_its_domain(weights: list[float], start: int, split: str) -> None:
    mixture = Mixture(SOURCES, weights)
    picks, batch = mixture.domains_of(split, start, 20), mixture.batch(split, start, 20)
    assert np.array_equal(picks, batch[:, 0] // 900)
    for row, pick in enumerate(picks):
        assert weights[pick] > 0
        assert np.array_equal(batch[row], SOURCES[NAMES[pick]].batch(split, start + row, 1)[0])
    assert np.array_equal(batch[7:], mixture.batch(split, start + 7, 13))


@pytest.mark.parametrize("weights", [[0.2] * 5, [0.5, 0.3, 0.1, 0.06, 0.04], [0.7, 0.0, 0.3, 0.0, 0.0]])
def test_domains_come_as_often_as_their_weights(weights: list[float]) -> None:
    mixture, n = Mixture(SOURCES, weights, seed=1), 50_000
    counts = np.bincount(mixture.domains_of("train", 0, n), minlength=5)
    expected = n * np.array(weights)
    assert (counts[expected == 0] == 0).all()
    positive = expected > 0
    limit = {5: 18.47, 2: 10.83}[int(positive.sum())]  # chi-square with one degree of freedom less, p = .001
    assert ((counts - expected)[positive] ** 2 / expected[positive]).sum() < limit


@given(first=simplex(), second=simplex())
def test_another_weighting_changes_few_picks(first: list[float], second: list[float]) -> None:
    n = 4000
    changed = np.mean(Mixture(SOURCES, first).domains_of("train", 0, n) != Mixture(SOURCES, second).domains_of("train", 0, n))
    distance = np.abs(np.subtract(first, second)).sum() / 2
    bound = 2 * distance / (1 + distance)
    assert changed <= bound + 5 * np.sqrt(bound * (1 - bound) / n) + 2e-3  # five standard errors; some room for the smallest bounds
    assert changed >= distance - 5 * np.sqrt(0.5 / n)


def test_absent_and_weightless_domains_are_the_same_in_any_order() -> None:
    full = Mixture(SOURCES, {"python": 0.5, "cpp": 0.0, "prose": 0.25, "web": 0.0, "data": 0.25})
    part = Mixture({name: SOURCES[name] for name in ("data", "prose", "python")}, [0.25, 0.25, 0.5])
    assert np.array_equal(full.batch("train", 0, 500), part.batch("train", 0, 500))


def test_seed_and_split_choose_the_picks() -> None:
    picks = [Mixture(SOURCES, [0.2] * 5, seed).domains_of(split, 0, 200).tolist() for seed in (0, 1) for split in ("train", "valid")]
    assert len({tuple(pick) for pick in picks}) == 4


def test_sources_with_the_bare_protocol_are_called_once_a_run() -> None:
    bare = {name: RunsOnly(source) for name, source in SOURCES.items()}
    weights = [0.9, 0.1, 0.0, 0.0, 0.0]
    mixture = Mixture(bare, weights)
    assert isinstance(mixture, DataSource)
    assert np.array_equal(mixture.batch("train", 30, 100), Mixture(SOURCES, weights).batch("train", 30, 100))
    picks = mixture.domains_of("train", 30, 100)
    assert sum(source.calls for source in bare.values()) == 1 + np.count_nonzero(np.diff(picks))


def test_segments_follow_the_batch() -> None:
    mixture = Mixture(SOURCES, [0.2] * 5)
    batch, segments = mixture.batch("train", 0, 300).astype(int), mixture.segments("train", 0, 300)
    borders = (batch % 900 >= 300).astype(int)
    assert np.array_equal(segments, borders - borders[:, :1]) and segments.max() == 1
    with pytest.raises(ConfigError, match="RunsOnly has no documents"):
        Mixture({"python": RunsOnly(SOURCES["python"])}, [1.0]).segments("train", 0, 4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.5], "2 weights for 5 domains"),
        ([0.3, 0.3, 0.3, 0.3, -0.2], "weight of data is -0.2"),
        ([0.2, 0.2, 0.2, 0.2, float("nan")], "weight of data is nan"),
        ([0.2, 0.2, 0.2, 0.2, float("inf")], "weight of data is inf"),
        ([0.2, 0.2, 0.2, 0.2, 0.19999], "sum to 0.99999"),
        ([0.0] * 5, "sum to 0"),
        ({"python": 1.0}, "weights are given for"),
    ],
)
def test_wrong_weights_are_errors(weights: list[float] | dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_weights(weights, NAMES)


def test_weights_may_miss_1_by_rounding() -> None:
    assert check_weights([0.2, 0.2, 0.2, 0.2, 0.2 + 9e-7], NAMES).shape == (5,)


def test_domains_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"agree in seq_len.*'cpp': 9"):
        Mixture({"python": domain(0), "cpp": domain(1, seq_len=9)}, [0.5, 0.5])
    with pytest.raises(ConfigError, match=r"agree in vocab_size.*'cpp': 6000"):
        Mixture({"python": domain(0), "cpp": domain(1, vocab=6000)}, [0.5, 0.5])
    with pytest.raises(ConfigError, match="at least one domain"):
        Mixture({}, [])
