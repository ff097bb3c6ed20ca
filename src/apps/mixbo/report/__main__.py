"""Make a sweep's ``report.html`` again from what lies in its folder; works while the sweep is running, too.

python -m src.apps.mixbo.report RUN [out=report.html]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from src.nanollama.config import ConfigError


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    paths = [arg for arg in argv if not arg.startswith("out=")]
    if len(paths) != 1 or paths[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if paths and paths[0] in ("-h", "--help") else ConfigError.exit_code
    import torch

    from .folder import load
    from .page import sweep_page

    torch.set_num_threads(1)  # the matrices are small

    folder = Path(paths[0]).expanduser()
    out = next((Path(arg.partition("=")[2]) for arg in argv if arg.startswith("out=")), folder / "report.html")
    try:
        page = sweep_page(load(folder))
        page.write(out)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    print(f"{page.lead}\nreport: {out.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
