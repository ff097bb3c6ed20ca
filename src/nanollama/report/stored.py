"""Sections that a command leaves in its run folder (``sections.json``), so that the report of several runs can show them too.

This is how an app speaks in a report of the core: as data, not as code. What is read is built from the classes below and escaped like
everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import write_json
from .page import Block, Cell, Chip, Column, Figure, Page, Panels, Prose, Section, Status, Table, finite
from .runs import SECTIONS as NAME


def store(page: Page, folder: Path, first: int) -> None:
    """Leave the ``first`` sections of a page in ``folder``, under its title."""
    blocks = [{**asdict(section), "blocks": [_plain(block) for block in section.blocks]} for section in page.sections[:first]]
    write_json(folder / NAME, finite({"title": page.title, "lead": page.lead, "sections": blocks}))


def stored(folder: Path) -> list[Section]:
    """The sections that a run left; none where it left none. Raises ValueError for a file that is no such thing."""
    if not (folder / NAME).is_file():
        return []
    try:
        found = json.loads((folder / NAME).read_text())
        sections = [_section(section) for section in found["sections"]]
        return [Section(found["title"], [], found["lead"]), *sections]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / NAME} does not hold sections: {type(error).__name__}: {error}") from error


def _plain(block: Block) -> dict[str, Any]:
    if isinstance(block, Table):
        return {**asdict(block), "rows": [[_plain_cell(cell) for cell in row] for row in block.rows]}
    if isinstance(block, Panels):
        return {**asdict(block), "figures": [asdict(figure) for figure in block.figures]}
    return asdict(block)


def _plain_cell(cell: Cell) -> Any:
    return cell if isinstance(cell, str) else {"cell": type(cell).__name__, **asdict(cell)}


def _section(values: Mapping[str, Any]) -> Section:
    return Section(str(values["title"]), [_block(block) for block in values["blocks"]], str(values["lead"]), bool(values["collapsed"]))


def _block(values: Mapping[str, Any]) -> Block:
    fields = {key: value for key, value in values.items() if key != "block"}
    kind = values["block"]
    if kind == "prose":
        return Prose(**fields)
    if kind == "figure":
        return Figure(**fields)
    if kind == "panels":
        return Panels(**{**fields, "figures": [_figure(figure) for figure in fields["figures"]]})
    if kind == "table":
        columns = [Column(**column) for column in fields["columns"]]
        return Table(columns, [_row(row) for row in fields["rows"]], fields["caption"])
    raise KeyError(f"no block is called {kind!r}")


def _figure(values: Mapping[str, Any]) -> Figure:
    return Figure(**{key: value for key, value in values.items() if key != "block"})


def _row(cells: Sequence[Any]) -> list[Cell]:
    kinds = {"Chip": Chip, "Status": Status}
    return [cell if isinstance(cell, str) else kinds[cell["cell"]](**{k: v for k, v in cell.items() if k != "cell"}) for cell in cells]
