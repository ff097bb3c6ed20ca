"""The answer of a study."""

from __future__ import annotations

import numpy as np
import pytest
from studies import SPACE, finish, problem, simulator, spread_out, study

from src.apps.mixbo.baseline import best_anchor, difference
from src.apps.mixbo.recommend import recommend
from src.apps.mixbo.records import Record, Suggestion, same
from src.apps.mixbo.surrogate import condition


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
    objective = simulator(accuracy=accuracy, optimum=(0.1, 0.2, 0.7), amplitude=0.05)  # the second best is .0012 off, the noise .001
    posed = problem(objective)
    records = spread_out(objective, {"1B": 7})
    records.append(full(objective, (0.1, 0.2, 0.7), "1B", records))
    answer = recommend(posed, records)
    assert answer is not None and objective.regret(answer.weights) < 0.002
    assert same(answer.baseline, (0.1, 0.2, 0.7))
    value = float(objective.values(np.array([answer.weights]), "1B", 8000)[0, 0])
    low, high = answer.interval

    tried = [float(objective.values(np.array([record.weights]), "1B", 8000)[0, 0]) for record in records]
    best, worst = (max(tried), min(tried)) if accuracy else (min(tried), max(tried))  # in the metric's own direction
    assert tried[-1] == best and answer.predicted == pytest.approx(best, abs=0.05 * abs(best - worst))
    assert low <= answer.predicted <= high and low - 0.002 <= value <= high + 0.002 and high - low < 0.1 * abs(best - worst)


@pytest.mark.parametrize("seed", range(2))
def test_never_worse_than_what_was_tested_at_the_target(seed: int) -> None:
    objective = simulator(seed=seed, noise=0.0, r_size=0.0, r_step=0.9, amplitude=0.015)  # small models mislead
    posed = problem(objective, surrogate={"noise_floor": 0.0005})
    records = study(posed, objective, 24, seed)
    there = [objective.regret(r.weights) for r in records if r.model_size == "1B" and r.steps == 8000]
    answer = recommend(posed, records)
    assert there and answer is not None
    assert objective.regret(answer.weights) <= min(there) + 0.001


def test_another_mixture_than_the_baseline_is_better_by_the_caution_and_by_four_times_that_before_any_full_run() -> None:
    moved = set()
    for seed in range(4):
        objective = simulator(seed=seed)
        posed = problem(objective)
        records = spread_out(objective, {"20M": 9}, seed)
        half_way = np.vstack([np.eye(3), np.full((1, 3), 1 / 3), SPACE.sample(19, np.random.default_rng(seed))])
        for w in half_way:  # where the largest model says a lot
            records.append(finish(objective, Suggestion(tuple(w.tolist()), "1B", 4000), records))
        for full_runs in range(3):
            answer = recommend(posed, records)
            assert answer is not None
            if not same(answer.weights, answer.baseline):
                moved.add(full_runs > 0)
                assert answer.gain >= (1 if full_runs else 4) * posed.strategy.caution * answer.gain_sd
            weights = SPACE.sample(1, np.random.default_rng(10 * seed + full_runs))[0]
            records.append(full(objective, tuple(weights.tolist()), "1B", records))
    assert moved == {False, True}


def test_the_best_anchor_is_the_fallback_until_the_target_was_seen() -> None:
    objective = simulator()
    posed = problem(objective)
    records: list[Record] = []
    anchors = [*SPACE.corners(), SPACE.centroid()]
    for anchor in anchors:
        assert best_anchor(posed, records) is None
        records.append(full(objective, tuple(anchor.tolist()), "20M", records))
    values = [record.curve[-1][1][0] for record in records]
    expected = anchors[int(np.argmin(values))]
    assert same(best_anchor(posed, records), expected)  # type: ignore[arg-type]
    answer = recommend(posed, records)
    assert answer is not None and same(answer.baseline, expected) and not answer.tested


@pytest.mark.parametrize("outputs", [1, 3])
def test_intervals_of_differences_at_the_target_hold_before_it_was_seen(outputs: int) -> None:
    """Most of the 90 % intervals of differences, from small runs alone, where small sizes tell a good deal of the target (r = .8)."""
    covered = []
    for seed in range(6):
        objective = simulator(seed=seed, outputs=outputs, noise=0.002, amplitude=0.015)
        records = spread_out(objective, {"20M": 10, "150M": 6}, seed)
        surrogate = condition(problem(objective), records)
        w = np.random.default_rng(seed).dirichlet(np.ones(3), 30)
        truth = objective.metric.objective(objective.values(w, "1B", 8000))
        gain, sd = difference(surrogate, w[1:], w[0])
        covered.append(np.abs(gain - (truth[0] - truth[1:])) < 1.645 * sd)
    assert np.mean(covered) > 0.7
