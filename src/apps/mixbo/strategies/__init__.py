"""Strategies by name. Each is a pure function of (problem, records, seed, trial number)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np

from src.nanollama.config import ConfigError

from ..problem import Problem
from ..protocol import Done
from ..records import Record, Suggestion

Strategy = Callable[[Problem, Sequence[Record], np.random.Generator], Suggestion | Done]

# name: (module here, starts with the small initial design). Modules are loaded when used: some need torch.
REGISTRY: dict[str, tuple[str, bool]] = {
    "random": ("sampling", False),
    "hyperband": ("hyperband", False),
    "ei": ("ei", False),
    "ei_per_flop": ("ei", True),
    "ei_cost": ("ei", True),
    "kg": ("kg", True),
    "thompson": ("sampling", True),
    "qmfkg": ("reference", True),
}

GREEDY = "greedy"  # grows a model instead of searching mixtures; see the package ``growth``


def lookup(name: str) -> Strategy:
    """The strategy called ``name``."""
    if name not in REGISTRY:
        raise ConfigError(f"strategy {name!r} is unknown; known are {', '.join(REGISTRY)}")
    strategy: Strategy = getattr(import_module(f".{REGISTRY[name][0]}", __name__), name)
    return strategy
