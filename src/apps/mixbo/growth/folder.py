"""A growth as it lies in its folder, for those who only look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from src.nanollama.report import Page

from ..config import SweepConfig
from .page import growth_page
from .parts import growth_study
from .problem import stored_growth
from .shapes import Shapes
from .story import Story, tell


def stories(cfg: SweepConfig, folder: Path) -> Callable[[], Story]:
    """What tells the growth as it is then; reads the study and nothing else."""
    shapes, study = Shapes(cfg.training, cfg.growth), growth_study(cfg, folder)
    return lambda: tell(stored_growth(shapes, study), study.records())


def load_page(cfg: SweepConfig, folder: Path) -> Page:
    """The report's page."""
    return growth_page(stories(cfg, folder)())
