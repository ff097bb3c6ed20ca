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
from src.apps.mixbo.compare.runs import SweepRun, find_sweeps
from src.apps.mixbo.compare.stats import at, cost_to_stay, median_cost, shared
from src.apps.mixbo.folder import read_history
from src.nanollama.config import ConfigError
from src.nanollama.report import Figure, Panels, Section

TITLES = (
    "Strategies side by side", "Summary", "Regret against cost", "Against kg, design=0 over time", "What each strategy bought",
    "Why: trust and acquisition over time", "All sweeps",
)  # fmt: skip
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
    html = (multirun / "compare.html").read_text()
    assert all(title in html for title in TITLES) and f"{random['spent_full_runs']:.3g}" in html


def section(runs: list[SweepRun], title: str) -> Section:
    return next(section for section in compare_page(runs).sections if section.title == title)


def test_what_was_bought_is_the_share_of_the_flops_and_every_trial(multirun: Path) -> None:
    runs = find_sweeps([str(multirun)])
    shares, panels = section(runs, "What each strategy bought").blocks
    assert isinstance(shares, Figure) and isinstance(panels, Panels)
    with (multirun / "0" / "trials.csv").open() as file:
        mine = list(csv.DictReader(file))
    total = sum(float(row["charged_flops"]) for row in mine)
    assert [bar["name"] for bar in shares.data] == ["20M", "400M", "1B"]
    for bar in shares.data:
        bought = sum(float(row["charged_flops"]) for row in mine if row["model_size"] == bar["name"])
        assert list(bar["y"]) == ["kg, design=0", "random"]
        assert bar["x"] == pytest.approx([100 * bought / total, 100.0 if bar["name"] == "1B" else 0.0])  # random: full runs only
    assert [panel.title for panel in panels.figures] == ["kg, design=0", "random"]
    (dots,) = panels.figures[0].data
    history = [json.loads(line) for line in (multirun / "0" / "progress.jsonl").read_text().splitlines()]
    assert list(dots["x"]) == [row["spent_full_runs"] for row in history] and list(dots["y"]) == [row["model_size"] for row in mine]
    assert len(panels.figures[1].data[0]["x"]) == 6  # of both seeds


def test_differences_over_time_are_those_of_the_same_seed_at_the_same_cost(kg: Path, sweeps: Callable[..., Path]) -> None:
    """Regret of expected improvement divided by that of the knowledge gradient, wherever both have come to."""
    ei = sweeps("ei", "strategy=ei", "strategy.design=0", "budget.trials=5")
    title = "Against kg over time"
    (figure,) = section(find_sweeps([str(kg), str(ei)]), title).blocks
    assert isinstance(figure, Figure) and "divided by that of kg" in figure.title and "kg is ahead above 1" in figure.caption
    (line,) = figure.data  # one pair: no band
    rows = {name: read_history(folder) for name, folder in (("kg", kg), ("ei", ei))}

    def regret(name: str, cost: float) -> float:
        return [row["regret"] for row in rows[name] if row["spent_full_runs"] <= cost * (1 + 1e-12)][-1]

    assert line["name"] == "ei" and len(line["x"]) > 1
    low, high = max(r[0]["spent_full_runs"] for r in rows.values()), min(r[-1]["spent_full_runs"] for r in rows.values())
    assert low <= min(line["x"]) and max(line["x"]) <= high
    assert list(line["y"]) == pytest.approx([max(regret("ei", cost), 1e-6) / max(regret("kg", cost), 1e-6) for cost in line["x"]])
    assert "Against random over time" not in [s.title for s in compare_page(find_sweeps([str(kg)])).sections]


def test_trust_and_acquisition_over_time_are_the_suggestions_own(kg: Path) -> None:
    trust, acquisition = section(find_sweeps([str(kg)]), "Why: trust and acquisition over time").blocks
    with (kg / "trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["acquisition"]]
    assert rows and isinstance(trust, Figure) and isinstance(acquisition, Panels)
    for figure, key in ((trust, "rho"), (acquisition.figures[0], "acquisition")):
        assert list(figure.data[-1]["x"]) == [int(row["trial"]) for row in rows]
        assert list(figure.data[-1]["y"]) == pytest.approx([float(row[key]) for row in rows])


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
