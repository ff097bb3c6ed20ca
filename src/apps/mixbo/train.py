"""Train one model on a weighted mixture of text domains and report the loss of each domain apart.

python -m src.apps.mixbo.train data.weights=[.2,.2,.2,.2,.2]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.nanollama.config import RunFolder, main, write_json

from .config import TRAIN, MixtureConfig


@main(TRAIN)
def train(cfg: MixtureConfig, run: RunFolder) -> dict[str, Any]:
    """Train on the mixture; validate on each domain's held-out files, in bits per byte beside gzip and xz on the same bytes."""
    from src.nanollama.data import Mixture, bits_per_byte, environment_corpus, folder_corpus, text_sources
    from src.nanollama.data.compress import COMPRESSORS
    from src.nanollama.train.evaluate import HeldOut
    from src.nanollama.train.loop import train as train_model

    cache, held_out_share = Path(cfg.data.cache), cfg.data.held_out
    if cfg.data.corpus == "environment":
        corpus = environment_corpus(cache, cfg.data.domain_bytes, held_out_share)
    else:
        corpus = folder_corpus(cache, Path(cfg.data.corpus).expanduser(), held_out_share)
    sources = text_sources(corpus, cfg.data.seq_len, cfg.train.seed)
    assert cfg.data.weights is not None  # resolve() fills them in
    held_out = {}
    for domain, source in sources.items():
        count = min(cfg.eval.sequences, source.size("valid") or cfg.eval.sequences)
        held_out[f"valid/{domain}"] = HeldOut(source.batch("valid", 0, count), bytes_per_token=1)
    compressed = {
        split: {method: bits_per_byte(part.tokens[:, 1:].copy(), method) for method in COMPRESSORS} for split, part in held_out.items()
    }
    write_json(run.path / "compressors.json", compressed)
    result = train_model(cfg, run, Mixture(sources, cfg.data.weights, cfg.train.seed), held_out)
    losses = {split.removeprefix("valid/"): record["loss"] for split, record in result["final"].items()}
    return {**result, "domain_losses": losses, "loss": sum(losses.values()) / len(losses), "corpus": corpus.digest}


if __name__ == "__main__":
    train()
