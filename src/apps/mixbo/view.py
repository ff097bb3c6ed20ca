"""Look at a sweep while it runs, or afterwards: tables in the terminal that refresh themselves. Reads the study, changes nothing.

python -m src.apps.mixbo.view RUN            # until Ctrl-C
python -m src.apps.mixbo.view RUN --once     # plain tables
python -m src.apps.mixbo.view RUN --html     # writes report.html into the sweep's folder
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.nanollama.config import ConfigError
from src.nanollama.config.tool import run_tool

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .config import SweepConfig

REFRESH_S = 2.0
NEWEST = 40  # trials of a mixture study on the screen
ROUNDS = 2  # of a growth, on a screen that refreshes itself
FLAGS = ("--once", "--html")


def view(argv: Sequence[str]) -> None:
    """Show the one sweep in ``argv``."""
    paths = [arg for arg in argv if arg not in FLAGS]
    if len(paths) != 1 or paths[0].startswith("-"):
        raise ConfigError(f"name one sweep folder, and at most {' or '.join(FLAGS)}; got {' '.join(argv)}")
    from .folder import read_config

    folder = Path(paths[0]).expanduser()
    cfg = read_config(folder)
    if "--html" in argv:
        from .report.__main__ import report

        report([str(folder)])
    elif "--once" in argv or not sys.stdout.isatty():
        once(drawing(cfg, folder, None))
    else:
        follow(drawing(cfg, folder, ROUNDS))


def once(draw: Callable[[], RenderableType]) -> None:
    """Plain tables; as wide as they are where there is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(draw())


def follow(draw: Callable[[], RenderableType]) -> None:
    """Draw again and again."""
    from rich.live import Live

    with Live(draw(), auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(draw(), refresh=True)


def drawing(cfg: SweepConfig, folder: Path, rounds: int | None) -> Callable[[], RenderableType]:
    """What draws the study as it is then. Raises ConfigError if there is none yet."""
    from .strategies import GREEDY

    if cfg.storage is None and not (folder / "study.db").is_file():
        raise ConfigError(f"{folder} holds no study yet: its sweep has not started a trial")
    if cfg.strategy.name == GREEDY:
        from .growth.folder import stories
        from .growth.screen import screen

        read = stories(cfg, folder)
        return lambda: screen(read(), rounds)
    return lambda: trials_table(folder)


def trials_table(folder: Path) -> RenderableType:
    """The newest trials of a mixture study, and the answer so far."""
    from rich.console import Group
    from rich.table import Table

    from .folder import optional, read_answer, read_table
    from .phrases import Phrases, shares

    rows, answer = read_table(folder / "trials.csv"), read_answer(folder)
    table = Table(title=f"{folder}: {len(rows)} trials", title_justify="left")
    for name in ("trial", "mixture", "size", "steps", "objective", "status"):
        table.add_column(name, justify="left" if name in ("mixture", "size", "status") else "right")
    for row in rows[-NEWEST:]:
        mixture = Phrases(shares({key[2:]: float(w) for key, w in row.items() if key.startswith("w.")}))
        value = optional(row["value"])
        table.add_row(row["trial"], mixture, row["model_size"], row["steps"], "–" if value is None else f"{value:.6g}", row["status"])
    if not answer:
        return table
    low, high = answer["interval"]
    value_words = f" {answer['predicted']:.4f} [{low:.4f}, {high:.4f}]"
    return Group(table, Phrases([f"best for {answer['model_size']}:", *shares(answer["weights"]), value_words], "table.caption"))


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    return run_tool(argv, __doc__, view)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
