"""The domains of a config as data sources, with what their held-out parts are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.nanollama.config import ConfigError
from src.nanollama.data import Manifest, Mixture, WindowSource, bits_per_byte, environment_corpus, folder_corpus, text_sources
from src.nanollama.data.compress import COMPRESSORS
from src.nanollama.data.documents import WithDocuments
from src.nanollama.data.source import DataSource
from src.nanollama.data.tokenizer import load_tokenizer, tokenized_corpus
from src.nanollama.train.evaluate import HeldOut

from .config import MixtureConfig


@dataclass(frozen=True)
class Domains:
    """``train``: the weighted mixture. ``held_out``: each domain apart. ``compressed``: bits per byte of each by general compressors."""

    train: DataSource
    held_out: Mapping[str, HeldOut]
    compressed: Mapping[str, Mapping[str, float]]
    digest: str  # of the corpus's files


def open_domains(cfg: MixtureConfig) -> Domains:
    """Make or find the corpus, tokenise it if asked to, and mix its domains."""
    corpus = open_corpus(cfg)
    length, seed = cfg.data.seq_len, cfg.train.seed
    tokenizer = Path(cfg.data.tokenizer).expanduser() if cfg.data.tokenizer else None
    sources = tokenized_corpus(corpus, tokenizer, length, seed) if tokenizer else text_sources(corpus, length, seed)
    assert cfg.data.weights is not None  # resolve() fills them in
    mixture = Mixture(sources, cfg.data.weights, seed)
    held_out, compressed = {}, {}
    for domain, source in sources.items():
        count = min(cfg.eval.sequences, source.size("valid") or cfg.eval.sequences)
        seen: DataSource = WithDocuments(source) if cfg.data.document_masks else source
        held_out[f"valid/{domain}"] = HeldOut(seen.batch("valid", 0, count), bytes_per_token=bytes_per_token(corpus, domain, source))
        raw = as_bytes(source.batch("valid", 0, count)[:, 1:], tokenizer)
        compressed[f"valid/{domain}"] = {method: bits_per_byte(raw, method) for method in COMPRESSORS}
    train: DataSource = WithDocuments(mixture) if cfg.data.document_masks else mixture
    return Domains(train, held_out, compressed, corpus.digest)


def open_corpus(cfg: MixtureConfig) -> Manifest:
    """The corpus that ``data.corpus`` names."""
    cache, held_out = Path(cfg.data.cache), cfg.data.held_out
    if cfg.data.corpus == "environment":
        return environment_corpus(cache, cfg.data.domain_bytes, held_out)
    return folder_corpus(cache, Path(cfg.data.corpus).expanduser(), held_out)


def bytes_per_token(corpus: Manifest, domain: str, source: WindowSource) -> float:
    """Bytes of a domain's held-out files per token of them."""
    return sum(file.bytes for file in corpus.select(domain, "valid")) / len(source.streams["valid"].ids)


def as_bytes(tokens: np.ndarray, tokenizer: Path | None) -> bytes:
    """The text that tokens stand for."""
    if tokenizer is None:
        return tokens.astype(np.uint8).tobytes()
    decoder = load_tokenizer(tokenizer)
    text = "".join(decoder.decode(row, skip_special_tokens=False) for row in tokens.tolist()).encode()
    if not text:
        raise ConfigError(f"{tokenizer}: decodes {tokens.size} held-out tokens to nothing; is it the tokenizer of this corpus?")
    return text
