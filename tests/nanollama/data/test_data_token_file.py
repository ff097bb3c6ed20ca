import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.nanollama.config import ConfigError
from src.nanollama.data import TokenWriter, folder_corpus, open_token_file, token_source


def write(path: Path, documents: list[list[int]], vocab_size: int) -> Path:
    with TokenWriter(path, vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return path


@settings(max_examples=30)
@given(vocab_size=st.sampled_from([2, 256, 257, 65536, 65537, 2**32]), data=st.data())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, vocab_size: int, data: st.DataObject) -> None:
    documents = data.draw(st.lists(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=20), min_size=1, max_size=8))
    path = write(tmp_path_factory.mktemp("tokens") / "t", documents, vocab_size)
    stream, vocab = open_token_file(path)
    assert vocab == vocab_size and isinstance(stream.ids, np.memmap)
    assert [part.tolist() for part in np.split(stream.ids, stream.ends[:-1])] == documents
    width = 1 if vocab_size <= 256 else 2 if vocab_size <= 65536 else 4
    assert (path / "tokens.bin").stat().st_size == width * len(stream.ids)


def test_numpy_documents_and_the_source(tmp_path: Path) -> None:
    documents = [np.arange(0, 400), np.arange(400, 1000, dtype=np.uint16)]
    for split in ("train", "valid"):
        with TokenWriter(tmp_path / split, 1000) as writer:
            for document in documents:
                writer.add(document)
    source = token_source("numbers", tmp_path / "train", tmp_path / "valid", seq_len=20)
    batch = source.batch("train", 0, 50)
    assert source.vocab_size == 1000 and batch.dtype == np.uint16 and (np.diff(batch.astype(int)) == 1).all()
    assert np.array_equal(source.segments("train", 0, 50), (batch >= 400) & (batch[:, :1] < 400))


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TokenWriter(tmp_path / "t", 10) as writer:
        writer.add([1, 2])
        raise KeyError
    with pytest.raises(ValueError, match="no documents"), TokenWriter(tmp_path / "t", 10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_token_files_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "t", [[1]], 10)
    with pytest.raises(ConfigError, match="exists already"):
        TokenWriter(tmp_path / "t", 10)


@pytest.mark.parametrize(
    ("document", "message"),
    [([1, 10], "document 0 has tokens from 1 to 10"), ([-1], "from -1 to -1"), ([], "non-empty"), ([0.5], "integers"), ([[1]], "shape")],
)
def test_wrong_documents_are_errors(tmp_path: Path, document: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message), TokenWriter(tmp_path / "t", 10) as writer:
        writer.add(document)


def test_damaged_token_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [[1, 2, 3], [4]], 300)
    (path / "tokens.bin").write_bytes((path / "tokens.bin").read_bytes()[:-2])
    with pytest.raises(ConfigError, match=r"t: its parts do not fit together \(3 tokens"):
        open_token_file(path)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"dtype": "|O"}))
    with pytest.raises(ConfigError, match="t cannot be read as a token file"):
        open_token_file(path)
    with pytest.raises(ConfigError, match="absent cannot be read as a token file"):
        open_token_file(tmp_path / "absent")


def test_vocabularies_must_agree(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "a", [[1] * 50], 300), write(tmp_path / "b", [[1] * 50], 301)
    with pytest.raises(ConfigError, match=r"vocabulary of 300.*of 301"):
        token_source("x", train, valid, 8)


def test_a_corpus_through_a_trained_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from src.nanollama.data.tokenizer import main, tokenize_corpus, tokenized_corpus, tokenizer_vocab

    for i in range(12):
        path = tmp_path / "texts" / ("even" if i % 2 == 0 else "odd") / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"the number {j * (i + 1)} – naïve, and the next one\n" for j in range(30)), encoding="utf-8")
    manifest = folder_corpus(tmp_path / "cache", tmp_path / "texts")
    made = tmp_path / "tok" / "tokenizer.json"
    assert main([str(tmp_path / "texts"), "vocab=300", f"out={made}", f"cache={tmp_path / 'cache'}"]) == 0 and tokenizer_vocab(made) == 300
    tokenize_corpus(manifest, tmp_path / "tok" / "tokenizer.json", tmp_path / "tokens")

    reader = tokenizers.Tokenizer.from_file(str(tmp_path / "tok" / "tokenizer.json"))
    for domain in manifest.domains:
        for split in ("train", "valid"):
            stream, vocab_size = open_token_file(tmp_path / "tokens" / f"{domain}.{split}")
            texts = [reader.decode(part.tolist()) for part in np.split(stream.ids, stream.ends[:-1])]
            assert vocab_size == 300 and texts == [manifest.locate(file).read_text("utf-8") for file in manifest.select(domain, split)]
            assert len(stream.ids) < 0.6 * sum(file.bytes for file in manifest.select(domain, split))
    sources = tokenized_corpus(manifest, made, seq_len=16)
    assert list(sources) == ["even", "odd"] and sources["odd"].batch("train", 0, 4).shape == (4, 17)
    again = tokenized_corpus(manifest, made, seq_len=16)  # finds the files of the first call
    assert (again["odd"].batch("train", 0, 4) == sources["odd"].batch("train", 0, 4)).all()


def test_texts_are_taken_whole_whatever_batches_the_tokenizer_was_saved_for(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from src.nanollama.data.tokenizer import load_tokenizer

    saved = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    saved.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    saved.enable_truncation(4)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "tokenizer.json"))
    text = "b a b a b a"
    assert len(saved.encode(text)) == 9 and load_tokenizer(tmp_path / "tokenizer.json").encode(text).ids == [1, 0, 1, 0, 1, 0]


def test_tokenizer_errors_are_named(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from src.nanollama.data import Manifest
    from src.nanollama.data.tokenizer import main, tokenize_corpus, tokenizer_vocab, train_tokenizer

    manifest = Manifest(tmp_path, ())
    with pytest.raises(ConfigError, match="no tokenizer file"):
        tokenize_corpus(manifest, tmp_path / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
        tokenize_corpus(manifest, tmp_path / "tokenizer.json", tmp_path)
    with pytest.raises(ConfigError, match="starts with the 256 bytes"):
        train_tokenizer(manifest, 100, tmp_path / "t.json")
    (tmp_path / "tokenizer.json").write_text("no json")
    with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
        tokenizer_vocab(tmp_path / "tokenizer.json")
    assert main(["environment", "vocab=many"]) == 2 and main(["a", "b"]) == 2
