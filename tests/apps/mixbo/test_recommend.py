"""The answer of a study."""

from __future__ import annotations

import numpy as np
import pytest
from studies import SPACE, finish, problem, simulator, spread_out, study

from src.apps.mixbo.recommend import best_corner, recommend
from src.apps.mixbo.records import Record, Suggestion, same


def full(objective: object, w: tuple[float, ...], size: str, records: list[Record]) -> Record:
    return finish(objective, Suggestion(w, size, 8000), records)  # type: ignore[arg-type]


def test_nothing_known_nothing_recommended() -> None:
    assert recommend(problem(simulator()), []) is None


def test_the_answer_is_the_same_for_the_same_records() -> None:
    objective = simulator()
    posed, records = problem(objective), spread_out(objective, {"20M": 6, "150M": 4})
    assert recommend(posed, records) == recommend(posed, records[::-1])


@pytest.mark.parametrize("accuracy", [False, True])
def test_defect_6_the_planted_best_run_is_the_one_reported(accuracy: bool) -> None:
    objective = simulator(accuracy=accuracy, optimum=(0.1, 0.2, 0.7), amplitude=0.02)
    posed = problem(objective)
    records = spread_out(objective, {"1B": 7})
    records.append(full(objective, (0.1, 0.2, 0.7), "1B", records))
    answer = recommend(posed, records)
    assert answer is not None and objective.regret(answer.weights) < 0.002
    assert same(answer.baseline, (0.1, 0.2, 0.7))
    value = float(objective.values(np.array([answer.weights]), "1B", 8000)[0, 0])
    low, high = answer.interval
    assert low <= answer.predicted <= high and low - 0.02 <= value <= high + 0.02  # in the metric's own direction
    assert (answer.predicted > 0.25) == accuracy or not accuracy


@pytest.mark.parametrize("seed", range(2))
def test_never_worse_than_what_was_tested_at_the_target(seed: int) -> None:
    objective = simulator(seed=seed, noise=0.0, r_size=0.0, r_step=0.9, amplitude=0.015)  # small models mislead
    posed = problem(objective, surrogate={"noise_floor": 0.0005})
    records = study(posed, objective, 24, seed)
    there = [objective.regret(r.weights) for r in records if r.model_size == "1B" and r.steps == 8000]
    answer = recommend(posed, records)
    assert there and answer is not None
    assert objective.regret(answer.weights) <= min(there) + 0.001


def test_the_best_corner_is_the_fallback_until_the_target_was_seen() -> None:
    objective = simulator()
    records: list[Record] = []
    for corner in SPACE.corners():
        records.append(full(objective, tuple(corner.tolist()), "20M", records))
    posed = problem(objective)
    values = [record.curve[-1][1][0] for record in records]
    expected = SPACE.corners()[int(np.argmin(values))]
    assert same(best_corner(posed, records), expected)  # type: ignore[arg-type]
    answer = recommend(posed, records)
    assert answer is not None and same(answer.baseline, expected) and not answer.tested
