"""What ``wandb agent`` makes of a sweep's ``command`` and a set of parameters: the command line that it runs.

The rules are those of W&B's documentation on sweep commands; only the macros that an exported sweep uses are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.nanollama.config import ConfigError


def expand(command: Sequence[str], program: str, parameters: Mapping[str, Any]) -> list[str]:
    """argv of one run. Values become text by ``str``, which is where ``None`` and dictionaries are lost."""
    arguments = {
        "${args}": [f"--{key}={value}" for key, value in parameters.items()],
        "${args_no_hyphens}": [f"{key}={value}" for key, value in parameters.items()],
        "${env}": ["/usr/bin/env"],
        "${interpreter}": ["python"],
        "${program}": [program],
    }
    unknown = [word for word in command if word.startswith("${") and word not in arguments]
    if unknown:
        raise ConfigError(f"command: {unknown[0]} is none of {', '.join(arguments)}")
    return [text for word in command for text in arguments.get(word, [word])]


def overrides(argv: Sequence[str]) -> list[str]:
    """The part of ``argv`` that follows ``-m MODULE``."""
    return list(argv[argv.index("-m") + 2 :])
