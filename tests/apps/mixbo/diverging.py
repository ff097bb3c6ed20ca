"""The mixture training, but for one corner of the simplex that no learning rate would survive."""

from dataclasses import replace
from typing import Any

from src.apps.mixbo.config import TRAIN, MixtureConfig
from src.apps.mixbo.train import train as whole
from src.nanollama.config import RunFolder, main


@main(TRAIN)
def train(cfg: MixtureConfig, run: RunFolder) -> dict[str, Any]:
    if cfg.data.weights and cfg.data.weights[1] > 0.99:
        cfg = replace(cfg, optim=replace(cfg.optim, lr=1e30, clip=None))
    return whole.__wrapped__(cfg, run)  # type: ignore[attr-defined,no-any-return]


if __name__ == "__main__":
    train()
