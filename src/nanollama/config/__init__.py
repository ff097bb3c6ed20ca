"""Configuration: from Hydra groups, YAML files and overrides to one typed, frozen object."""

from .errors import ConfigError, Interrupted, Requeue, RunFailed

__all__ = ["ConfigError", "Interrupted", "Requeue", "RunFailed"]
