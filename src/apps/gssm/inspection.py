"""A trained model beside the exact law of its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from src.nanollama.checkpoint.find import config_file, find_checkpoint
from src.nanollama.checkpoint.opened import open_model
from src.nanollama.config import ConfigError, compose, quoted
from src.nanollama.distributed import pick_device
from src.nanollama.model.transformer import Transformer

from . import graph, kernels
from .config import TRAIN, GssmConfig
from .filter import Filter
from .inspect_config import InspectConfig
from .kernels import Kernels
from .sampler import Sampler


@dataclass(frozen=True)
class Trained:
    """A checkpoint, opened: the training's config, the model, and the law of its data. ``sampler`` draws what no training has seen."""

    path: Path
    cfg: GssmConfig
    model: Transformer
    kernels: Kernels
    filter: Filter
    sampler: Sampler
    seq_len: int
    device: torch.device

    def untrained(self) -> Transformer:
        """The model as it was before its first step."""
        model = Transformer(self.cfg.model)
        model.init_weights(self.cfg.train.seed)
        return model.to(self.device).eval()

    def batches(self, tokens: np.ndarray, batch: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of ``tokens`` and these rows on the device, ``batch`` at a time."""
        for first in range(0, len(tokens), batch):
            rows = slice(first, min(first + batch, len(tokens)))
            yield rows, torch.from_numpy(tokens[rows].astype(np.int64)).to(self.device)


def open_trained(cfg: InspectConfig) -> Trained:
    """Open the checkpoint that ``cfg`` names. Raises ConfigError if there is none, or no exact filter for its graph."""
    path, device = find_checkpoint(Path(cfg.checkpoint or "")), pick_device(cfg.device)
    model, config = open_model(path, device)
    if "gssm" not in config:
        raise ConfigError(f"{path}: its run was trained on no graph (config.yaml has no gssm); give a run of src.apps.gssm.train")
    trained: GssmConfig = compose(TRAIN, [f"config={quoted(config_file(path))}"])
    if trained.data.weights is not None:
        raise ConfigError(f"{path}: its run mixed the setups {', '.join(trained.setups)} (data.weights), and no one law describes its data")
    tables = kernels.draw(graph.build(trained.gssm, trained.alpha_X, trained.alpha_Z), trained.graph_seed)
    return Trained(path, trained, model, tables, Filter(tables), Sampler(tables, cfg.seed), cfg.seq_len or trained.data.seq_len, device)
