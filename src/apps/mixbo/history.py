"""``progress.jsonl``: after every trial that ended, what the study would have answered had it stopped there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from src.nanollama.config import write_text

from .folder import HISTORY, read_history
from .problem import Problem
from .recommend import Recommendation, recommend
from .records import Record, spent
from .truth import Truth


class History:
    """The lines of ``progress.jsonl`` and the latest answer. Reads what an earlier, killed sweep wrote, and adds what it could not."""

    def __init__(self, folder: Path, problem: Problem, truth: Truth | None) -> None:
        self.problem, self.truth = problem, truth
        self.answer: Recommendation | None = None
        self._path = folder / HISTORY
        self.rows: list[dict[str, Any]] = read_history(folder)
        self._file = self._rewrite()

    def update(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Add a line for each trial that ended since; returns them.

        Answers are from ended trials only: pending ones must not make them look more certain than they are. Trials that ended while
        nobody was looking come in order of their numbers.
        """
        by_number = {record.number: record for record in records if record.status != "running"}
        if any(row["trial"] not in by_number for row in self.rows):  # of a study that is gone
            self.rows = []
            self._file.close()
            self._file = self._rewrite()
        seen = [by_number[row["trial"]] for row in self.rows]
        known = {record.number for record in seen}
        added = []
        for number in sorted(by_number.keys() - known):
            seen.append(by_number[number])
            self.answer = recommend(self.problem, sorted(seen, key=lambda r: r.number))
            added.append(history_row(self.problem, seen, self.answer, self.truth))
            self._file.write(json.dumps(added[-1]) + "\n")
        self.rows += added
        if self.answer is None and seen:
            self.answer = recommend(self.problem, sorted(seen, key=lambda r: r.number))
        return added

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _rewrite(self) -> IO[str]:
        """Leaves out a torn tail, so that the next line does not hang on it."""
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        return self._path.open("a", buffering=1)


def history_row(problem: Problem, ended: Sequence[Record], answer: Recommendation | None, truth: Truth | None) -> dict[str, Any]:
    """One line: cost so far, the prediction at the target with its 95 % interval, the mixture, and its true value where that is known.

    Values are in the metric's own units; ``regret`` is how much worse than the optimum the mixture truly is.
    """
    row: dict[str, Any] = {
        "trial": ended[-1].number,
        "trials": len(ended),
        "spent_flops": spent(ended),
        "spent_full_runs": spent(ended) / problem.full_run,
    }
    if answer is None:
        return row | dict.fromkeys(("predicted", "low", "high", "tested", "weights", "true_value", "regret"))
    return row | {
        "predicted": answer.predicted,
        "low": answer.interval[0],
        "high": answer.interval[1],
        "tested": answer.tested,
        "weights": dict(zip(problem.space.domains, answer.weights, strict=True)),
        "true_value": truth.value(answer.weights) if truth else None,
        "regret": truth.regret(answer.weights) if truth else None,
    }
