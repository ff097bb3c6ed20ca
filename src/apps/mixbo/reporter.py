"""The report of a sweep that is running, made again now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from src.nanollama.report import Page
from src.nanollama.report.stored import store

log = logging.getLogger("nanollama")

REPORT_EVERY_S = 60.0
REPORT_SHARE = 0.05  # of the sweep's time that reports may take


class Reporter:
    """Writes ``report.html`` now and then; ``make`` makes the page."""

    def __init__(self, folder: Path, make: Callable[[], Page]) -> None:
        self.folder, self.make = folder, make
        self._due = time.monotonic() + REPORT_EVERY_S

    def when_due(self) -> None:
        """Write it if the last one is old."""
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write it now."""
        began = time.monotonic()
        try:
            page = self.make()
            page.write(self.folder / "report.html")
            store(page, self.folder, first=3)
        except Exception:  # a picture that cannot be drawn must not cost the trainings behind it
            log.exception("the report could not be written; python -m src.apps.mixbo.report makes it again from the sweep's folder")
        took = time.monotonic() - began
        self._due = time.monotonic() + max(REPORT_EVERY_S, took / REPORT_SHARE)
