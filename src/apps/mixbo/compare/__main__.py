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

from src.nanollama.config import write_csv, write_json
from src.nanollama.config.tool import run_tool, split


def compare(argv: Sequence[str]) -> None:
    """Write page, table and summary of the sweeps in ``paths``; print one line a strategy."""
    paths, options = split(argv, ("out",))
    from .comparison import Comparison
    from .page import compare_page
    from .runs import find_sweeps

    out = Path(options.get("out") or (Path(paths[0]) / "compare.html" if len(paths) == 1 else "compare.html"))
    runs = find_sweeps(paths)
    page = compare_page(runs)
    page.write(out)
    write_csv(out.with_suffix(".csv"), [row for run in runs for row in run.rows()])
    summary = Comparison(runs).summary()
    write_json(out.with_suffix(".json"), {"strategies": summary})
    for entry in summary:
        low, high = entry["quartiles"]
        value = f"{entry['measure']} {entry['median']:.4g} [{low:.4g}, {high:.4g}]"
        print(f"{entry['strategy']:30s} {value} at {entry['spent_full_runs']:.3g} full runs")
    print(f"\n{page.lead}\nreport: {out.resolve()}")


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    return run_tool(argv, __doc__, compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
