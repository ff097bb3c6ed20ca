"""Make a sweep's ``report.html`` again from what lies in its folder; works while the sweep is running, too.

python -m src.apps.mixbo.report RUN [out=report.html]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from src.nanollama.config import ConfigError
from src.nanollama.config.tool import run_tool, split


def report(argv: Sequence[str]) -> None:
    """Write the page of the one sweep folder in ``paths``."""
    paths, options = split(argv, ("out",))
    import torch

    from .folder import load
    from .page import sweep_page

    if len(paths) != 1:
        raise ConfigError(f"name one sweep folder, got {len(paths)}; several are compared by python -m src.apps.mixbo.compare")
    torch.set_num_threads(1)  # the matrices are small
    folder = Path(paths[0]).expanduser()
    out = Path(options.get("out") or folder / "report.html")
    page = sweep_page(load(folder))
    page.write(out)
    print(f"{page.lead}\nreport: {out.resolve()}")


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    return run_tool(argv, __doc__, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
