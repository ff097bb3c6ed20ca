"""Loss at equal size, size for equal loss and the Pareto front, against curves whose answers are known."""

import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from src.nanollama.report import Run
from src.nanollama.report.families import Point, equal_loss, families_section, interval, loss_at, pareto, points, size_for
from src.nanollama.report.traces import colours


def curve(family: str, offset: float, sizes: tuple[float, ...] = (1e6, 2e6, 4e6)) -> list[Point]:
    """Loss falls by one for every factor of e in size: sizes and losses then exchange exactly."""
    return [Point(family, n, 3, 20 - math.log(n) + offset, 0.01, 0.5) for n in sizes]


def run(family: str, loss: float, seed: int, *, lr: float = 1e-3, tokens: int = 100, status: str = "ok", parameters: int = 1000) -> Run:
    model = {"family": family, "target_params": 1000}
    config: dict[str, Any] = {"model": model, "train": {"seed": seed, "steps": 5}, "optim": {"lr": lr}, "run_dir": f"r{seed}"}
    result = {"parameters": parameters, "tokens": tokens, "final/test_loss": loss, "final/test_accuracy": 0.5}
    return Run(Path("x"), f"{family}{seed}{lr}{tokens}", status, config, {}, result)


def test_a_family_worth_twice_the_parameters() -> None:
    plain, better = curve("plain", 0.0), curve("better", -math.log(2))
    found = [*plain, *better]
    assert [equal_loss(point, found) for point in better] == ["2.00", "2.00", "> 1.00"]  # nobody was trained at twice the largest
    assert [equal_loss(point, found) for point in plain] == ["< 1.00", "0.50", "0.50"]
    assert loss_at(plain, 3e6) == pytest.approx(20 - math.log(3e6))
    assert loss_at(plain, 5e6) is None and loss_at(plain, 4.02e6) == plain[-1].loss  # nothing is extrapolated
    assert size_for(plain, 20 - math.log(3e6)) == pytest.approx(3e6)
    assert pareto(found) == better


def test_the_front_has_what_nothing_beats() -> None:
    found = [Point("a", 1, 1, 3.0, None, 0), Point("a", 2, 1, 2.0, None, 0), Point("b", 1, 1, 3.5, None, 0), Point("b", 3, 1, 2.5, None, 0)]
    assert pareto(found) == found[:2]


def test_seeds_are_averaged_and_settings_are_not() -> None:
    runs = [run("a", 2.0, 0), run("a", 2.2, 1), run("a", 1.5, 2, status="nan"), run("a", 3.0, 0, lr=0.1), run("a", 1.0, 0, tokens=50)]
    (point,) = points(runs)
    assert point.seeds == 2 and point.loss == pytest.approx(2.1)
    low, high = stats.t.interval(0.95, 1, loc=2.1, scale=stats.sem([2.0, 2.2]))
    assert point.interval == pytest.approx((high - low) / 2)
    assert interval([1.0]) is None


def test_the_section() -> None:
    runs = [run("a", 2.0, 0), run("a", 2.1, 1), run("b", 1.9, 0), run("b", 1.8, 1, parameters=1001)]
    hue = colours(runs)
    section = families_section(runs, hue)
    assert section is not None
    table, figure = section.blocks
    assert [row[0] for row in table.rows] == ["a", "b"] and "±" in str(table.rows[0][3])  # type: ignore[union-attr]
    assert {trace["name"] for trace in figure.data} == {"a", "b", "Pareto front"}  # type: ignore[union-attr]
    of_family = {trace["name"]: trace["line"]["color"] for trace in figure.data}  # type: ignore[union-attr]
    assert all(hue[run.name] == of_family[run.config["model"]["family"]] for run in runs) and of_family["a"] != of_family["b"]
    assert families_section(runs[:2], hue) is None
