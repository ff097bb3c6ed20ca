"""Tokens in place of bytes: a byte-level BPE trained on a corpus, and the token files it makes. Needs Hugging Face ``tokenizers``.

    python -m src.nanollama.data.tokenizer CORPUS vocab=4096 out=tokenizer.json [cache=runs/corpora]

CORPUS is ``environment`` (the files of the running Python environment), or a folder whose subfolders are the domains. Trainings take the
result as data.tokenizer=tokenizer.json. Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ConfigError
from ..config.tool import run_tool, split
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


def tokenized_corpus(manifest: Manifest, tokenizer: Path, seq_len: int, seed: int = 0) -> dict[str, WindowSource]:
    """One data source for each domain, in the manifest's order, over token files that are written on the first call.

    They lie in the corpus's folder, by the contents of the tokenizer and of the corpus. Two processes do not write them at once.
    """
    _require()
    known = hashlib.sha256(read_tokenizer(tokenizer) + manifest.digest.encode()).hexdigest()[:12]
    folder = manifest.folder / f"tokens-{known}"
    make_folder(folder)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tokenize_corpus(manifest, tokenizer, folder)
    return {d: token_source(f"tokens/{d}", folder / f"{d}.train", folder / f"{d}.valid", seq_len, seed) for d in manifest.domains}


def tokenize_corpus(manifest: Manifest, tokenizer: Path, folder: Path) -> None:
    """Write ``folder/<domain>.train`` and ``folder/<domain>.valid``, those that are not there: one document a file of the corpus.

    ``tokenizer`` is a ``tokenizer.json``. No special tokens are added. Bytes that are not UTF-8 become U+FFFD.
    """
    encoder, size = load_tokenizer(tokenizer), tokenizer_vocab(tokenizer)
    for domain in manifest.domains:
        for part in SPLITS:
            if (folder / f"{domain}.{part}").exists():
                continue
            with TokenWriter(folder / f"{domain}.{part}", size) as writer:
                for text in _texts(manifest, domain, part):
                    if ids := encoder.encode(text, add_special_tokens=False).ids:
                        writer.add(ids)


def read_tokenizer(path: Path) -> bytes:
    """The contents of a ``tokenizer.json``, or a ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        made = "python -m src.nanollama.data.tokenizer makes one"
        raise ConfigError(f"there is no tokenizer file {path} ({error.strerror}); give a tokenizer.json; {made}") from None


def tokenizer_vocab(path: Path) -> int:
    """One more than the largest token number of a ``tokenizer.json``, without the library that reads it."""
    try:
        content = json.loads(read_tokenizer(path))
        known = content["model"]["vocab"]
        numbers = known.values() if isinstance(known, dict) else range(len(known))
        return 1 + max([*numbers, *(token["id"] for token in content.get("added_tokens") or [])])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a tokenizer.json ({error})") from None


def _texts(manifest: Manifest, domain: str, split: str) -> Iterator[str]:
    for file in manifest.select(domain, split):
        yield manifest.locate(file).read_text(encoding="utf-8", errors="replace")


def load_tokenizer(path: Path) -> Tokenizer:
    """A ``tokenizer.json`` that takes texts whole, or a ConfigError."""
    _require()
    from tokenizers import Tokenizer

    content = read_tokenizer(path)
    try:
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()  # the file may hold the settings of somebody's batches, which are none of ours
        tokenizer.no_padding()
        return tokenizer
    except Exception as error:  # the library raises plain Exception for a malformed file
        raise ConfigError(f"{path} is not a tokenizer.json ({error})") from None


def _require() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise ConfigError("this needs Hugging Face tokenizers, an optional dependency: pip install tokenizers") from None


def make(argv: Sequence[str]) -> None:
    """Train a tokenizer on the training files of the corpus that ``argv`` names."""
    from .environment import environment_corpus
    from .text import folder_corpus

    paths, options = split(argv, ("vocab", "out", "cache"))
    if len(paths) != 1:
        raise ConfigError(f"name one corpus (environment, or a folder), got {len(paths)}")
    if not options.get("vocab", "4096").isdigit():
        raise ConfigError(f"vocab={options['vocab']}: must be a whole number")
    cache, out = Path(options.get("cache", "runs/corpora")), Path(options.get("out", "tokenizer.json"))
    corpus = environment_corpus(cache) if paths[0] == "environment" else folder_corpus(cache, Path(paths[0]).expanduser())
    train_tokenizer(corpus, int(options.get("vocab", "4096")), out)
    print(f"{out}: {tokenizer_vocab(out)} tokens")


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    return run_tool(argv, __doc__, make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
