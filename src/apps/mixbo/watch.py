"""What happens whenever a trial of a sweep starts or ends: tables, the answer so far, metrics sinks, the live table, the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from src.nanollama.config import RunFolder
from src.nanollama.config.compose import as_dict

from .config import SweepConfig
from .history import History
from .problem import Problem
from .progress import Progress
from .records import Record
from .report.folder import Sweep
from .report.page import sweep_page
from .reporter import Reporter
from .results import best, write_best, write_tables
from .sinks import SweepSinks, mixture_trial
from .study import Study
from .truth import Truth


class Watch:
    """Called with the records after every change of the study; ``answers`` is what ``best.json`` says."""

    def __init__(self, cfg: SweepConfig, run: RunFolder, problem: Problem, study: Study, truth: Truth | None, progress: Progress) -> None:
        self.cfg, self.run, self.problem, self.study, self.truth, self.progress = cfg, run, problem, study, truth, progress
        self.answers: dict[str, Any] = {}
        self._history = History(run.path, problem, truth)
        self._sinks = SweepSinks(run.path, cfg.metrics, as_dict(cfg))
        self._reporter = Reporter(run.path, lambda: sweep_page(Sweep.read(run.path, cfg, problem, truth)))

    def __call__(self, records: Sequence[Record]) -> None:
        """Write down the study as it is now."""
        write_tables(self.run.path, self.problem, self.study)
        rows = self._history.update(records)
        if self._history.answer and (rows or not self.answers):
            self.answers.update(best(self.problem, records, self._history.answer))
            write_best(self.run.path, self.answers)
            self.run.summary.update(self.answers)
        if rows:
            acquisitions = {row["trial"]: row.get("acquisition") for row in self.study.details()}
            by_number = {record.number: record for record in records}
            for row in rows:
                self._sinks.write(*mixture_trial(self.problem, row, by_number[row["trial"]], acquisitions[row["trial"]]))
        self.progress.show(records, self.answers)
        self._reporter.when_due()

    def close(self) -> None:
        """The last report, also of a sweep that is interrupted or fails."""
        self._reporter.write()
        self._history.close()
        self._sinks.close()
