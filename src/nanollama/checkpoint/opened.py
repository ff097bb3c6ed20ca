"""A trained model, from its run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from ..config import ConfigError
from ..config.folder import read_yaml
from ..config.schema import ModelConfig
from ..distributed import Ranks
from ..model.transformer import Transformer
from .find import config_file, find_checkpoint
from .store import load


def open_model(path: Path, device: torch.device | None = None) -> tuple[Transformer, dict[str, Any]]:
    """The model saved in ``path`` (RUN, or RUN/checkpoints/STEP), ready for inference, and the config of its run.

    Raises ConfigError where there is no checkpoint, or no ``config.yaml`` that says what was trained.
    """
    checkpoint = find_checkpoint(path)
    file = config_file(checkpoint)
    if not file.is_file():
        raise ConfigError(f"{checkpoint}: {file}, which says what was trained, is missing")
    config = read_yaml(file)
    try:
        shape = TypeAdapter(ModelConfig).validate_python(config["model"])
    except (ValidationError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is not the config of a training ({error})") from error
    here = Ranks(0, 1, device or torch.device("cpu"))
    model = Transformer(shape).to(here.device).eval()
    load(checkpoint, {"model": model.state_dict()}, here)
    return model, config
