"""Configuration: from Hydra groups, YAML files and overrides to one typed, frozen object."""

from .atomic import write_csv, write_json, write_text
from .compose import ROOT, Entry, compose, quoted
from .errors import ConfigError, Interrupted, Requeue, RunFailed
from .folder import RunFolder, read_result
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
    "quoted",
    "read_result",
    "write_csv",
    "write_json",
    "write_text",
]
