"""What happens whenever a trial of a growth starts or ends: tables, the model so far, upstream's file, the live table, the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.nanollama.config import RunFolder, write_csv, write_json
from src.nanollama.config.compose import as_dict

from ..config import SweepConfig
from ..progress import Live
from ..records import spent
from ..reporter import Reporter
from ..sinks import SweepSinks
from ..study import Study
from . import export
from .page import growth_page
from .problem import Growth
from .screen import law_words, screen
from .story import Story, shape_words, tell
from .trials import GrowthRecord, Wanted


class GrowthProgress(Live):
    """The viewer's tables where there is a terminal; elsewhere a line a trial and a line a decision."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._trials: set[int] = set()
        self._rounds = 0

    def show(self, story: Story) -> None:
        """Draw the growth as it is now."""
        if self.live:
            self.live.update(screen(story, rounds=1), refresh=True)
            return
        for record in story.records:
            if record.status != "running" and record.number not in self._trials:
                self._trials.add(record.number)
                print(trial_line(record), flush=True)
        for chapter in story.chapters[self._rounds : -1]:
            print(f"round {chapter.number}: {chapter.action}", flush=True)
        self._rounds = len(story.chapters) - 1

    def conclude(self, answer: Mapping[str, Any], reason: str) -> None:
        """The answer, in words."""
        shape = ", ".join(f"{name} {value}" for name, value in answer.get("shape", {}).items())
        loss = f", loss {answer['loss']:.4f} with {answer['params']:,.0f} parameters" if answer.get("loss") is not None else ""
        print(f"grown in {answer.get('steps', 0)} steps to {shape}{loss}")
        print(f"stopped: {reason}; everything is in {self.folder}; python -m src.apps.mixbo.view {self.folder} shows the rounds")


def trial_line(record: GrowthRecord) -> str:
    """One ended trial."""
    if record.wanted.kind == "probe":
        return f"trial {record.number:3d}  {record.wanted.label}  {record.measured.status}"
    loss = f"loss {record.measured.loss:.4f}" if record.measured.loss is not None else record.measured.status
    return f"trial {record.number:3d}  round {record.wanted.round}  {record.wanted.label}, seed {record.wanted.seed}  {loss}"


class GrowthWatch:
    """Called with the records after every change of the study; ``answers`` is what ``best.json`` says."""

    def __init__(
        self, cfg: SweepConfig, run: RunFolder, growth: Growth, study: Study[Wanted, GrowthRecord], name: str, progress: GrowthProgress
    ) -> None:
        self.cfg, self.run, self.growth, self.study, self.name, self.progress = cfg, run, growth, study, name, progress
        self.answers: dict[str, Any] = {}
        self._exported: tuple[int, str | None] = (-1, None)
        self._sinks = SweepSinks(run.path, cfg.metrics, as_dict(cfg))
        self._written = {record.number for record in study.records() if record.status != "running"}  # by an earlier part
        self._reporter = Reporter(run.path, lambda: growth_page(tell(growth, study.records())))

    def __call__(self, records: Sequence[GrowthRecord]) -> None:
        """Write down the study as it is now."""
        story = tell(self.growth, records)
        write_csv(self.run.path / "trials.csv", self.study.details())
        self.answers.update(answers(story))
        write_json(self.run.path / "best.json", self.answers)
        self.run.summary.update(self.answers)
        self._export(story)
        self._log(records)
        self.progress.show(story)
        self._reporter.when_due()

    def close(self) -> None:
        """The last report, also of a growth that is interrupted or fails."""
        self._reporter.write()
        self._sinks.close()

    def _log(self, records: Sequence[GrowthRecord]) -> None:
        """Every training that has ended, to TensorBoard and wandb; cost is counted in runs of the baseline."""
        ended = [record for record in records if record.status != "running"]
        for record in ended:
            if record.number not in self._written and record.wanted.kind == "train":
                row = {"trial": record.number, "trials": len(ended), "spent_full_runs": spent(ended) / (records[0].wanted.flops or 1.0)}
                scalars = {key: self.answers[key] for key in ("loss", "params", "spent_flops") if self.answers[key] is not None}
                trial = {**shape_words(record.wanted.points[0]), "seed": record.wanted.seed, "cohort": record.wanted.cohort}
                loss = record.measured.loss
                self._sinks.write(row, scalars, trial, {} if loss is None else {"objective": loss, "flops": record.flops})
        self._written |= {record.number for record in ended}

    def _export(self, story: Story) -> None:
        """Upstream's file, when a round has ended."""
        now = len(story.chapters), story.reason
        if self.cfg.growth.results_file and now != self._exported:
            export.write(Path(self.cfg.growth.results_file), story, self.growth.shapes.baseline, self.name)
            self._exported = now


def answers(story: Story) -> dict[str, Any]:
    """Contents of ``best.json``: the grown model, and the overrides that train it."""
    best, noise = story.best, story.noise
    law = story.law
    return {
        "shape": shape_words(story.state.incumbent),
        "overrides": {key: list(v) if isinstance(v, tuple) else v for key, v in (*story.state.overrides, *story.state.incumbent)},
        "steps": story.state.accepted,
        "loss": best.loss if best else None,
        "loss_se": None if best is None or math.isnan(best.error) else best.error,
        "params": best.params if best else None,
        "score": math.exp(-best.loss) if best else None,
        "sigma": noise.sigma,
        "smallest_gain_seen": story.detectable,
        "law": law_words(law) if law else None,
        "trials": len(story.records),
        "spent_flops": spent(story.records),
    }
