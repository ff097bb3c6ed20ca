from pathlib import Path

import numpy as np
import pytest

from src.nanollama.config import ConfigError
from src.nanollama.data import Mixture, folder_corpus, open_stream, text_sources


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for domain in ("notes", "logs"):
        for i in range(15):
            path = tmp_path / "texts" / domain / "deep" / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{domain} {i}: " + " ".join(map(str, rng.integers(0, 10**6, 40))) + "\n")
    return tmp_path / "texts"


def test_subfolders_are_domains_and_packs_hold_their_files(root: Path, tmp_path: Path) -> None:
    manifest = folder_corpus(tmp_path / "cache", root)
    assert manifest.domains == ("logs", "notes")
    for domain in manifest.domains:
        packs = []
        for split in ("train", "valid"):
            stream = open_stream(manifest, domain, split)
            files = [manifest.locate(file).read_bytes() for file in manifest.select(domain, split)]
            assert isinstance(stream.ids, np.memmap) and stream.ids.tobytes() == b"".join(files)
            assert np.array_equal(stream.ends, np.cumsum([len(data) for data in files]))
            packs += files
        assert sorted(packs) == sorted(path.read_bytes() for path in (root / domain).rglob("*.txt"))


def test_no_held_out_file_is_trained_on(root: Path, tmp_path: Path) -> None:
    manifest = folder_corpus(tmp_path / "cache", root)
    for domain in manifest.domains:
        train = open_stream(manifest, domain, "train").ids.tobytes()
        held_out = manifest.select(domain, "valid")
        assert held_out and all(manifest.locate(file).read_bytes() not in train for file in held_out)


def test_sources_read_the_split_they_are_asked_for(root: Path, tmp_path: Path) -> None:
    sources = text_sources(folder_corpus(tmp_path / "cache", root), seq_len=32)
    for source in sources.values():
        assert source.vocab_size == 256
        for split, stream in source.streams.items():
            text = stream.ids.tobytes()
            batch = source.batch(split, 0, 8)
            assert batch.shape == (8, 33) and batch.dtype == np.uint8
            assert all(row.tobytes() in text for row in batch)
    mixture = Mixture(sources, [0.5, 0.5])
    assert mixture.segments("train", 0, 8).shape == mixture.batch("train", 0, 8).shape


def test_a_mapping_chooses_names_and_order(root: Path, tmp_path: Path) -> None:
    manifest = folder_corpus(tmp_path / "cache", {"n": root / "notes", "l": root / "logs"}, held_out=0.3)
    assert manifest.domains == ("n", "l")
    assert folder_corpus(tmp_path / "cache", {"l": root / "logs", "n": root / "notes"}, held_out=0.3).domains == ("l", "n")


def test_packs_are_written_once_and_repaired(root: Path, tmp_path: Path) -> None:
    manifest = folder_corpus(tmp_path / "cache", root)
    before = open_stream(manifest, "logs", "train").ids.tobytes()
    (pack,) = manifest.folder.glob("logs.train.*.bin")
    written = pack.stat().st_mtime_ns
    open_stream(folder_corpus(tmp_path / "cache", root), "logs", "train")
    assert pack.stat().st_mtime_ns == written
    pack.write_bytes(before[:100])
    assert open_stream(manifest, "logs", "train").ids.tobytes() == before
    assert not [path for path in manifest.folder.iterdir() if path.name.startswith(".")]


def test_later_calls_see_the_manifest_not_the_folder(root: Path, tmp_path: Path) -> None:
    first = folder_corpus(tmp_path / "cache", root)
    (root / "notes" / "new.txt").write_text("written later")
    assert folder_corpus(tmp_path / "cache", root) == first
    victim = first.locate(first.files[3])
    victim.write_text("changed")
    with pytest.raises(ConfigError, match=rf"{victim} has changed from"):
        folder_corpus(tmp_path / "cache", root)
    with pytest.raises(ConfigError, match=rf"{victim} has changed its contents"):
        open_stream(first, first.files[3].domain, first.files[3].split)  # also where nobody verified before
    victim.unlink()
    with pytest.raises(ConfigError, match=rf"{victim} is gone"):
        folder_corpus(tmp_path / "cache", root)


def test_wrong_input_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no subfolders"):
        folder_corpus(tmp_path / "cache", root / "notes" / "deep")
    manifest = folder_corpus(tmp_path / "cache", root)
    with pytest.raises(ConfigError, match=r"no 'train' files of domain 'novels'; its domains are logs, notes"):
        open_stream(manifest, "novels", "train")
    with pytest.raises(ConfigError, match=r"text/logs: the train split has [\d,]+ tokens"):
        text_sources(manifest, seq_len=100_000)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be made"):
        folder_corpus(tmp_path / "file", root)
