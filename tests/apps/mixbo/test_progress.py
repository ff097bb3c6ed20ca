"""What a sweep shows while it runs: the table in a terminal, the lines elsewhere, and its run at Weights & Biases."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from offline_wandb import written
from rich.console import Console
from rich.live import Live
from studies import finish, problem, simulator

from src.apps.mixbo.controller import Limits
from src.apps.mixbo.folder import read_history
from src.apps.mixbo.options import SpaceConfig
from src.apps.mixbo.progress import SHOWN, Progress
from src.apps.mixbo.records import Record, Suggestion
from src.apps.mixbo.report.folder import load
from src.apps.mixbo.sinks import SweepSinks, mixture_trial
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.view import trials_table
from src.nanollama.config import write_csv, write_json
from src.nanollama.config.schema import MetricsConfig, WandbConfig

ANSWER = {
    "weights": {"a": 0.25, "b": 0.749, "c": 0.001}, "model_size": "1B", "steps": 8000, "predicted": 2.3456, "interval": [2.3, 2.4],
    "tested": False, "spent_flops": 1e20,
}  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A sweep's display on a recorded terminal, with a clock to set; ``budget``: four full runs of the smallest model."""
    objective = simulator(noise=0.0)
    posed, clock = problem(objective), SimpleNamespace(now=0.0)
    monkeypatch.setattr("src.apps.mixbo.progress.time", SimpleNamespace(time=lambda: clock.now))
    one = objective.flops_per_step[0] * 8000
    progress = Progress(posed, Limits(4 * one, float("inf")), tmp_path)
    console = Console(record=True, width=150, force_terminal=True, file=io.StringIO())
    progress.live = Live(console=console, auto_refresh=False)
    return SimpleNamespace(progress=progress, console=console, clock=clock, objective=objective, one=one)


