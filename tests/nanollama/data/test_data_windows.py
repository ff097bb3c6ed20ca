import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.config import ConfigError
from src.nanollama.data import DataSource, TokenStream, WindowSource, batches, sample_range, token_dtype
from src.nanollama.data.source import ScatteredSource

VOCAB = 5000
ENDS = np.array([3, 705, 706, 1000])


def make(train: int = 1000, valid: int = 531, seq_len: int = 10, seed: int = 0, name: str = "numbers") -> WindowSource:
    """Train and held-out streams that count up, so that a window shows where it was cut."""
    streams = [TokenStream(np.arange(low, low + n, dtype=np.uint16), np.array([n])) for low, n in ((0, train), (2000, valid))]
    return WindowSource(name, *streams, VOCAB, seq_len, seed)


def test_rows_are_windows_of_their_split() -> None:
    source = make()
    assert isinstance(source, DataSource) and isinstance(source, ScatteredSource)
    for split, low, high in (("train", 0, 1000), ("valid", 2000, 2531)):
        batch = source.batch(split, 5, 64)
        assert batch.shape == (64, 11) and batch.dtype == np.uint16
        assert (np.diff(batch.astype(int)) == 1).all()
        assert batch.min() >= low and batch.max() < high


@given(start=st.integers(0, 2**40), count=st.integers(1, 20), cut=st.integers(0, 20), split=st.sampled_from(["train", "valid"]))
def test_a_row_depends_on_its_index_only(start: int, count: int, cut: int, split: str) -> None:
    whole = make().batch(split, start, count)
    cut = min(cut, count)
    again = make()
    again.batch(split, 17, 3)  # what was drawn before leaves no trace
    assert np.array_equal(whole, np.concatenate([again.batch(split, start, cut), again.batch(split, start + cut, count - cut)]))


@pytest.mark.parametrize("valid", [11, 531, 530, 540, 541])
def test_validation_covers_the_held_out_stream_once(valid: int) -> None:
    source = make(valid=valid)
    size = source.size("valid")
    assert size == (valid - 1) // 10 and source.size("train") is None
    targets = source.batch("valid", 0, size)[:, 1:].ravel()
    assert np.array_equal(np.sort(targets), np.arange(2001, 2001 + 10 * size))  # each once, a tail of less than a window left out
    assert np.array_equal(source.batch("valid", size, 3), source.batch("valid", 0, 3 % size or 1)[np.arange(3) % size])


def test_the_first_validation_windows_come_from_all_over() -> None:
    firsts = make(valid=10_001).batch("valid", 0, 100)[:, 0].astype(int) - 2000
    assert 0.4 < firsts.mean() / 10_000 < 0.6 and firsts.std() / 10_000 > 0.2
    assert np.array_equal(make(seed=0).batch("valid", 0, 50), make(seed=1).batch("valid", 0, 50))


def test_training_windows_are_uniform_and_reach_both_ends() -> None:
    source = make(train=60)  # 50 possible starts
    counts = np.bincount(source.batch("train", 0, 20_000)[:, 0], minlength=50)
    assert len(counts) == 50
    assert ((counts - 400) ** 2 / 400).sum() < 85.4  # chi-square with 49 degrees of freedom, p = .001


def test_seed_and_name_choose_the_stream() -> None:
    first = make().batch("train", 0, 50)
    assert not np.array_equal(first, make(seed=1).batch("train", 0, 50))
    assert not np.array_equal(first, make(name="other").batch("train", 0, 50))


def test_segments_are_the_documents_of_the_same_batch() -> None:
    stream = TokenStream(np.arange(1000, dtype=np.uint16), ENDS)
    source = WindowSource("documents", stream, stream, VOCAB, 10)
    for split in ("train", "valid"):
        tokens, segments = source.batch(split, 3, 2000).astype(int), source.segments(split, 3, 2000)
        document = sum((tokens >= end).astype(int) for end in ENDS)
        assert segments.dtype == np.int32 and np.array_equal(segments, document - document[:, :1])
        assert segments.max() == 2  # some windows hold the document of a single token


def test_too_short_and_unknown_splits_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"numbers: the valid split has 10 tokens.*needs 11"):
        make(valid=10)
    with pytest.raises(ConfigError, match=r"'test'; there are train and valid"):
        make().batch("test", 0, 1)


@pytest.mark.parametrize(("vocab", "bytes_each"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4), (2**32, 4)])
def test_tokens_take_the_smallest_type(vocab: int, bytes_each: int) -> None:
    assert token_dtype(vocab).itemsize == bytes_each and token_dtype(vocab).kind == "u"


def test_a_vocabulary_beyond_32_bits_is_an_error() -> None:
    with pytest.raises(ConfigError, match="32 bits"):
        token_dtype(2**32 + 1)


@given(step=st.integers(0, 10**9), share=st.integers(1, 9), world=st.integers(1, 9))
def test_ranks_share_a_batch_without_gap_or_overlap(step: int, share: int, world: int) -> None:
    size = share * world
    ranges = [sample_range(step, size, rank, world) for rank in range(world)]
    indices = [index for start, count in ranges for index in range(start, start + count)]
    assert indices == list(range(step * size, (step + 1) * size))


def test_any_world_size_and_resume_gives_the_same_global_batches() -> None:
    source, steps = make(), 6
    alone = [batch for _, batch in zip(range(steps), (b for _, b in batches(source, "train", 12)), strict=False)]
    for world in (1, 2, 3, 4):
        for first in (0, 4):
            ranks = [batches(source, "train", 12, first, rank, world) for rank in range(world)]
            for step in range(first, steps):
                shares = [next(rank) for rank in ranks]
                assert [s for s, _ in shares] == [step] * world
                assert np.array_equal(np.concatenate([b for _, b in shares]), alone[step])


def test_uneven_batches_and_impossible_ranks_are_errors() -> None:
    with pytest.raises(ConfigError, match="10 sequences cannot be shared evenly by 4"):
        sample_range(0, 10, 0, 4)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        sample_range(0, 10, 2, 2)
