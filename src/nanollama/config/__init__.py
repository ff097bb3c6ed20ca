"""Configuration: from Hydra groups, YAML files and overrides to one typed, frozen object."""

from .compose import ROOT, Entry, compose
from .errors import ConfigError, Interrupted, Requeue, RunFailed
from .folder import RunFolder, read_result, write_json
from .main import main

__all__ = [
    "ROOT",
    "ConfigError",
    "Entry",
    "Interrupted",
    "Requeue",
    "RunFailed",
    "RunFolder",
    "compose",
    "main",
    "read_result",
    "write_json",
]
