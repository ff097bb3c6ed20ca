"""Token files from a text corpus, with Hugging Face ``tokenizers`` (an optional dependency: ``pip install nanollama[tokenizers]``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ConfigError
from .manifest import Manifest, make_folder
from .source import SPLITS
from .token_file import TokenWriter, token_source
from .windows import WindowSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train_tokenizer(manifest: Manifest, vocab_size: int, path: Path) -> None:
    """Train a byte-level BPE on the training files of a corpus and save it as a ``tokenizer.json``. Any text can be encoded with it."""
    _require()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 256:
        raise ConfigError(f"vocab_size is {vocab_size}; a byte-level vocabulary starts with the 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    texts = (text for domain in manifest.domains for text in _texts(manifest, domain, "train"))
    tokenizer.train_from_iterator(texts, trainer)
    make_folder(path.parent)
    tokenizer.save(str(path))


def tokenize_corpus(manifest: Manifest, tokenizer: Path, folder: Path) -> None:
    """Write ``folder/<domain>.train`` and ``folder/<domain>.valid``, token files of every domain, one document a file of the corpus.

    ``tokenizer`` is a ``tokenizer.json``. No special tokens are added. Bytes that are not UTF-8 become U+FFFD.
    """
    encoder = load_tokenizer(tokenizer)
    for domain in manifest.domains:
        for split in SPLITS:
            with TokenWriter(folder / f"{domain}.{split}", encoder.get_vocab_size()) as writer:
                for text in _texts(manifest, domain, split):
                    if ids := encoder.encode(text, add_special_tokens=False).ids:
                        writer.add(ids)


def tokenized_sources(folder: Path, seq_len: int, seed: int = 0) -> dict[str, WindowSource]:
    """One data source for each domain that :func:`tokenize_corpus` wrote to ``folder``, in alphabetical order."""
    domains = sorted(path.name.removesuffix(".train") for path in folder.glob("*.train"))
    if not domains:
        raise ConfigError(f"{folder} has no token files (<domain>.train and <domain>.valid)")
    return {d: token_source(f"tokens/{d}", folder / f"{d}.train", folder / f"{d}.valid", seq_len, seed) for d in domains}


def _texts(manifest: Manifest, domain: str, split: str) -> Iterator[str]:
    for file in manifest.select(domain, split):
        yield manifest.locate(file).read_text(encoding="utf-8", errors="replace")


def load_tokenizer(path: Path) -> Tokenizer:
    """A ``tokenizer.json``, or a ConfigError."""
    _require()
    from tokenizers import Tokenizer

    if not path.is_file():
        raise ConfigError(f"there is no tokenizer file {path}; give a tokenizer.json, or make one with train_tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a malformed file
        raise ConfigError(f"{path} is not a tokenizer.json ({error})") from None


def _require() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise ConfigError("this needs Hugging Face tokenizers, an optional dependency: pip install tokenizers") from None
