"""Train a transformer on sequences of a graph and read its loss against the exact floor.

    python -m src.apps.gssm.train experiment=debug train.steps=50
    python -m src.apps.gssm.train src/apps/gssm/configs/experiment1/small_X.yaml     # from files, see src.apps.gssm.data
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from src.nanollama.config import ConfigError, RunFolder, main

from .config import TRAIN, GssmConfig


@main(TRAIN)
def train(cfg: GssmConfig, run: RunFolder) -> dict[str, Any]:
    """Train on a stream drawn on the fly, or on the sequences of a data set; evaluate on held-out ones, paired with their Bayes loss."""
    return train_on(cfg, run)


def train_on(cfg: GssmConfig, run: RunFolder) -> dict[str, Any]:
    """What ``train`` and ``train_onfly`` do."""
    from src.nanollama.train.loop import train as train_model

    from .source import Files, open_source

    if cfg.data.source == "files" and not Path(cfg.data.path or "").exists():
        command = f"python -m src.apps.gssm.data config={run.path}/config.yaml" + ("" if cfg.data.sequences else " data.sequences=N")
        raise ConfigError(f"data.path={cfg.data.path} does not exist; make it with: {command}")
    source = open_source(cfg)
    run.summary.update(source.floor_facts)
    result = train_model(cfg, run, source, source.held_out(cfg.eval.sequences), source.floor())
    if "bayes_upper" in result:
        ends = ("upper", "lower")
        result["excess_between"] = [result["loss"] - result[f"bayes_{end}"] for end in ends]
        # not paired: the bounds are averages over other sequences
        result["excess_between_se"] = [math.hypot(result["loss_se"], result[f"bayes_{end}_se"]) for end in ends]
    if isinstance(source, Files):
        result["epochs"] = result["steps"] * cfg.data.batch_size / source.sequences
    return result


if __name__ == "__main__":
    train()
