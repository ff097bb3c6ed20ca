"""Compare sweeps: strategies side by side, medians and quartiles over their seeds.

    python -m src.apps.mixbo.compare RUN RUN... [out=compare.html]

A RUN is the folder of a sweep, or any folder with sweeps below it (a multirun over strategies and seeds). The page goes to ``compare.html``
inside the one folder given, or in the current folder when several are; beside it ``compare.csv`` (tidy: one row an ended trial) and
``compare.json`` (one entry a strategy).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from src.nanollama.config import ConfigError, write_json


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    paths = [arg for arg in argv if not arg.startswith("out=")]
    if not paths or any(arg in ("-h", "--help") for arg in argv):
        print((__doc__ or "").strip())
        return 0 if paths else ConfigError.exit_code
    from src.nanollama.report.frames import write_csv

    from .comparison import Comparison
    from .page import compare_page
    from .runs import find_sweeps

    default = Path(paths[0]) / "compare.html" if len(paths) == 1 else Path("compare.html")
    out = next((Path(arg.partition("=")[2]) for arg in argv if arg.startswith("out=")), default)
    try:
        runs = find_sweeps(paths)
        page = compare_page(runs)
        page.write(out)
        write_csv(out.with_suffix(".csv"), [row for run in runs for row in run.rows()])
        summary = Comparison(runs).summary()
        write_json(out.with_suffix(".json"), {"strategies": summary})
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    for entry in summary:
        low, high = entry["quartiles"]
        value = f"{entry['measure']} {entry['median']:.4g} [{low:.4g}, {high:.4g}]"
        print(f"{entry['strategy']:30s} {value} at {entry['spent_full_runs']:.3g} full runs")
    print(f"\n{page.lead}\nreport: {out.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
