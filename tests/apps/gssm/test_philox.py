import numpy as np
import pytest

from src.apps.gssm.philox import derive_key, philox4x32, words
from src.apps.gssm.sampler_native import philox_block

# Known answers of the Random123 distribution (kat_vectors): counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(counter, key, output):
    found = philox4x32(np.array(counter, np.uint32), key)
    assert tuple(int(w) for w in found) == output


def test_compiled_blocks_equal_the_reference():
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 2**32, (2, 37), dtype=np.uint32)
    key = (0xDEADBEEF, 0x12345678)
    out = np.empty((4, 37), np.uint32)
    philox_block(77, low, high, np.uint32(key[0]), np.uint32(key[1]), out)
    counter = np.stack([np.full(37, 77, np.uint32), low, high, np.zeros(37, np.uint32)])
    np.testing.assert_array_equal(out, philox4x32(counter, key))


def test_words_can_be_read_from_anywhere():
    sequences = np.array([0, 5, 2**32 + 1], np.uint64)
    whole = words(sequences, 0, 40, (1, 2))
    np.testing.assert_array_equal(whole[7:18], words(sequences, 7, 11, (1, 2)))
    assert len(np.unique(whole)) == whole.size


def test_keys_differ_by_every_part():
    parts = [("a", 0), ("a", 1), ("b", 0), ("a", "0"), ("a",), ("a", 0, 0)]
    assert len({derive_key(*p) for p in parts}) == len(parts)
