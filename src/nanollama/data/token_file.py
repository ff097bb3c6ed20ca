"""Token files: token ids on disk, memory-mapped, with the documents' borders.

One token file is a folder, so that it appears in one piece (a rename) or not at all:

    NAME/tokens.bin      the ids, one unsigned integer of 1, 2 or 4 bytes each, little-endian
    NAME/documents.npy   where each document ends (exclusive), int64
    NAME/meta.json       {"format", "vocab_size", "dtype", "tokens", "documents"}
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..config import ConfigError
from .manifest import make_folder
from .source import token_dtype
from .windows import TokenStream, WindowSource

FORMAT = 1


class TokenWriter:
    """Writes a token file, document by document; it exists once the ``with`` block ends without an error.

        with TokenWriter(Path("books.train"), vocab_size=32000) as writer:
            for text in texts: writer.add(encode(text))
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        if path.exists():
            raise ConfigError(f"{path} exists already; token files are never overwritten, delete it or choose another name")
        self.path = path
        self.vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._ends: list[int] = []
        make_folder(path.parent)
        self._folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        self._file = (self._folder / "tokens.bin").open("wb")

    def add(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append one document of token ids, each at least 0 and below the vocabulary size."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or len(ids) == 0 or ids.dtype.kind not in "iu":
            raise ValueError(f"a document is a non-empty list of integers; document {len(self._ends)} has shape {ids.shape} of {ids.dtype}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(f"document {len(self._ends)} has tokens from {low} to {high}; the vocabulary has 0 to {self.vocab_size - 1}")
        self._file.write(ids.astype(self._dtype).tobytes())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(ids))

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
            if error is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        if not self._ends:
            raise ValueError(f"no documents were added to {self.path}; a token file has at least one")
        np.save(self._folder / "documents.npy", np.asarray(self._ends, np.int64))
        meta = {
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "dtype": self._dtype.str,
            "tokens": self._ends[-1],
            "documents": len(self._ends),
        }
        (self._folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        self._folder.chmod(0o755)  # mkdtemp keeps it from others
        os.rename(self._folder, self.path)


def open_token_file(path: Path) -> tuple[TokenStream, int]:
    """The token stream of a token file, memory-mapped, and its vocabulary size."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        known = meta["format"] == FORMAT and meta["dtype"] == token_dtype(meta["vocab_size"]).str
        ids = np.memmap(path / "tokens.bin", np.dtype(meta["dtype"]), mode="r")
        ends = np.load(path / "documents.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a token file ({error}); write it anew") from None
    if not known or len(ids) != meta["tokens"] or len(ends) != meta["documents"] or ends[-1] != len(ids):
        raise ConfigError(f"{path}: its parts do not fit together ({len(ids):,} tokens, meta.json says {meta}); write it anew")
    return TokenStream(ids, ends), meta["vocab_size"]


def token_source(name: str, train: Path, valid: Path, seq_len: int, seed: int = 0) -> WindowSource:
    """Data source over two token files of one vocabulary, one to train on and one held out."""
    (train_stream, vocab_size), (valid_stream, valid_vocab) = open_token_file(train), open_token_file(valid)
    if vocab_size != valid_vocab:
        raise ConfigError(f"{train} has a vocabulary of {vocab_size:,}, {valid} of {valid_vocab:,}; write both with one tokenizer")
    return WindowSource(name, train_stream, valid_stream, vocab_size, seq_len, seed)
