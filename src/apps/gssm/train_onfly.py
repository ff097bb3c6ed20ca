"""``src.apps.gssm.train`` with data drawn on the fly and nothing else: infinite data, no sequence seen twice.

    python -m src.apps.gssm.train_onfly src/apps/gssm/configs/experiment1/onfly_small_X.yaml
"""

from __future__ import annotations

from typing import Any

from src.nanollama.config import RunFolder, main

from .config import TRAIN_ONFLY, GssmConfig
from .train import train_on


@main(TRAIN_ONFLY)
def train_onfly(cfg: GssmConfig, run: RunFolder) -> dict[str, Any]:
    """Train on a new batch every step."""
    return train_on(cfg, run)


if __name__ == "__main__":
    train_onfly()
