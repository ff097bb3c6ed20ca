"""Train a transformer on sequences of a graph and read its loss against the exact floor.

    python -m src.apps.gssm.train experiment=debug train.steps=50
"""

from __future__ import annotations

from typing import Any

from src.nanollama.config import RunFolder, main

from .config import TRAIN, GssmConfig


@main(TRAIN)
def train(cfg: GssmConfig, run: RunFolder) -> dict[str, Any]:
    """Draw sequences on the fly, a new batch every step; evaluate on held-out ones, paired with their exact Bayes loss."""
    from src.nanollama.train.loop import train as train_model

    from .source import OnFly

    source = OnFly(cfg)
    return train_model(cfg, run, source, source.held_out(cfg.eval.sequences), source.floor())


if __name__ == "__main__":
    train()
