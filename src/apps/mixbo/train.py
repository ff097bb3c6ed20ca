"""Train one model on a weighted mixture of text domains and report the loss of each domain apart.

python -m src.apps.mixbo.train data.weights=[.2,.2,.2,.2,.2]
"""

from __future__ import annotations

from typing import Any

from src.nanollama.config import RunFolder, main, write_json

from .config import TRAIN, MixtureConfig


@main(TRAIN)
def train(cfg: MixtureConfig, run: RunFolder) -> dict[str, Any]:
    """Train on the mixture; validate on each domain's held-out files, in bits per byte beside gzip and xz on the same bytes."""
    from src.nanollama.train.loop import train as train_model

    from .corpus import open_domains

    domains = open_domains(cfg)
    write_json(run.path / "compressors.json", domains.compressed)
    result = train_model(cfg, run, domains.train, domains.held_out)
    losses = {split.removeprefix("valid/"): record["loss"] for split, record in result["final"].items()}
    return {**result, "domain_losses": losses, "loss": sum(losses.values()) / len(losses), "corpus": domains.digest}


if __name__ == "__main__":
    train()