def trial(drawn: SimpleNamespace, number: int, weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Record:
    return replace(finish(drawn.objective, Suggestion(weights, "20M", 8000, flops=drawn.one), []), number=number)


def title(text: str) -> str:
    """Up to the table's frame, where it was wrapped to the table's width."""
    return " ".join(text.partition("┏")[0].split())


def screen(drawn: SimpleNamespace, records: list[Record], answer: dict[str, object]) -> str:
    with drawn.progress as progress:
        progress.show(records, answer)
        drawn.console.export_text()  # forget what was drawn until now
        progress.show(records, answer)
        return drawn.console.export_text()


def test_the_table_says_what_was_spent_what_is_best_and_what_is_running(drawn: SimpleNamespace) -> None:
    done = trial(drawn, 0)
    running = Record(1, (0.0, 0.996, 0.004), "150M", 2000, "running", (), drawn.one, parent=0)
    failed = Record(2, (1.0, 0.0, 0.0), "20M", 4000, "failed", (), drawn.one)
    text = screen(drawn, [done, running, failed], ANSWER)
    share = 3 * drawn.one / drawn.progress.problem.full_run
    assert f"kg: {3 * drawn.one:.3g} FLOPs = {share:.2f} full runs (75 % of the budget)" in title(text)
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    value = drawn.objective.metric.objective(drawn.objective.values([[0.5, 0.3, 0.2]], "20M", 8000))[0]
    assert "a 50% b 30% c 20%" in rows["0"] and f"{value:.4f}" in rows["0"] and rows["0"].rstrip("│ ").endswith("ok")
    assert "b 100%" in rows["1"] and "150M" in rows["1"] and "2000" in rows["1"] and "running (continues 0)" in rows["1"]
    assert rows["2"].rstrip("│ ").endswith("failed")
    assert "best for 1B at 8000: a 25% b 75%  2.3456 [2.3000, 2.4000]" in text


@pytest.mark.parametrize("width", [80, 90, 100])
def test_a_domain_and_its_share_stay_on_one_line(width: int, drawn: SimpleNamespace, tmp_path: Path) -> None:
    names = ("python", "cpp", "prose", "web", "data", "old books")
    weights = dict(zip(names, (0.25, 0.19, 0.18, 0.15, 0.13, 0.10), strict=True))
    space = MixtureSpace.from_config(SpaceConfig(names))
    drawn.progress.problem = replace(drawn.progress.problem, space=space)
    drawn.console.width = width
    record = Record(7, tuple(weights.values()), "150M", 2000, "running", (), drawn.one, parent=0)
    answer = {**ANSWER, "weights": weights}
    write_csv(tmp_path / "trials.csv", [{"trial": 7, **{f"w.{d}": w for d, w in weights.items()}, "model_size": "150M", "steps": 2000,
                                         "value": 9.8765432e-05, "status": "ok"}])  # fmt: skip
    write_json(tmp_path / "best.json", answer)
    viewer = Console(record=True, width=width, file=io.StringIO())
    viewer.print(trials_table(tmp_path))
    viewed = viewer.export_text()
    for text in (screen(drawn, [record], answer), viewed):
        table, _, below = text.partition("└")
        for part in (table, below):
            assert all(any(f"{name} {100 * w:.0f}%" in line for line in part.splitlines()) for name, w in weights.items())
    assert "9.8765" in viewed and "e-05" in viewed


def test_the_newest_trials_are_shown(drawn: SimpleNamespace) -> None:
    text = screen(drawn, [trial(drawn, number) for number in range(SHOWN + 3)], {})
    assert [int(line.split()[1]) for line in text.splitlines() if line.startswith("│")] == list(range(3, SHOWN + 3))
    assert "best for" not in text


def test_time_left_goes_by_the_rate_of_this_start(drawn: SimpleNamespace) -> None:
    first, second, third = (trial(drawn, number) for number in range(3))
    assert "left" not in title(screen(drawn, [first], {}))  # found in the study: no rate yet
    drawn.clock.now = 20.0
    assert "(50 % of the budget), about 40 s left" in title(screen(drawn, [first, second], {}))
    drawn.clock.now = 600.0
    assert "(75 % of the budget), about 5 min left" in title(screen(drawn, [first, second, third], {}))
    drawn.progress.limits = Limits(float("inf"), 10)
    text = title(screen(drawn, [first, second, third], {}))
    assert "left" not in text and "budget" not in text


def test_without_a_terminal_every_ended_trial_is_told_once(drawn: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    drawn.progress.live = None
    done, running = trial(drawn, 0), Record(1, (1.0, 0.0, 0.0), "20M", 2000, "running", (), drawn.one)
    for _ in range(2):
        drawn.progress.show([done, running], {})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial   0  a 50% b 30% c 20%  20M@8000  ") and "  ok  " in line


def test_a_resumed_sweep_prints_the_lines_of_the_unbroken_one(drawn: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    drawn.progress.live = None
    records = [trial(drawn, number) for number in range(3)]
    for known in (1, 2, 3):
        drawn.progress.show(records[:known], {})
    unbroken = capsys.readouterr().out
    Progress(drawn.progress.problem, drawn.progress.limits, drawn.progress.folder).show(records, {})
    assert capsys.readouterr().out == unbroken


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_has_the_answer_after_every_trial_and_the_trials(kg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sweep, history = load(kg), read_history(kg)
    sinks = SweepSinks(tmp_path, MetricsConfig(tensorboard=False, wandb=WandbConfig(active=True)), {})
    for row in history:
        sinks.write(*mixture_trial(sweep.problem, row, sweep.records[row["trial"]], None))
    sinks.close()
    wandb.teardown()  # its service writes the file, in its own time
    rows = written(tmp_path)
    answers, tried = [row for row in rows if "predicted/sweep" in row], [row for row in rows if "objective/trial" in row]
    assert [row["step"] for row in answers] == [*range(1, 13)] == [row["step"] for row in tried] and len(rows) == 24
    for key in ("predicted", "low", "high", "regret", "spent_full_runs"):
        assert [row[f"{key}/sweep"] for row in answers] == [row[key] for row in history]
    for row, record in zip(tried, sweep.records, strict=True):
        assert row["objective/trial"] == record.curve[-1][1][0] and row["flops/trial"] == record.flops
        assert (row["w.a/trial"], row["model_size/trial"], row["steps/trial"]) == (record.weights[0], record.model_size, record.steps)
