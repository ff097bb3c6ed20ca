import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.nanollama.config import ConfigError
from src.nanollama.data import Manifest, build_manifest
from src.nanollama.data.manifest import TextFile, _hold_out


@pytest.fixture
def corpus(tmp_path: Path) -> Manifest:
    """40 files of two domains inside the manifest's own folder, some of them copies."""
    rng = np.random.default_rng(0)
    for domain in ("code", "prose"):
        for i in range(20):
            path = tmp_path / "files" / domain / f"{i % 3}" / f"file{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.bytes(int(rng.integers(100, 1000))))
    for copy in ("code/copy.txt", "prose/copy.txt"):
        (tmp_path / "files" / copy).write_bytes((tmp_path / "files/code/0/file0.txt").read_bytes())
    manifest = build_manifest(tmp_path, {domain: tmp_path / "files" / domain for domain in ("code", "prose")})
    manifest.write()
    return manifest


def test_it_lists_every_file_with_its_hash(corpus: Manifest) -> None:
    assert corpus.domains == ("code", "prose") and len(corpus.files) == 42
    for file in corpus.files:
        data = (corpus.folder / file.path).read_bytes()
        assert file.path.startswith(f"files/{file.domain}/")
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_reading_gives_what_was_written(corpus: Manifest) -> None:
    assert Manifest.read(corpus.folder) == corpus
    corpus.verify()


def test_equal_contents_share_a_split(corpus: Manifest) -> None:
    splits = defaultdict(set)
    for file in corpus.files:
        splits[file.sha256].add(file.split)
    assert len(splits) == 40 and all(len(split) == 1 for split in splits.values())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=40), st.sampled_from([0.05, 0.1, 0.3]))
def test_splits_hold_for_any_files(contents: list[tuple[int, int]], share: float) -> None:
    # content c has c**2 + 1 bytes, so that sizes differ widely; the same content may be in several domains and several times in one
    domains: dict[str, list[TextFile]] = {"a": [], "b": [], "c": []}
    for content, domain in contents:
        sha = hashlib.sha256(bytes([content])).hexdigest()
        domains["abc"[domain]].append(TextFile("x", "abc"[domain], "train", content**2 + 1, sha, 0))
    split_of: dict[str, str] = {}
    done: list[str] = []
    for name, files in domains.items():
        settled = dict(split_of)
        try:
            _hold_out(name, files, share, split_of)
        except ConfigError:
            assert len({file.sha256 for file in files} - set(settled)) < 2
            return
        done.append(name)
        assert all(split_of[sha] == split for sha, split in settled.items())
        sizes = {file.sha256: sum(f.bytes for f in files if f.sha256 == file.sha256) for file in files}
        fresh = {sha for sha in sizes if sha not in settled}
        held = sum(sizes[sha] for sha in fresh if split_of[sha] == "valid")
        # within the share, or a single file where even the smallest exceeds it
        assert held <= share * sum(sizes.values()) or sum(split_of[sha] == "valid" for sha in fresh) == 1
        assert {split_of[sha] for sha in sizes} == {"train", "valid"}


def test_the_held_out_share_is_met_with_many_files(corpus: Manifest) -> None:
    for domain in corpus.domains:
        sizes = {split: sum(file.bytes for file in corpus.select(domain, split)) for split in ("train", "valid")}
        assert 0.05 < sizes["valid"] / sum(sizes.values()) <= 0.1


def test_the_same_files_give_the_same_manifest_anywhere(corpus: Manifest, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    for file in reversed(corpus.files):
        path = other / "renamed" / Path(file.path).relative_to("files")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(corpus.locate(file).read_bytes())
    again = build_manifest(other, {domain: other / "renamed" / domain for domain in corpus.domains})
    assert again.digest == corpus.digest
    assert [file.split for file in again.files] == [file.split for file in corpus.files]
    (other / "renamed/code/copy.txt").write_text("other text")
    assert build_manifest(other, {domain: other / "renamed" / domain for domain in corpus.domains}).digest != corpus.digest


def test_a_moved_corpus_is_still_itself(corpus: Manifest, tmp_path: Path) -> None:
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    Manifest.read(moved).verify()


def test_a_missing_file_is_named(corpus: Manifest) -> None:
    corpus.locate(corpus.files[5]).unlink()
    with pytest.raises(ConfigError, match=rf"{corpus.files[5].path} is gone"):
        corpus.verify()


def test_a_grown_file_is_named(corpus: Manifest) -> None:
    file = corpus.files[7]
    with corpus.locate(file).open("ab") as handle:
        handle.write(b"!")
    with pytest.raises(ConfigError, match=rf"{file.path} has changed from {file.bytes:,} to {file.bytes + 1:,} bytes"):
        corpus.verify()


def test_changed_contents_of_equal_size_are_named(corpus: Manifest) -> None:
    path = corpus.locate(corpus.files[9])
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, corpus.files[9].mtime_ns + 1))
    with pytest.raises(ConfigError, match=rf"{corpus.files[9].path} has changed its contents"):
        corpus.verify()


def test_a_touched_file_is_hashed_and_accepted(corpus: Manifest) -> None:
    os.utime(corpus.locate(corpus.files[9]), ns=(0, 0))
    corpus.verify()


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1}', '{"format": 1, "digest": "", "files": [{"path": "x"}]}'])
def test_a_damaged_manifest_is_named(corpus: Manifest, damage: str) -> None:
    path = corpus.folder / "manifest.json"
    path.write_text(damage)
    with pytest.raises(ConfigError, match=rf"{path} cannot be read"):
        Manifest.read(corpus.folder)


def test_an_edited_manifest_is_named(corpus: Manifest) -> None:
    path = corpus.folder / "manifest.json"
    content = json.loads(path.read_text())
    content["files"][0]["split"] = "valid" if content["files"][0]["split"] == "train" else "train"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="was edited"):
        Manifest.read(corpus.folder)


def test_hidden_and_empty_files_are_left_out(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two"), ("empty", ""), (".hidden", "x"), (".git/c", "y")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(text)
    manifest = build_manifest(tmp_path, {"d": tmp_path / "d"})
    assert [file.path for file in manifest.files] == ["d/a", "d/b"]


def test_what_cannot_be_split_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with pytest.raises(ConfigError, match=r"folder of domain d does not exist"):
        build_manifest(tmp_path, {"d": folder})
    folder.mkdir()
    for name in ("one", "same"):
        (folder / name).write_text("the same text")
        with pytest.raises(ConfigError, match=r"domain d cannot be split.*1 different ones of \d+ bytes.*cut one large file"):
            build_manifest(tmp_path, {"d": folder})
    (folder / "two").write_text("another")
    assert {file.split for file in build_manifest(tmp_path, {"d": folder}).files} == {"train", "valid"}
    with pytest.raises(ConfigError, match=r"'a/b' cannot name a domain"):
        build_manifest(tmp_path, {"a/b": folder})
    with pytest.raises(ConfigError, match="held_out is 1"):
        build_manifest(tmp_path, {"d": folder}, held_out=1)
