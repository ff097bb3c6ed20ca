"""A report page: sections of text, tables and figures, rendered to one HTML file that needs nothing else.

    page = Page("Two settings", "One sentence on what this is.")
    page.add(Section("Learning curves", [Figure(traces, layout, "What to see in it.")]))
    page.write(Path("report.html"))

Every string is escaped on its way into the page, and a content security policy forbids the page to fetch anything or to run any script but
its own two (plotly.js and ``page.js``).
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from ..config import write_text

HERE = Path(__file__).parent
COLOURS = 8  # series colours of page.css, --c1 to --c8


def series_colour(index: int) -> str:
    """The colour of the index-th series as a token that the page resolves in its light or dark theme."""
    return f"var(--c{index % COLOURS + 1})"


@dataclass(frozen=True)
class Chip:
    """A table cell: a name with the colour that its curves have; ``title`` is shown on hover."""

    text: str
    colour: str
    title: str = ""


@dataclass(frozen=True)
class Status:
    """A table cell: how a run ended. ``ok`` is calm, ``running`` neutral, everything else stands out."""

    text: str

    @property
    def kind(self) -> str:
        """Style class."""
        return {"ok": "good", "running": "neutral", "requeue": "neutral"}.get(self.text, "bad")


Cell: TypeAlias = str | Chip | Status


@dataclass(frozen=True)
class Column:
    """Heading of a table column, with the unit on a second line; numbers are aligned right."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    block: str = field(default="table", init=False)


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    block: str = field(default="prose", init=False)


@dataclass(frozen=True)
class Figure:
    """A plotly figure: ``data`` and ``layout`` as in plotly.js, also those of ``plotly.graph_objects.Figure.to_plotly_json()``.

    Colours are ``series_colour(i)``, or any ``var(--name)`` of ``page.css``, with opacity as ``var(--c1)/0.2``. ``title`` stands above
    the plot and names the vertical axis with its unit; the horizontal one is named in ``layout``. Traces that share a ``legendgroup``
    are shown and hidden together by the legend, which names the first of them. Names are escaped here; other text, such as that of
    annotations and categories, must be escaped by the caller. ``caption``: one sentence that says what to see.
    """

    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    caption: str = ""
    title: str = ""
    height: int = 380  # CSS pixels
    legend: bool = True
    block: str = field(default="figure", init=False)

    @property
    def entries(self) -> list[dict[str, str]]:
        """Legend: name, colour and stroke of every group of traces."""
        groups: dict[str, dict[str, str]] = {}
        for trace in self.data:
            group = trace.get("legendgroup") or trace.get("name")
            if not self.legend or not group or trace.get("showlegend") is False:
                continue
            line, marker = trace.get("line") or {}, trace.get("marker") or {}
            colour = line.get("color") or marker.get("color") or "var(--ink)"
            drawn = "markers" if trace.get("type") == "bar" else trace.get("mode", "lines")
            shape = "square" if trace.get("type") == "bar" else marker.get("symbol", "circle")
            stroke = line.get("dash", "solid") if "lines" in drawn else shape
            colour = colour if isinstance(colour, str) else "var(--ink)"  # one colour a point: the legend shows the shape only
            groups.setdefault(group, {"group": group, "name": str(trace.get("name", group)), "colour": colour, "stroke": stroke})
        return list(groups.values())

    @property
    def json(self) -> str:
        """The figure for the page's script, safe inside a script element."""
        traces = [{**trace, "name": _escape(trace["name"])} if "name" in trace else dict(trace) for trace in self.data]
        text = json.dumps(finite({"data": traces, "layout": self.layout}), allow_nan=False, separators=(",", ":"))
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass(frozen=True)
class Panels:
    """Small figures side by side, as many to a row as fit; one legend and one caption for all."""

    figures: Sequence[Figure]
    caption: str = ""
    block: str = field(default="panels", init=False)

    @property
    def entries(self) -> list[dict[str, str]]:
        """The union of the figures' legends."""
        return list({entry["group"]: entry for figure in self.figures for entry in figure.entries}.values())


Block: TypeAlias = Prose | Table | Figure | Panels


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that leads in, and blocks. A ``collapsed`` one opens on a click."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""
    collapsed: bool = False


class Page:
    """Sections under a title."""

    def __init__(self, title: str, lead: str = "", facts: Sequence[str] = ()) -> None:
        self.title, self.lead, self.facts = title, lead, list(facts)
        self.sections: list[Section] = []

    def add(self, *sections: Section) -> Page:
        """Append sections; returns the page."""
        self.sections.extend(sections)
        return self

    def render(self) -> str:
        """The page as HTML, about 5 MB of it plotly.js."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from plotly.offline import get_plotlyjs

        scripts = [get_plotlyjs(), (HERE / "page.js").read_text()]
        env = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                          finalize=_together)  # fmt: skip
        env.filters["plain"] = lambda colour: colour.split("/")[0]
        css = (HERE / "page.css").read_text()
        return env.get_template("page.html").render(page=self, css=css, scripts=scripts, hashes=[_hash(script) for script in scripts])

    def write(self, path: Path) -> None:
        """Write the page atomically, so that a browser never reloads half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.render())


@cache
def _hash(script: str) -> str:
    """A script's name in the content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _together(value: Any) -> Any:
    """A per cent sign stays on the line of its number. The page's own scripts and style come as markup, and stay as they are."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def _escape(text: Any) -> str:
    """Plotly reads a subset of HTML in its texts."""
    return html.escape(str(text), quote=False)


def finite(value: Any) -> Any:
    """Plain JSON: arrays as lists, and null for what JSON has no number for."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
