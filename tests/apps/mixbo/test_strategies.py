"""Every strategy: pure, by the rules, and good enough to find the optimum of a problem whose optimum is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from studies import FIDELITIES, SPACE, finish, problem, simulator, spread_out, study

from src.apps.mixbo import surrogate
from src.apps.mixbo.baseline import best_anchor, difference
from src.apps.mixbo.cost import allowance, charged, flops, owes_target, unlocked
from src.apps.mixbo.design import initial_design, start
from src.apps.mixbo.objectives.simulator import Simulator
from src.apps.mixbo.options import SimulatorConfig, SpaceConfig
from src.apps.mixbo.problem import Fidelities, Metric, Problem
from src.apps.mixbo.protocol import Done
from src.apps.mixbo.recommend import recommend
from src.apps.mixbo.records import Record, Status, Suggestion, runs, same, spent
from src.apps.mixbo.space import MixtureSpace
from src.apps.mixbo.strategies import REGISTRY, lookup
from src.apps.mixbo.strategies.choose import choose
from src.apps.mixbo.strategies.grid import build
from src.apps.mixbo.strategies.hyperband import brackets
from src.apps.mixbo.suggest import suggest
from src.nanollama.config import ConfigError

MODEL_BASED = [name for name, (_, small) in REGISTRY.items() if small and name != "qmfkg"]
QUICK = [name for name in REGISTRY if name != "qmfkg"]


@pytest.mark.parametrize("name", QUICK)
def test_the_same_records_seed_and_number_give_the_same_suggestion(name: str) -> None:
    objective = simulator()
    posed = problem(objective, strategy={"name": name})
    records = study(posed, objective, 13)
    asked = suggest(posed, records, 0, 13)
    surrogate._condition.cache_clear()
    surrogate._refit.cache_clear()
    assert suggest(posed, records[::-1], 0, 13) == asked
    if name in ("random", "thompson"):
        assert suggest(posed, records, 1, 13) != asked


@pytest.mark.parametrize("name", MODEL_BASED)
def test_start_small_is_an_invariant(name: str) -> None:
    objective = simulator()
    posed = problem(objective, strategy={"name": name}, cost={"unlock": 2})
    records: list[Record] = []
    for number in range(22):
        asked = suggest(posed, records, 0, number)
        size = FIDELITIES.index(asked.model_size)
        assert unlocked(posed, records)[size]
        assert asked.flops <= allowance(posed, records) * (1 + 1e-9)
        records.append(finish(objective, asked, records))
    assert records[0].model_size == "20M"


def test_a_size_is_unlocked_by_results_below_it_and_the_first_trial_is_cheap() -> None:
    objective = simulator()
    posed = problem(objective, cost={"unlock": 2})
    assert unlocked(posed, []).tolist() == [True, False, False]
    records = spread_out(objective, {"20M": 2})
    assert unlocked(posed, records).tolist() == [True, True, False]
    assert unlocked(posed, [replace(record, status="failed") for record in records]).tolist() == [True, False, False]
    assert allowance(posed, []) == pytest.approx(float(flops(posed, 0, 8000)))
    assert allowance(posed, records) == pytest.approx(spent(records) + 2 * posed.cost.overhead * posed.full_run)


@pytest.mark.parametrize(("long", "short", "steps"), [(0.5, 0.3, 2000), (0.99, 0.3, 8000)])
@pytest.mark.parametrize("log", [False, True])
def test_a_trial_that_delays_a_better_one_is_as_short_as_it_pays(long: float, short: float, steps: int, log: bool) -> None:
    objective = simulator()
    posed = problem(objective, cost={"unlock": 2})
    grid = build(posed, spread_out(objective, {"20M": 4, "150M": 1}), np.random.default_rng(0))
    value = np.full(grid.shape, 0.1)  # gain by cost; as a rate, the longer of two 150M runs is the better one
    value[:, grid.sizes == 2], value[:, grid.sizes == 0] = 1.0, 0.9
    value[:, (grid.sizes == 1) & (grid.steps == 8000)], value[:, (grid.sizes == 1) & (grid.steps == 2000)] = long, short
    asked = choose(grid, np.log(value) if log else value, log=log)
    assert (asked.model_size, asked.steps) == ("150M", steps)
    without = np.where(grid.sizes == 2, 0.0, value)  # nothing locked is wanted
    assert choose(grid, np.log(without + 1e-30) if log else without, log=log).model_size == ("20M" if long < 0.9 else "150M")


def test_a_trial_is_charged_what_it_adds() -> None:
    objective = simulator()
    posed = problem(objective, cost={"overhead": 0.02})
    assert float(flops(posed, 2, 8000, 2000)) == pytest.approx(0.75 * posed.full_run)
    assert float(charged(posed, posed.full_run)) == pytest.approx(1.02)
    records = study(posed, objective, 20)
    for run in runs(records):
        own = sum(record.flops for record in records if record.number in run.numbers)
        assert own == pytest.approx(float(flops(posed, FIDELITIES.index(run.model_size), run.reached)))
    steps = [step for run in runs(records) for step, _ in run.curve]
    assert len(steps) == sum(len({step for step, _ in run.curve}) for run in runs(records))  # nothing trained twice


def test_continuation_is_offered_only_where_it_is_allowed() -> None:
    objective = simulator()
    w = (0.2, 0.3, 0.5)
    half = Record(0, w, "20M", 4000, "ok", tuple(objective.observe(w, "20M", [2000, 4000], 0)), 1e17)
    others = [replace(record, number=record.number + 1) for record in spread_out(objective, {"20M": 4, "150M": 3})]
    for allowed in (True, False):
        posed = problem(objective, cost={"continuation": allowed}, strategy={"candidates": 40})
        grid = build(posed, [half, *others], np.random.default_rng(0))
        c = next(c for c in range(len(grid.mixtures)) if same(grid.mixtures[c], w))
        last = (grid.sizes == 0) & (grid.steps == 8000)
        assert grid.parent_cf[c, last] == (0 if allowed else -1)
        assert grid.added_cf[c, last] == pytest.approx(float(flops(posed, 0, 8000, 4000 if allowed else 0)))
        assert not grid.allowed_cf[c, (grid.sizes == 0) & (grid.steps < 8000)].any()


def test_running_and_failed_trials_are_not_asked_for_again() -> None:
    objective = simulator()
    posed = problem(objective)
    records = study(posed, objective, 12)
    asked = suggest(posed, records, 0, 12)
    for status in ("running", "failed"):
        pending = Record(12, asked.weights, asked.model_size, asked.steps, status, (), asked.flops, asked.continues)  # type: ignore[arg-type]
        after = suggest(posed, [*records, pending], 0, 13)
        assert not (same(after.weights, asked.weights) and after.model_size == asked.model_size)


def test_the_design_compares_the_same_mixtures_at_two_sizes() -> None:
    posed = problem(simulator())
    plan = initial_design(posed, 0)
    small = [w for w, size in plan if size == 0]
    large = [w for w, size in plan if size == 1]
    assert all(any(same(w, v) for v in small) for w in large)
    assert all(any(same(corner, w) for w in large) for corner in SPACE.corners())
    assert {size for _, size in plan} == {0, 1}


def test_a_size_held_fixed_is_the_only_one_after_the_design() -> None:
    objective = simulator()
    posed = problem(objective, strategy={"model_size": "150M"}, cost={"overhead": 0.0})  # else only full runs are worth their launch
    records = study(posed, objective, 22)
    chosen = records[11:]  # after the design
    assert {record.model_size for record in chosen} == {"150M"} and len({record.steps for record in chosen}) > 1
    with pytest.raises(ConfigError, match="7B"):
        problem(objective, strategy={"model_size": "7B"})


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_the_compute_goes_to_full_runs_once_they_can_be_paid(share: float) -> None:
    objective = simulator()
    posed = problem(objective, strategy={"confirm": share})
    records = study(posed, objective, 32)
    there = sum(record.flops for record in records if record.model_size == "1B" and record.steps == 8000)
    assert spent(records) > 2 * posed.full_run
    assert there >= share * spent(records) - posed.full_run
    assert not owes_target(posed, records[:5])


def test_a_due_full_run_is_of_the_baseline_and_then_of_the_greatest_expected_improvement() -> None:
    objective = simulator(optimum=(0.3, 0.1, 0.6), noise=0.0005, r_size=0.95, r_step=0.95)
    posed = problem(objective, cost={"growth": 1e6}, strategy={"confirm": 1.0, "caution": 0.0})
    records = study(posed, objective, 11)  # the design
    records += [replace(record, number=11 + record.number) for record in spread_out(objective, {"20M": 6, "150M": 6})]
    first = suggest(posed, records, 0, len(records))
    assert (first.model_size, first.steps) == ("1B", 8000)
    assert same(first.weights, best_anchor(posed, records))  # type: ignore[arg-type]
    records.append(finish(objective, first, records))

    second = suggest(posed, records, 0, len(records))
    assert (second.model_size, second.steps, second.continues) == ("1B", 8000, None)
    at = np.vstack([second.weights, SPACE.sample(2000, np.random.default_rng(0))])
    gain, sd = difference(surrogate.condition(posed, records), at, np.array(first.weights))
    expected = gain * norm.cdf(gain / sd) + sd * norm.pdf(gain / sd)
    assert expected[0] > 0.9 * expected[1:].max() > 0
    records.append(finish(objective, second, records))
    assert not same(suggest(posed, records, 0, len(records)).weights, second.weights)


def test_a_full_run_may_be_due_while_nothing_is_known() -> None:
    """One size, and every trial of the design still running or failed."""
    objective = Simulator(SimulatorConfig(amplitude=0.02), SPACE, Fidelities(("1B",), (1e9,), (2000, 8000)))
    posed = problem(objective, strategy={"confirm": 1.0})
    records: list[Record] = []
    while (first := start(posed, records, 0)) is not None:
        status: Status = "running" if len(records) % 2 else "failed"
        records.append(Record(len(records), first.weights, "1B", first.steps, status, (), first.flops))
    assert owes_target(posed, records)
    assert suggest(posed, records, 0, len(records)).model_size == "1B"


def test_a_due_full_run_continues_what_there_is() -> None:
    objective = simulator()
    posed = problem(objective, cost={"growth": 1e6}, strategy={"confirm": 1.0})
    records = study(posed, objective, 11)
    records += [replace(record, number=11 + record.number) for record in spread_out(objective, {"150M": 4})]
    answer = recommend(posed, records)
    assert answer is not None
    half = Suggestion(answer.baseline, "1B", 4000, flops=objective.flops_per_step[2] * 4000)
    records.append(finish(objective, half, records))
    asked = suggest(posed, records, 0, len(records))
    assert same(asked.weights, half.weights) and asked.continues == records[-1].number and asked.flops == half.flops


@pytest.mark.parametrize(("name", "share"), [("kg", 0.2), ("ei_cost", 0.2), ("thompson", 0.5)])  # posterior draws are meant to scatter
def test_full_runs_go_to_the_best_anchor_then_where_small_models_point(name: str, share: float) -> None:
    objective = simulator(optimum=(0.3, 0.1, 0.6), noise=0.0005, r_size=0.95, r_step=0.95)
    posed = problem(objective, strategy={"name": name}, cost={"growth": 1e6})
    records = study(posed, objective, 11)  # the design
    records += [replace(record, number=11 + record.number) for record in spread_out(objective, {"20M": 12, "150M": 8})]
    assert owes_target(posed, records) and unlocked(posed, records).all()
    first = suggest(posed, records, 0, len(records))
    assert same(first.weights, best_anchor(posed, records))  # type: ignore[arg-type]
    failed = Record(len(records), first.weights, "1B", 8000, "failed")
    second = [suggest(posed, [*records, failed], 0, len(records) + 1 + draw) for draw in range(15)]
    assert {(one.model_size, one.steps) for one in (first, *second)} == {("1B", 8000)}
    assert np.median([objective.regret(one.weights) for one in second]) < share * objective.regret(first.weights)


@pytest.mark.parametrize("optimum", [(0.0, 0.0, 1.0), (0.3, 0.7, 0.0), (0.2, 0.5, 0.3)])
def test_defect_8_corners_faces_and_the_interior_are_reached(optimum: tuple[float, ...]) -> None:
    objective = simulator(optimum=optimum, noise=0.0005)
    posed = problem(objective, strategy={"name": "ei", "pool": 120, "candidates": 12})
    answer = recommend(posed, study(posed, objective, 14))
    assert answer is not None
    assert objective.regret(answer.weights) < 0.1 * objective.regret(SPACE.corners().mean(axis=0)) + 0.002


def test_hyperband_halves_continues_and_counts_each_run_once() -> None:
    kinds = brackets((100, 300, 900), 3)
    assert [kind.steps for kind in kinds] == [(100, 300, 900), (300, 900), (900,)]
    assert kinds[0].counts == (9, 3, 1)
    objective = Simulator(SimulatorConfig(amplitude=0.02), SPACE, Fidelities(("20M", "1B"), (2e7, 1e9), (900, 2700, 8100)))
    posed = problem(objective, strategy={"name": "hyperband"})
    records = study(posed, objective, 13)
    first = records[:9]
    assert {record.model_size for record in records} == {"1B"} and {record.steps for record in first} == {900}
    best = sorted(first, key=lambda record: record.curve[-1][1])[:3]
    assert [record.parent for record in records[9:12]] == [record.number for record in best]
    assert records[12].steps == 8100 and records[12].parent in {record.number for record in records[9:12]}
    running = replace(records[8], status="running", curve=())
    assert suggest(posed, [*records[:8], running], 0, 9).continues is None  # waits for the rung, starts the next bracket


def test_hyperband_without_continuation_draws_every_bracket_anew() -> None:
    objective = simulator(noise=0.0)
    options = {"strategy": {"name": "hyperband", "eta": 2}}
    plain = study(problem(objective, **options), objective, 16)
    anew = study(problem(objective, **options, cost={"continuation": False}), objective, 16)
    assert [(r.weights, r.steps) for r in anew] == [(r.weights, r.steps) for r in plain]
    assert any(r.parent is not None for r in plain) and all(r.parent is None for r in anew)


@pytest.mark.parametrize("name", ["kg", "ei", "ei_cost", "ei_per_flop", "thompson"])
def test_a_space_of_one_mixture_is_used_up(name: str) -> None:
    objective = simulator()
    space = MixtureSpace.from_config(SpaceConfig(("a", "b", "c"), floors={"a": 0.2, "b": 0.3, "c": 0.5}))
    posed = replace(problem(objective, strategy={"name": name}), space=space)
    records: list[Record] = []
    while not isinstance(asked := suggest(posed, records, 0, len(records)), Done):
        records.append(finish(objective, asked, records))
    assert len({(r.model_size, r.steps) for r in records}) == len(records) and records[-1].steps == 8000


def test_random_is_uniform_on_the_simplex_and_at_the_target() -> None:
    objective = simulator()
    posed = problem(objective, strategy={"name": "random"})
    drawn = [suggest(posed, [], seed, 0) for seed in range(400)]
    assert {(s.model_size, s.steps) for s in drawn} == {("1B", 8000)}
    np.testing.assert_allclose(np.mean([s.weights for s in drawn], axis=0), 1 / 3, atol=0.04)


def test_plain_ei_per_flop_never_learns_from_small_models() -> None:
    objective = simulator(r_size=0.95)
    records = spread_out(objective, {"20M": 4, "150M": 2, "1B": 1})
    posed = problem(objective, strategy={"caution": 0.0}, cost={"growth": 1e6})  # like the improvement, the gain of means alone
    asked = lookup("ei_per_flop")(posed, records, np.random.default_rng(0))
    assert asked.model_size == "1B"  # a small model's loss improves on nothing
    assert lookup("kg")(posed, records, np.random.default_rng(0)).model_size != "1B"


def test_a_table_is_searched_among_its_rows_only() -> None:
    rng = np.random.default_rng(0)
    choices = [tuple(w.tolist()) for w in np.vstack([np.eye(3), rng.dirichlet(np.ones(3), 12)])]
    objective = simulator()
    space = MixtureSpace.from_config(SpaceConfig(("a", "b", "c")), choices)
    table = frozenset((w, size, step) for w in space.choices or () for size in ("20M", "1B") for step in (4000, 8000))
    two = Fidelities(("20M", "1B"), (2e7, 1e9), (4000, 8000))
    posed = Problem(space, two, Metric(("loss",), (1.0,)), (objective.flops_per_step[0], objective.flops_per_step[2]), table=table)
    records: list[Record] = []
    for number in range(20):
        asked = suggest(posed, records, 0, number)
        assert posed.available(asked.weights, asked.model_size, asked.steps)
        records.append(finish(objective, asked, records))
    answer = recommend(posed, [replace(r, curve=tuple(point for point in r.curve if point[0] >= 4000)) for r in records])
    assert answer is not None and tuple(answer.weights) in set(space.choices or ())


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"kgg.*thompson"):
        lookup("kgg")


def test_botorchs_knowledge_gradient_obeys_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, least in (("FANTASIES", 2), ("RESTARTS", 1), ("SAMPLES", 4), ("ITERATIONS", 2)):
        monkeypatch.setattr(f"src.apps.mixbo.strategies.reference.{name}", least)
    objective = simulator()
    posed = problem(objective, strategy={"name": "qmfkg"}, cost={"unlock": 9})
    records = spread_out(objective, {"20M": 4})
    asked = lookup("qmfkg")(posed, records, np.random.default_rng(0))
    assert sum(asked.weights) == pytest.approx(1.0)
    assert unlocked(posed, records)[FIDELITIES.index(asked.model_size)] and asked.flops <= allowance(posed, records) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["hyperband", "kg"])
def test_a_continued_run_with_a_decay_pays_for_it_again(name: str) -> None:
    """WSD: a run of 4000 steps is continued from step 3000, before its rate began to fall."""
    objective = simulator()
    posed = replace(problem(objective, strategy={"name": name}), decay=0.25)
    records = study(posed, objective, 24)
    grown = [record for record in records if record.parent is not None]
    assert grown
    for record in grown:
        start = {2000: 1500, 4000: 3000}[records[record.parent or 0].steps]
        per_step = posed.flops_per_step[posed.fidelities.index(record.model_size)]
        assert record.flops == pytest.approx(per_step * (record.steps - start))


def test_random_buys_every_row_of_a_table_once_and_ends() -> None:
    objective = simulator()
    mixtures = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0))
    space = MixtureSpace.from_config(SpaceConfig(("a", "b", "c")), mixtures)
    rows = frozenset((w, "1B", 8000) for w in mixtures[1:]) | {(mixtures[0], "1B", 4000)}
    posed = replace(problem(objective, strategy={"name": "random"}), space=space, table=rows)
    records: list[Record] = []
    while not isinstance(asked := suggest(posed, records, 0, len(records)), Done):
        records.append(finish(objective, asked, records))
    assert sorted(record.weights for record in records) == sorted(mixtures[1:])


def test_hyperband_starts_no_row_of_a_table_twice_promotes_the_best_that_can_go_on_and_ends() -> None:
    objective = simulator(noise=0.0)
    mixtures = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5))
    space = MixtureSpace.from_config(SpaceConfig(("a", "b", "c")), mixtures)
    best = min(mixtures, key=lambda w: objective.values(np.array([w]), "1B", 2000)[0, 0])
    rows = frozenset((w, "1B", steps) for w in mixtures for steps in FIDELITIES.steps if steps == 2000 or w != best)
    posed = replace(problem(objective, strategy={"name": "hyperband", "eta": 2}), space=space, table=rows)
    records: list[Record] = []
    while not isinstance(asked := suggest(posed, records, 0, len(records)), Done):
        records.append(finish(objective, asked, records))
    bought = [(record.weights, record.model_size, record.steps) for record in records]
    assert len(set(bought)) == len(bought) and set(bought) <= rows
    assert {w for w, _, steps in bought if steps == 2000} == set(mixtures)
    assert any(record.steps == 8000 and record.parent is not None for record in records)
