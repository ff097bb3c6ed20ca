"""Make a sweep's ``report.html`` again from what lies in its folder; works while the sweep is running, too.

python -m src.apps.mixbo.report RUN [out=report.html]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from src.nanollama.config import ConfigError
from src.nanollama.config.tool import run_tool, split
from src.nanollama.report import Page

from ..folder import read_config
from ..strategies import GREEDY


def report(argv: Sequence[str]) -> None:
    """Write the page of the one sweep folder in ``paths``."""
    paths, options = split(argv, ("out",))
    if len(paths) != 1:
        raise ConfigError(f"name one sweep folder, got {len(paths)}; several are compared by python -m src.apps.mixbo.compare")
    folder = Path(paths[0]).expanduser()
    out = Path(options.get("out") or folder / "report.html")
    page = make(folder)
    page.write(out)
    print(f"{page.lead}\nreport: {out.resolve()}")


def make(folder: Path) -> Page:
    """The page of a sweep's folder, whatever it searches."""
    cfg = read_config(folder)
    if cfg.strategy.name == GREEDY:
        from ..growth.folder import load_page

        return load_page(cfg, folder)
    import torch

    from .folder import load
    from .page import sweep_page

    torch.set_num_threads(1)  # the matrices are small
    return sweep_page(load(folder))


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    return run_tool(argv, __doc__, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
