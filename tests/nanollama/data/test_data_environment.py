"""The corpus of the real environment that runs the tests, in a small size."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.config import ConfigError
from src.nanollama.data import Manifest, Mixture, bits_per_byte, environment, environment_corpus, open_stream, text_sources
from src.nanollama.data.near_duplicates import SeenTexts, fingerprints

SIZE = 256 << 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return environment_corpus(tmp_path_factory.mktemp("cache"), SIZE)


def test_five_domains_of_the_size_asked_for(corpus: Manifest) -> None:
    assert corpus.domains == ("python", "cpp", "prose", "web", "data")
    for domain in corpus.domains:
        sizes = [file.bytes for file in corpus.files if file.domain == domain]
        assert SIZE - environment.SMALLEST < sum(sizes) <= SIZE
        assert min(sizes) >= environment.SMALLEST and max(sizes) <= SIZE // 16
        held_out = sum(file.bytes for file in corpus.select(domain, "valid"))
        assert 0.05 < held_out / sum(sizes) <= 0.1


def test_a_second_build_is_the_same(corpus: Manifest, tmp_path: Path) -> None:
    again = environment_corpus(tmp_path, SIZE)
    assert again.folder != corpus.folder and again.digest == corpus.digest
    assert [file.path for file in again.files] == [file.path for file in corpus.files]
    assert [path.name for path in tmp_path.iterdir()] == [again.folder.name]  # nothing half-made is left


def test_a_later_call_reads_what_is_there(corpus: Manifest) -> None:
    stamp = (corpus.folder / "manifest.json").stat().st_mtime_ns
    assert environment_corpus(corpus.folder.parent, SIZE) == corpus
    assert (corpus.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_every_file_is_text_and_no_two_are_near_duplicates(corpus: Manifest) -> None:
    names = {file: file.path.split("/", 2)[2] for file in corpus.files}
    seen = SeenTexts()
    # in the order they were chosen: of a short text and a longer one that quotes it, both stay if the short one came first
    for file in sorted(names, key=lambda file: (corpus.domains.index(file.domain), hashlib.sha256(names[file].encode()).digest())):
        text = corpus.locate(file).read_bytes()
        assert b"\0" not in text and text.decode()
        assert seen.share(text) <= 0.5
        seen.add(text)


def test_little_of_the_held_out_text_occurs_in_the_training_text(corpus: Manifest) -> None:
    for domain in corpus.domains:
        train, held_out = (fingerprints(open_stream(corpus, domain, split).ids.tobytes()) for split in ("train", "valid"))
        assert len(held_out & train) < 0.25 * len(held_out)


def test_domains_are_what_they_say(corpus: Manifest) -> None:
    texts = {domain: open_stream(corpus, domain, "train").ids.tobytes() for domain in corpus.domains}
    rate = {word: {domain: text.count(word) / len(text) for domain, text in texts.items()} for word in (b"\ndef ", b"#include", b" the ")}
    assert max(rate[b"\ndef "], key=rate[b"\ndef "].__getitem__) == "python"
    assert max(rate[b"#include"], key=rate[b"#include"].__getitem__) == "cpp"
    assert max(rate[b" the "], key=rate[b" the "].__getitem__) == "prose"
    suffixes = {domain: {Path(file.path).suffix for file in corpus.files if file.domain == domain} for domain in corpus.domains}
    assert suffixes["python"] == {".py"} and suffixes["cpp"] <= {".h", ".hh", ".hpp", ".cuh", ".c", ".cc", ".cpp"}
    assert {".js", ".css"} <= suffixes["web"] <= {".html", ".htm", ".js", ".mjs", ".css"}
    assert {".json", ".csv"} <= suffixes["data"] <= {".json", ".csv", ".yaml", ".yml", ".toml"}
    assert any("pydoc/" in file.path for file in corpus.files) and any(file.path.endswith("METADATA") for file in corpus.files)


def test_it_trains_and_compares_like_any_source(corpus: Manifest) -> None:
    sources = text_sources(corpus, seq_len=64)
    assert Mixture(sources, [0.2] * 5).batch("train", 0, 16).shape == (16, 65)
    for source in sources.values():
        held_out = source.streams["valid"].ids
        assert 0.3 < bits_per_byte(held_out, "xz") < bits_per_byte(held_out, "gzip") * 1.05 < 6


def test_a_changed_file_is_named(corpus: Manifest, tmp_path: Path) -> None:
    copy = Manifest(tmp_path, corpus.files)
    for file in corpus.files:
        copy.locate(file).parent.mkdir(parents=True, exist_ok=True)
        copy.locate(file).write_bytes(corpus.locate(file).read_bytes())
    copy.verify()
    copy.locate(corpus.files[0]).write_text("changed")
    with pytest.raises(ConfigError, match=r"has changed from .* bytes since"):
        copy.verify()


def test_a_poor_environment_is_an_error_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(100):
        (tmp_path / "lib" / f"{i}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "lib" / f"{i}.py").write_bytes(np.random.default_rng(i).integers(97, 122, 3000, dtype=np.uint8).tobytes())
    monkeypatch.setattr(environment, "_roots", lambda: [("packages", tmp_path / "lib")])
    with pytest.raises(ConfigError, match=r"has 0 bytes of domain cpp, 131,072 are needed"):
        environment_corpus(tmp_path / "cache", SIZE)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(ConfigError, match="at least 131,072 bytes"):
        environment_corpus(tmp_path / "cache", 1000)


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    made, there = tmp_path / "made", tmp_path / "there"
    for folder in (made, there):
        folder.mkdir()
        (folder / "file").write_text("x")
    with pytest.raises(ConfigError, match="is in the way"):
        environment._publish(made, there)
    (there / "manifest.json").write_text("{}")
    environment._publish(made, there)  # another process was faster: its corpus stays
    assert (there / "manifest.json").exists()


def test_long_texts_give_their_beginning_and_binaries_nothing() -> None:
    lines = b"".join(b"line %d\n" % i for i in range(100))
    assert environment._excerpt(lines, 10_000) == lines
    cut = environment._excerpt(lines, 500)
    assert lines.startswith(cut) and cut.endswith(b"\n") and 490 <= len(cut) <= 500
    assert environment._excerpt("é".encode() * 400, 501).decode() == "é" * 250  # no line to end with: between characters
    assert environment._excerpt(b"\xff\xfe" + lines, 500) == b""
    assert environment._excerpt(b"a\0b", 500) == b""


def test_web_files_inside_archives_are_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pages.zip", "w") as archive:
        for name in ("a/index.html", "a/font.woff2", "../escape.js", "a/.hidden/x.css"):
            archive.writestr(name, name * 100)
    found = dict(environment._zip_members(tmp_path / "pages.zip"))
    assert {name: read() for name, read in found.items()} == {"a/index.html": b"a/index.html" * 100}
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    assert list(environment._zip_members(tmp_path / "broken.zip")) == []


@given(st.binary(min_size=2000, max_size=4000), st.integers(0, 500))
def test_fingerprints_do_not_depend_on_where_a_passage_stands(data: bytes, offset: int) -> None:
    assert fingerprints(data) <= fingerprints(bytes(offset) + data + b"tail")


def test_shares_measure_what_was_seen() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.bytes(50_000), rng.bytes(50_000)
    seen = SeenTexts()
    assert seen.share(first) == 0
    seen.add(first)
    assert seen.share(first) == 1 and seen.share(second) == 0 and seen.share(b"short") == 0
    assert seen.share(second + first) == pytest.approx(0.5, abs=0.05)
