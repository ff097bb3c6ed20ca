"""Compare runs: a table in the terminal and one self-contained HTML page.

    python -m src.nanollama.report RUN RUN... [out=report.html] [csv=FOLDER] [title=TEXT] [lead=TEXT]

A RUN is a run folder, or any folder with run folders below it (a multirun, a sweep, all of ``runs``). The page goes to ``report.html``
inside the one folder given, or in the current folder when several are. With ``csv`` the frames behind it are written too: ``runs.csv``,
``curves.csv``, ``difficulty.csv`` and ``text.csv``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import write_csv
from ..config.tool import run_tool, split
from . import frames
from .format import duration, fixed, plus_minus, si
from .runs import Run, find_runs
from .training import training_page


def report(argv: Sequence[str]) -> None:
    """Write the page, and the frames if they are asked for; print the table."""
    paths, options = split(argv, ("out", "csv", "title", "lead"))
    runs = find_runs(paths)
    out = Path(options.get("out") or (Path(paths[0]) / "report.html" if len(paths) == 1 else "report.html"))
    training_page(runs, options.get("title") or "Training runs", options.get("lead", "")).write(out)
    if options.get("csv"):
        write_frames(runs, Path(options["csv"]))
    print(table(runs))
    print(f"\nreport: {out.resolve()}")


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code (2: the input is wrong)."""
    return run_tool(argv, __doc__, report)


def write_frames(runs: Sequence[Run], folder: Path) -> None:
    """The frames behind the page as CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"runs": frames.summary, "curves": frames.curves, "difficulty": frames.difficulty, "text": frames.text_losses}
    for name, make in makers.items():
        write_csv(folder / f"{name}.csv", make(runs))


def table(runs: Sequence[Run]) -> str:
    """The summary for a terminal: one line a run that trained."""
    header = ("run", "status", "params", "tokens", "loss", "floor", "excess", "bits/byte", "tokens/s", "wall")
    lines = [header]
    for run, row in zip(runs, frames.summary(runs), strict=True):
        if run.difficulty and not run.records:
            continue
        bits = [text["bits_per_byte"] for text in frames.text_losses([run])]
        lines.append((
            run.name, run.status, si(row["parameters"]), si(row["tokens"]), fixed(row["loss"]), fixed(row["bayes_loss"]),
            plus_minus(row["excess_loss"], row["excess_loss_se"]), fixed(sum(bits) / len(bits) if bits else None, 3),
            si(row["tokens_per_s"]), duration(row["wall_s"]),
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(_pad(line[i], widths[i], left=i < 2) for i in range(len(header))).rstrip() for line in lines)


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
