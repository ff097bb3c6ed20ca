"""Which files a text corpus consists of, and which of them are held out.

The manifest is written once and then only read, so every training that names it sees the same bytes, or an error that says which file is
no longer what it was. Files added to a folder later are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from ..config import ConfigError, write_text

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class TextFile:
    """One file: ``path`` is relative to the manifest's folder if it lies inside, else absolute; ``mtime_ns`` only saves hashing."""

    path: str
    domain: str
    split: str
    bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """The files of a corpus, ordered by domain and path. ``folder`` is where the manifest lies."""

    folder: Path
    files: tuple[TextFile, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names, in the order of weights."""
        return tuple(dict.fromkeys(file.domain for file in self.files))

    @cached_property
    def digest(self) -> str:
        """Identity of the corpus: contents, order and splits of its files, not where or when they were written. 64 hex digits."""
        return _digest(self.files)

    def select(self, domain: str, split: str) -> tuple[TextFile, ...]:
        """Files of one domain and split, in order."""
        return tuple(file for file in self.files if (file.domain, file.split) == (domain, split))

    def locate(self, file: TextFile) -> Path:
        """Where ``file`` lies now."""
        return self.folder / file.path  # an absolute path replaces the folder

    def changed(self, file: TextFile, what: str) -> ConfigError:
        """The error for a file that is not what the manifest says."""
        return ConfigError(
            f"{self.locate(file)} {what} since {self.folder / NAME} was written; "
            f"restore the file, or delete {self.folder} to make the corpus anew"
        )

    def verify(self) -> None:
        """Raise ``ConfigError`` for the first missing or changed file. Contents are hashed only where size agrees and time does not."""
        for file in self.files:
            path = self.locate(file)
            try:
                stat = path.stat()
            except OSError:
                raise self.changed(file, "is gone or cannot be read") from None
            if stat.st_size != file.bytes:
                raise self.changed(file, f"has changed from {file.bytes:,} to {stat.st_size:,} bytes")
            if stat.st_mtime_ns != file.mtime_ns and _sha256(path) != file.sha256:
                raise self.changed(file, "has changed its contents")

    def write(self) -> None:
        """Write ``manifest.json`` atomically."""
        text = json.dumps({"format": FORMAT, "digest": self.digest, "files": [asdict(file) for file in self.files]}, indent=1)
        write_text(self.folder / NAME, text)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``folder/manifest.json``, without looking at the files it lists."""
        path = folder / NAME
        try:
            content = json.loads(path.read_text())
            files = tuple(TextFile(**entry) for entry in content["files"])
            known = content["format"] == FORMAT and content["digest"] == _digest(files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read as a corpus manifest ({error}); delete {folder} to make the corpus anew") from None
        if not known:
            raise ConfigError(f"{path} was edited or is of another version; delete {folder} to make the corpus anew")
        return cls(folder, files)


def build_manifest(folder: Path, domains: Mapping[str, Path], held_out: float = 0.1) -> Manifest:
    """List all files below each domain's folder (hidden ones and empty ones excepted), hash them, and choose those to hold out.

    Files, never parts of files, are held out: going through a domain's contents in the order of their SHA-256, each is held out that
    still fits into ``held_out`` of the domain's bytes (the smallest one if none fits). Equal contents always share a split, also across
    domains. ``folder`` is where the manifest is to lie; nothing is written.
    """
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out is {held_out}; the held-out share of the bytes lies between 0 and 1")
    found = {domain: _list_files(folder, domain, Path(root)) for domain, root in domains.items()}
    split_of: dict[str, str] = {}
    for domain, files in found.items():
        _hold_out(domain, files, held_out, split_of)
    return Manifest(folder, tuple(TextFile(**(asdict(f) | {"split": split_of[f.sha256]})) for files in found.values() for f in files))


def _list_files(folder: Path, domain: str, root: Path) -> list[TextFile]:
    if not re.fullmatch(r"[\w.+-]+", domain):
        raise ConfigError(f"{domain!r} cannot name a domain; use letters, digits, '_', '-', '+' and '.'")
    if not root.is_dir():
        raise ConfigError(f"the folder of domain {domain} does not exist: {root}")
    files = []
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        stat = path.stat()
        if stat.st_size:
            where = path.absolute()
            shown = where.relative_to(folder.absolute()) if where.is_relative_to(folder.absolute()) else where
            files.append(TextFile(shown.as_posix(), domain, "train", stat.st_size, _sha256(path), stat.st_mtime_ns))
    return files


def _hold_out(domain: str, files: list[TextFile], share: float, split_of: dict[str, str]) -> None:
    sizes: dict[str, int] = {}
    for file in files:
        sizes[file.sha256] = sizes.get(file.sha256, 0) + file.bytes
    budget = share * sum(sizes.values()) - sum(size for sha, size in sizes.items() if split_of.get(sha) == "valid")
    undecided = sorted(sha for sha in sizes if sha not in split_of)
    for sha in undecided:
        split_of[sha] = "valid" if sizes[sha] <= budget else "train"
        budget -= sizes[sha] if split_of[sha] == "valid" else 0
    if undecided and not any(split_of[sha] == "valid" for sha in sizes):
        split_of[min(undecided, key=lambda sha: (sizes[sha], sha))] = "valid"
    if {split_of[sha] for sha in sizes} != {"train", "valid"}:
        raise ConfigError(
            f"domain {domain} cannot be split into training and held-out files: it has {len(sizes)} different ones "
            f"of {sum(sizes.values()):,} bytes in all (those shared with other domains follow their split); "
            "give at least 2, or cut one large file into several"
        )


def _digest(files: tuple[TextFile, ...]) -> str:
    rows = [[file.domain, file.split, file.bytes, file.sha256] for file in files]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder to write in, or a ``ConfigError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} cannot be made ({error.strerror}); name another one") from None
    if not writable:
        raise ConfigError(f"the cache folder {folder} is read-only; name another one")
