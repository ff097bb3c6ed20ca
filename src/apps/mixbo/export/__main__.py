"""Write a search space for another tool.

    python -m src.apps.mixbo.export wandb SPACE [out=sweep.yaml] [key=value ...]

SPACE is a YAML file of ``src.apps.mixbo.families``, or the name of one in ``src/apps/mixbo/configs``. Then ``wandb sweep sweep.yaml`` and
``wandb agent ID`` run it through this project's own commands. Without out= the sweep is printed. Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from src.nanollama.config import ConfigError, compose, write_text
from src.nanollama.config.tool import run_tool

from ..cells.config import CELLS
from .wandb import dump, sweep


def export(argv: Sequence[str]) -> None:
    """Do what ``argv`` asks."""
    if len(argv) < 2 or argv[0] != "wandb":
        raise ConfigError("give a tool and a space: wandb SPACE (wandb is the only tool so far)")
    space = argv[1] if argv[1].endswith((".yaml", ".yml")) else f"experiment={argv[1]}"
    out = next((arg.partition("=")[2] for arg in reversed(argv) if arg.startswith("out=")), "")
    text = dump(sweep(compose(CELLS, [space, *(arg for arg in argv[2:] if not arg.startswith("out="))])))
    if out:
        write_text(Path(out), text)
        print(f"{out}: run `wandb sweep {out}`, then `wandb agent` with the id it prints, as often as you have GPUs")
    else:
        print(text, end="")


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    return run_tool(argv, __doc__, export)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
