"""Run folders -> tidy frames -> one self-contained HTML page."""

from .page import Block, Chip, Column, Figure, Page, Panels, Prose, Section, Status, Table
from .runs import Run, find_runs, read_run

__all__ = [
    "Block",
    "Chip",
    "Column",
    "Figure",
    "Page",
    "Panels",
    "Prose",
    "Run",
    "Section",
    "Status",
    "Table",
    "find_runs",
    "read_run",
]
