"""Configs as YAML that is read as it was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml


def to_yaml(config: Mapping[str, Any]) -> str:
    """YAML in which texts are texts for YAML 1.1 and for OmegaConf, which reads ``config=FILE`` and takes 1e-3 for a number."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=10_000)


def composable(config: Mapping[str, Any]) -> str:
    """YAML that composes to exactly ``config``: no ``${}`` is interpreted."""
    return to_yaml(_escaped(config))


def uninterpreted(text: str) -> str:
    """``text`` as OmegaConf and Hydra read it back, ``${`` and all: backslashes count for them only where they stand before it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(inner) for inner in value]
    return uninterpreted(value) if isinstance(value, str) else value


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[\d._]+([eE][-+]?\d+)?$"), list("-+.0123456789"))
