"""Which checkpoints there are. No torch here: the launcher and the sweep look for them, too."""

from __future__ import annotations

from pathlib import Path

from ..config import ConfigError


def numbered(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in ``folder``, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def find_checkpoint(path: Path) -> Path:
    """``RUN/checkpoints/STEP`` itself, or the newest one of ``RUN``."""
    if (path / "state.json").is_file():
        return path
    steps = numbered(path / "checkpoints")
    if not steps:
        raise ConfigError(f"{path}: neither a checkpoint nor a run folder that has one; give RUN/checkpoints/STEP, or RUN")
    return path / "checkpoints" / str(steps[-1])


def config_file(checkpoint: Path) -> Path:
    """The config of the run that wrote ``RUN/checkpoints/STEP``, also where that is given by a link or from inside the run folder."""
    return checkpoint.resolve().parent.parent / "config.yaml"
