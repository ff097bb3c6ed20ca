"""Byte-level text: a manifest's files, packed into one memory-mapped stream per domain and split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..config import ConfigError
from ..config.atomic import replacing
from .manifest import NAME, Manifest, TextFile, build_manifest, make_folder
from .source import SPLITS
from .windows import TokenStream, WindowSource

VOCAB_SIZE = 256


def folder_corpus(cache: Path, domains: Path | Mapping[str, Path], held_out: float = 0.1) -> Manifest:
    """The corpus of a user's folders of text files: its manifest, made on the first call and verified on later ones.

    ``domains`` maps domain names to folders; or it is one folder whose subfolders are the domains. The files stay where they are;
    ``cache`` takes the manifest and the packed bytes, below a name made from the folders and ``held_out``.
    """
    if not isinstance(domains, Mapping):
        root = Path(domains)
        domains = {path.name: path for path in sorted(root.glob("*")) if path.is_dir() and not path.name.startswith(".")}
        if not domains:
            raise ConfigError(f"{root} has no subfolders; every domain is a subfolder with its text files")
    domains = {domain: Path(folder).resolve() for domain, folder in domains.items()}
    key = hashlib.sha256(repr((list(domains.items()), held_out)).encode()).hexdigest()[:12]
    folder = Path(cache) / f"folders-{key}"
    if not (folder / NAME).exists():
        made = build_manifest(folder, domains, held_out)
        make_folder(folder)
        made.write()
    manifest = Manifest.read(folder)
    manifest.verify()
    return manifest


def text_sources(manifest: Manifest, seq_len: int, seed: int = 0) -> dict[str, WindowSource]:
    """One byte-level data source (vocabulary 256) for each domain of a corpus, in the manifest's order."""
    return {
        domain: WindowSource(
            f"text/{domain}", open_stream(manifest, domain, "train"), open_stream(manifest, domain, "valid"), VOCAB_SIZE, seq_len, seed
        )
        for domain in manifest.domains
    }


def open_stream(manifest: Manifest, domain: str, split: str) -> TokenStream:
    """The bytes of a domain's files of one split, memory-mapped, one document a file; packed on first use."""
    files = manifest.select(domain, split)
    if split not in SPLITS or not files:
        domains = ", ".join(manifest.domains)
        raise ConfigError(f"the corpus in {manifest.folder} has no {split!r} files of domain {domain!r}; its domains are {domains}")
    ends = np.cumsum([file.bytes for file in files])
    contents = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()[:12]
    path = manifest.folder / f"{domain}.{split}.{contents}.bin"  # named by its contents, so never stale
    if not path.exists() or path.stat().st_size != ends[-1]:
        _pack(manifest, files, path)
    return TokenStream(np.memmap(path, np.uint8, mode="r"), ends)


def _pack(manifest: Manifest, files: tuple[TextFile, ...], path: Path) -> None:
    with replacing(path, "wb") as pack:
        for file in files:
            try:
                data = manifest.locate(file).read_bytes()
            except OSError:
                raise manifest.changed(file, "is gone or cannot be read") from None
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise manifest.changed(file, "has changed its contents")
            pack.write(data)
