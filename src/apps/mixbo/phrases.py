"""Short texts side by side in a terminal, broken between them only: a domain and its share stay together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

LEAST = 0.005  # smaller shares are not shown


def shares(weights: Mapping[str, float]) -> list[str]:
    """``python 25%`` for each domain of a mixture that is seen in whole per cents."""
    return [f"{name} {100 * weight:.0f}%" for name, weight in weights.items() if weight >= LEAST]


class Phrases:
    """Phrases for a cell or a line of the screen. Blanks inside one never become a line's end unless it alone is too wide.

    Rich itself breaks at every blank, also at those that are called unbreakable.
    """

    def __init__(self, phrases: Iterable[str], style: str = "") -> None:
        self.phrases, self.style = list(phrases), style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[str] = []
        for phrase in self.phrases:
            longer = f"{lines[-1]} {phrase}" if lines else phrase
            if lines and cell_len(longer) > options.max_width:
                lines.append(phrase.lstrip())
            else:
                lines[-1:] = [longer]
        yield Text("\n".join(lines), style=self.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(cell_len, self.phrases), default=0), cell_len(" ".join(self.phrases)))
