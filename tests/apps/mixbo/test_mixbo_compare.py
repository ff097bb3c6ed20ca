"""Strategies side by side: statistics against brute force, the command on folders of sweeps."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.apps.mixbo.compare.__main__ import main
from src.apps.mixbo.compare.page import compare_page
from src.apps.mixbo.compare.runs import find_sweeps
from src.apps.mixbo.compare.stats import at, cost_to_stay, median_cost, shared
from src.nanollama.config import ConfigError

CURVES = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda point: point[0]).map(sorted)


@given(CURVES, st.floats(0.05, 12))
def test_step_function_holds_the_last_value_seen(curve: list[tuple[float, float]], cost: float) -> None:
    seen = [value for c, value in curve if c <= cost * (1 + 1e-12)]
    found = at(curve, np.array([cost]))[0]
    assert found == seen[-1] if seen else np.isnan(found)


@given(st.lists(CURVES, max_size=4))
def test_shared_costs_are_those_at_which_no_curve_is_made_up(curves: list[list[tuple[float, float]]]) -> None:
    within = [cost for curve in curves for cost, _ in curve if all(other[0][0] <= cost <= other[-1][0] for other in curves)]
    assert shared(curves).tolist() == sorted(set(within))


@given(CURVES, st.floats(0, 1))
def test_cost_to_stay_is_the_first_after_which_nothing_is_above(curve: list[tuple[float, float]], threshold: float) -> None:
    good = [cost for i, (cost, _) in enumerate(curve) if all(value <= threshold for _, value in curve[i:])]
    assert cost_to_stay(curve, threshold) == (good[0] if good else None)


def test_median_cost_counts_runs_that_never_got_there_as_dearer() -> None:
    def reaching(cost: float | None, end: float) -> list[tuple[float, float]]:
        return [(0.1, 1.0), *([(cost, 0.0)] if cost else []), (end, 0.0 if cost else 1.0)]

    three = median_cost([reaching(2, 5), reaching(1, 5), reaching(None, 4)], [0.5] * 3)
    assert (three.cost, three.bound, three.reached, str(three)) == (2, False, 2, "2")
    lost = median_cost([reaching(2, 5), reaching(None, 4), reaching(None, 7)], [0.5] * 3)
    assert (lost.cost, lost.bound, lost.reached, str(lost)) == (4, True, 1, "> 4")
    two = median_cost([reaching(2, 5), reaching(None, 4)], [0.5] * 2)
    assert two.bound  # of two middle values the upper one: no strategy is flattered


@pytest.fixture
def multirun(kg: Path, sweeps: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with jobs as a multirun leaves it."""
    jobs = [kg, *(sweeps(f"random-{seed}", "strategy=random", f"seed={seed}", "budget.trials=3") for seed in (0, 1))]
    for number, job in enumerate(jobs):
        (tmp_path / str(number)).mkdir()
        for name in ("config.yaml", "trials.csv", "progress.jsonl", "curves.csv", "best.json"):
            (tmp_path / str(number) / name).write_text((job / name).read_text())
    return tmp_path


def test_command_on_a_multirun(multirun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(multirun)]) == 0
    assert "Cost to get within 10 % of the uniform mixture's regret" in capsys.readouterr().out
    with (multirun / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 + 3 + 3 and {row["strategy"] for row in rows} == {"kg, design=0", "random"}
    last = json.loads((multirun / "0" / "progress.jsonl").read_text().splitlines()[-1])
    mine = [row for row in rows if row["run"].endswith("/0")][-1]
    assert float(mine["best_regret"]) == last["regret"] and float(mine["spent_flops"]) == last["spent_flops"]
    random = next(e for e in json.loads((multirun / "compare.json").read_text())["strategies"] if e["strategy"] == "random")
    final = [json.loads((multirun / job / "progress.jsonl").read_text().splitlines()[-1])["regret"] for job in "12"]
    assert random["runs"] == 2 and random["median"] == pytest.approx(np.median(final)) and random["spent_full_runs"] == pytest.approx(3)
    assert (multirun / "compare.html").stat().st_size > 1e6


def test_page_without_a_known_truth_shows_predictions_and_what_was_measured(multirun: Path) -> None:
    for job in "012":
        path = multirun / job / "progress.jsonl"
        rows = [json.loads(line) | {"regret": None, "true_value": None} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = find_sweeps([str(multirun)])
    page = compare_page(runs)
    assert "each study judges itself" in page.lead and "Value against cost" in [section.title for section in page.sections]
    random = next(run for run in runs if run.label == "random")
    values = [float(row["value"]) for row in random.trials]
    assert [value for _, value in random.measured()] == list(np.minimum.accumulate(values))  # every trial of it is a full run
    page.render()


def test_sweeps_of_different_problems_are_refused(kg: Path, sweeps: Callable[..., Path]) -> None:
    other = sweeps("other", "strategy=random", "simulator.gamma=1.0", "budget.trials=1")
    with pytest.raises(ConfigError, match=r"simulator\.gamma is 1\.0 instead of 0\.5"):
        find_sweeps([str(kg), str(other)])


def test_a_folder_without_sweeps_is_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2 and "no sweep in this folder" in capsys.readouterr().err
    assert main([]) == 2
