"""The decisions of a growth, taken from results made up here: nothing runs. Each numbered test is a defect of the original tool."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.apps.mixbo.growth.moves import Direction, Move, Point, grow, replaced, undo
from src.apps.mixbo.growth.noise import Noise, residuals
from src.apps.mixbo.growth.options import GrowthConfig
from src.apps.mixbo.growth.page import heat_section
from src.apps.mixbo.growth.replay import Override, advance, replay, table
from src.apps.mixbo.growth.state import Accept, Ask, Cost, Measured, Policy, Results, Run, State, Stop
from src.apps.mixbo.growth.story import Story
from src.apps.mixbo.growth.upstream import best, efficiency
from src.nanollama.config import ConfigError
from src.nanollama.report import Figure

Loss = Callable[[Mapping[str, int]], float]
START = (("model.a", 10), ("model.b", 10))


class Flat:
    """Parameters are a weighted sum of the values; ``forbidden`` shapes cannot be built."""

    def __init__(self, weights: Mapping[str, float], forbidden: Callable[[Mapping[str, int]], bool] = lambda shape: False) -> None:
        self.weights, self.forbidden = weights, forbidden

    def params(self, point: Point, overrides=()) -> float:
        if self.forbidden(dict(point)):
            raise ConfigError("does not divide")
        return 1000.0 + sum(self.weights[key] * value for key, value in point)

    flops = params


class World:
    """Runs a growth to its end with losses from a function; keeps what was trained."""

    def __init__(self, loss: Loss, weights: Mapping[str, float] | None = None, sigma: float = 0.0, start: Point = START, **options) -> None:
        names = tuple(key for key, _ in start)
        space = Flat(weights or dict.fromkeys(names, 10.0), options.pop("forbidden", lambda shape: False))
        growth = GrowthConfig(**({"param_names": names, "increments": (1,), "cost_fraction": 0.0, "num_iterations": 3} | options))
        self.policy = Policy(growth, tuple(Direction(name, 1) for name in names), start, space, steps=100)
        self.loss, self.sigma = loss, sigma
        self.known: dict[Ask, Measured] = {}
        self.probes: dict = {}
        self.overrides: dict[int, Mapping] = {}

    def measure(self, ask: Ask, state: State) -> Measured:
        shape = dict(ask.point) | {key: value for key, value in state.overrides}
        rng = np.random.default_rng([ask.seed, ask.cohort, *map(abs, dict(ask.point).values())])
        value = self.loss(shape)
        if math.isnan(value):
            return Measured("nan")
        return Measured("ok", value + self.sigma * rng.standard_normal(), self.policy.space.params(ask.point, ()), 100.0, 10.0, 100)

    def cost(self, point: Point) -> Cost:
        return Cost(100.0)

    @property
    def results(self) -> Results:
        return Results(dict(self.known), dict(self.probes))

    def run(self, most: int = 10_000) -> tuple[State, Run | Stop]:
        state = self.policy.begin
        while True:
            state, step = advance(self.policy, state, self.results)
            if isinstance(step, Stop) or len(self.known) >= most:
                return state, step
            if step.probe:
                self.probes[step.probe] = {point: self.cost(point) for point in step.probe.points}
            for ask in step.asks:
                self.known[ask] = self.measure(ask, state)


def values(state: State) -> dict[str, int]:
    return {key.removeprefix("model."): value for key, value in state.incumbent}


def law(**gains: float) -> Loss:
    """Loss falls by ``gains`` per unit of each setting."""
    return lambda shape: 3.0 - sum(gain * (shape[f"model.{name}"] - 10) for name, gain in gains.items())


# --- 1 and 2: the sign and the size of the ratio ---------------------------------------------------------------------------------


def test_1_a_loss_that_saves_cost_is_never_accepted() -> None:
    shrinking = World(law(a=-0.05, b=0.001), {"model.a": -20.0, "model.b": 10.0}, sigma=1e-5)
    state, _ = shrinking.run()
    assert values(state) == {"a": 10, "b": 13}
    original = World(law(a=-0.05, b=0.001), {"model.a": -20.0, "model.b": 10.0}, rule="upstream", random_iterations=1)
    assert values(original.run()[0])["a"] > 10  # the defect, kept where it was asked for


def test_1_a_gain_that_saves_cost_comes_first() -> None:
    dominating = World(law(a=0.005, b=0.05), {"model.a": -20.0, "model.b": 10.0}, sigma=1e-5, num_iterations=1)
    assert values(dominating.run()[0]) == {"a": 11, "b": 10}
    original = World(law(a=0.005, b=0.05), {"model.a": -20.0, "model.b": 10.0}, rule="upstream", random_iterations=1, num_iterations=1)
    assert values(original.run()[0]) == {"a": 10, "b": 11}


def test_2_noise_on_a_free_setting_does_not_win() -> None:
    state, _ = World(law(a=0.0, b=0.05), {"model.a": 0.0, "model.b": 10.0}, sigma=0.002, num_iterations=4).run()
    assert values(state) == {"a": 10, "b": 14}
    assert efficiency(1e-9, 0.0) == math.inf and efficiency(-1e-9, 0.0) == 0.0


def test_2_a_cost_below_the_floor_counts_as_none_and_is_ranked_by_gain() -> None:
    """A thousandth of the cost is no reason to prefer a hundredth of the gain, and two free moves compare by gain."""
    world = World(law(a=0.01, b=0.05), {"model.a": 1e-7, "model.b": 1e-6}, sigma=1e-4, num_iterations=1)
    assert values(world.run()[0]) == {"a": 10, "b": 11}


def test_2_measured_costs_are_floored_by_their_scatter() -> None:
    class Noisy(World):
        def cost(self, point: Point) -> Cost:
            return Cost(100.0 + 0.001 * (dict(point)["model.a"] - 10) + 5.0 * (dict(point)["model.b"] - 10), scatter=1.0)

    free = Noisy(law(a=0.01, b=0.05), sigma=1e-4, num_iterations=1, efficiency_target="iter")
    assert values(free.run()[0]) == {"a": 11, "b": 10}  # b costs 5 ms with a scatter of 1, a nothing that could be measured


# --- 3, 4, 5: incumbent, settings, significance -----------------------------------------------------------------------------------


def test_3_incumbent_and_candidates_are_compared_on_the_same_seeds_and_the_winner_on_fresh_ones() -> None:
    world = World(law(a=0.05, b=0.02), sigma=0.001, num_iterations=2)
    seeds: dict[Point, set[int]] = {}
    world.run()
    for ask in world.known:
        seeds.setdefault(ask.point, set()).add(ask.seed)
    first = replaced(START, {"model.a": 11})
    assert seeds[START] == seeds[first] - {max(seeds[first]), max(seeds[first]) - 1} == {0, 1, 2, 3}
    state, _ = world.run()
    one, two = state.log[:2]
    assert one.chosen and one.chosen.point == first
    fresh = [world.known[Ask(first, 0, seed)].loss for seed in (2, 3, 4, 5)]  # 0 and 1 chose it
    assert two.table.loss == pytest.approx(np.mean(fresh))


def test_4_longer_training_opens_a_cohort_in_which_the_incumbent_is_measured_anew() -> None:
    longer = World(lambda shape: 3.0 - 0.5 * (shape.get("train.steps", 100) > 100), sigma=1e-4, stuck=("iterations",))
    state, step = longer.run()
    assert isinstance(step, Stop) and state.cohort == 1 and state.accepted == 0 and dict(state.overrides) == {"train.steps": 150}
    assert Ask(START, 1, 2) in longer.known
    stale = World(
        lambda shape: 3.0 - 0.5 * (shape.get("train.steps", 100) > 100),
        rule="upstream", random_iterations=1, max_iters_increase=50, num_iterations=2,
    )  # fmt: skip
    assert stale.run()[0].accepted == 1  # a step that does nothing looks good against the old baseline


def test_4_overrides_on_resume_open_a_cohort_and_keep_what_was_decided() -> None:
    world = World(law(a=0.05, b=0.02), sigma=0.001, num_iterations=2)
    before, _ = world.run()
    event = Override((("train.steps", 400),), world.results)
    after, step = replay(replace(world.policy, options=replace(world.policy.options, num_iterations=3)), world.results, [event])
    assert after.incumbent == before.incumbent and after.log[:2] == before.log and after.cohort == 1
    assert isinstance(step, Run) and all(ask.cohort == 1 and ask.point == before.incumbent for ask in step.asks)
    assert dict(after.overrides) == {"train.steps": 400} and after.log[2].action == "override: train.steps=400"


def test_5_a_step_within_the_noise_is_not_taken() -> None:

    def accepted(**options) -> int:
        starts = [(*START[:1], ("model.b", 10 + i)) for i in range(60)]
        return sum(World(law(a=0.0, b=0.0), sigma=0.01, start=start, **options).run()[0].accepted for start in starts)

    assert accepted(stuck=()) <= 3
    assert accepted(rule="upstream", random_iterations=1) > 30


def test_5_steps_grow_with_the_model() -> None:
    world = World(law(a=0.05, b=0.02), {"model.a": 10.0, "model.b": 10.0}, cost_fraction=0.1, num_iterations=4, sigma=1e-5)
    state, _ = world.run()
    sizes = [world.policy.space.params(round.incumbent) for round in state.log] + [world.policy.space.params(state.incumbent)]
    assert all(0.1 <= (b - a) / a < 0.12 for a, b in pairwise(sizes))


# --- 7, 8: trainings that fail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["paired", "upstream"])
def test_7_a_diverging_candidate_is_recorded_and_passed_over(rule: str) -> None:
    world = World(lambda shape: math.nan if shape["model.b"] == 11 else 3.0 - 0.01 * shape["model.a"], rule=rule, sigma=1e-4)
    state, _ = world.run()
    assert values(state) == {"a": 13, "b": 10}
    assert [arm.verdict for arm in state.log[0].table.arms if arm.move.direction == "model.b"] == ["failed: nan"]


@pytest.mark.parametrize("rule", ["paired", "upstream"])
def test_8_a_loss_of_a_billion_is_a_number_like_any_other(rule: str) -> None:
    state, _ = World(lambda shape: 1e9 if shape["model.b"] == 11 else 3.0 - 0.01 * shape["model.a"], rule=rule, sigma=1e-4).run()
    assert values(state) == {"a": 13, "b": 10}


@pytest.mark.parametrize("rule", ["paired", "upstream"])
def test_a_baseline_that_does_not_train_is_the_end(rule: str) -> None:
    _, step = World(lambda shape: math.nan, rule=rule).run()
    assert isinstance(step, Stop) and step.failed and "baseline does not train" in step.reason and "nan" in step.reason


def test_a_shape_that_cannot_be_is_not_trained() -> None:
    world = World(law(a=0.05, b=0.02), sigma=1e-4, forbidden=lambda shape: shape["model.b"] == 11)
    state, _ = world.run()
    assert values(state) == {"a": 13, "b": 10} and all(dict(ask.point)["model.b"] == 10 for ask in world.known)
    assert state.log[0].table.arms[1].verdict == "invalid: does not divide"


# --- 14, 15: moves ----------------------------------------------------------------------------------------------------------------


def test_14_every_layer_may_have_its_own_increment() -> None:
    direction = Direction("model.ffn_dims", (8, 16, 32))
    point: Point = (("model.nb_layers", 3), ("model.ffn_dims", (64, 64, 64)))
    moves = grow(direction, point, 2)
    assert [dict(move.point)["model.ffn_dims"] for move in moves] == [(80, 64, 64), (64, 96, 64), (64, 64, 128)]
    assert [move.label for move in moves][:1] == ["mlp_size_layerlist[0] 64→80"]


def test_14_the_step_of_the_number_of_layers_counts_and_new_layers_copy_the_middle_one() -> None:
    point: Point = (("model.nb_layers", 3), ("model.ffn_dims", (1, 2, 3)))
    (middle,) = grow(Direction("model.nb_layers", 2), point, 1)
    assert middle.point == (("model.nb_layers", 5), ("model.ffn_dims", (1, 2, 2, 2, 3)))
    each = grow(Direction("model.nb_layers", 1), point, 1, "dup_each")
    assert [dict(move.point)["model.ffn_dims"] for move in each] == [(1, 1, 2, 3), (1, 2, 2, 3), (1, 2, 3, 3)]


def test_15_joint_moves_find_what_no_single_one_does() -> None:
    both: Loss = lambda shape: 3.0 - 0.05 * min(shape["model.a"], shape["model.b"])  # noqa: E731
    assert World(both, sigma=1e-4, stuck=()).run()[0].accepted == 0
    named = World(both, sigma=1e-4, stuck=(), joint=(("model.a", "model.b"),))
    assert values(named.run()[0]) == {"a": 13, "b": 13}
    assert values(World(both, sigma=1e-4, stuck=("joint",)).run()[0]) == {"a": 13, "b": 13}


def test_15_a_step_that_has_become_useless_is_undone() -> None:
    """Best at a = 11, b = 13: from a = 12 the way is back."""
    world = World(lambda shape: 3.0 + 0.1 * abs(shape["model.a"] - 11) + 0.1 * abs(shape["model.b"] - 13), sigma=1e-4, stuck=("undo",))
    grown = replace(world.policy.begin, incumbent=(("model.a", 12), ("model.b", 13)))
    state = grown
    while True:
        state, step = advance(world.policy, state, world.results)
        if isinstance(step, Stop) or state.accepted:
            break
        for ask in step.asks:
            world.known[ask] = world.measure(ask, state)
    assert state.log[0].chosen and state.log[0].chosen.kind == "undo" and values(state) == {"a": 11, "b": 13}


def test_steps_back_end_at_the_baseline() -> None:
    assert undo(Direction("model.a", 4), (("model.a", 12),), (("model.a", 10),), 1)[0].point == (("model.a", 10),)
    assert undo(Direction("model.a", 4), (("model.a", 10),), (("model.a", 10),), 1) == []


# --- noise ------------------------------------------------------------------------------------------------------------------------


def test_the_noise_is_that_of_a_two_way_layout() -> None:
    """Against the textbook: the residual mean square, here from a least-squares fit of both effects."""
    rng = np.random.default_rng(0)
    losses = rng.standard_normal((5, 4)) + 3 * rng.standard_normal((5, 1)) + 2 * rng.standard_normal((1, 4))
    design = np.array([[*np.eye(5)[i], *np.eye(4)[j]] for i in range(5) for j in range(4)])
    left = losses.ravel() - design @ np.linalg.lstsq(design, losses.ravel(), rcond=None)[0]
    noise = residuals(losses)
    assert noise.squares == pytest.approx(left @ left) and noise.freedom == 20 - np.linalg.matrix_rank(design)


def test_what_can_be_seen_is_seen_four_times_in_five() -> None:
    noise = Noise(0.01**2 * 40, 40)
    gain, error = noise.detectable(4, 2.0), noise.error(4)
    rng = np.random.default_rng(1)
    seen = rng.normal(gain, error, 4000) - noise.quantile(2.0) * error > 0
    assert seen.mean() == pytest.approx(0.8, abs=0.02)
    assert noise.seeds_for(gain, 2.0) == 4


def test_the_end_says_what_would_have_been_seen() -> None:
    state, step = World(law(a=0.0, b=0.0), sigma=0.01, stuck=("seeds", "steps")).run()
    assert isinstance(step, Stop) and step.detectable and 0.01 < step.detectable < 0.2
    assert "no direction gains" in step.reason and state.scale == 2


def test_more_seeds_go_to_the_best_three() -> None:
    start: Point = tuple((f"model.{name}", 10) for name in "abcdef")
    world = World(law(a=0.003, b=0.003, c=0.003, d=-0.5, e=-0.5, f=-0.5), sigma=0.002, stuck=("seeds",), start=start, num_iterations=1)
    world.run()
    counts = {key: sum(dict(ask.point)[key] == 11 for ask in world.known) for key, _ in start}
    assert counts["model.d"] == counts["model.e"] == counts["model.f"] == 2
    assert sum(counts[f"model.{name}"] >= 4 for name in "abc") >= 2


# --- the original rule ------------------------------------------------------------------------------------------------------------


def test_the_original_rule_is_followed_to_the_letter() -> None:
    """By hand: scores 1 / exp(loss), one run of the baseline, means of scores over seeds, the winner's mean as the next baseline."""
    losses = {(10, 10): 3.0, (11, 10): 2.9, (10, 11): 2.95, (10, 12): 2.94, (11, 11): 2.89}
    weights = {"model.a": 10.0, "model.b": 4.0}
    world = World(lambda shape: losses[shape["model.a"], shape["model.b"]], weights, rule="upstream", num_iterations=2)
    state, _ = world.run()
    first, second = state.log
    gains = [math.exp(-2.9) - math.exp(-3.0), math.exp(-2.95) - math.exp(-3.0)]
    assert [arm.ratio for arm in first.table.arms] == pytest.approx([gains[0] / 10, gains[1] / 4])
    assert first.chosen and dict(first.chosen.point) == {"model.a": 10, "model.b": 11}
    assert first.metrics and first.metrics.loss == pytest.approx(2.95)
    assert second.chosen and dict(second.chosen.point) == {"model.a": 11, "model.b": 11}
    assert {ask.seed for ask in world.known} == {0, 1} and sum(ask.point == START for ask in world.known) == 1


@pytest.mark.parametrize(("rule", "words"), [("paired", "Lower confidence bound"), ("upstream", "Gained score")])
def test_the_page_says_which_efficiency_it_shows(rule: str, words: str) -> None:
    world = World(law(a=0.05, b=0.02), rule=rule, num_iterations=1)
    state, _ = world.run()
    section = heat_section(Story(world.policy, state, state.log, (), (), (), None, None, None, ()))
    assert section and isinstance(section.blocks[0], Figure) and section.blocks[0].caption.startswith(words)


def test_the_mean_loss_of_the_original_is_that_of_the_scores() -> None:
    pair = {0: 2.9, 1: 3.1}
    world = World(law(a=0.1, b=0.0), rule="upstream", num_iterations=1)
    measure = world.measure

    def by_seed(ask: Ask, state: State) -> Measured:
        return replace(measure(ask, state), loss=pair[ask.seed] if ask.point != START else 3.2)

    world.measure = by_seed  # type: ignore[method-assign]
    state, _ = world.run()
    assert state.metrics and state.metrics.loss == pytest.approx(2.9950, abs=5e-5)


def test_among_infinite_efficiencies_the_original_takes_the_greatest_gain() -> None:
    world = World(law(a=0.01, b=0.02), {"model.a": 0.0, "model.b": 0.0}, rule="upstream", num_iterations=1)
    assert values(world.run()[0]) == {"a": 10, "b": 11}
    assert best([]) is None


def test_the_original_adds_layers_one_by_one_whatever_the_increment() -> None:
    start: Point = (("model.nb_layers", 3), ("model.a", 1))
    world = World(lambda shape: 3.0 - 0.1 * shape["model.nb_layers"], rule="upstream", start=start, iterations=2, num_iterations=1)
    world.policy = replace(world.policy, directions=(Direction("model.nb_layers", 5), Direction("model.a", 3)))
    state, _ = world.run()
    assert [move.point for move in (arm.move for arm in state.log[0].table.arms)] == [
        (("model.nb_layers", 4), ("model.a", 1)), (("model.nb_layers", 3), ("model.a", 4)), (("model.nb_layers", 3), ("model.a", 7)),
    ]  # fmt: skip


# --- replay -----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["params", "iter"]))
def test_decisions_are_the_same_whenever_they_are_taken(seed: int, target: str) -> None:
    """Taken step by step, or again from everything that was ever measured: the log is the same."""
    rng = np.random.default_rng(seed)
    gains = dict(zip("ab", rng.normal(0.003, 0.004, 2), strict=True))

    class Costly(World):
        def cost(self, point: Point) -> Cost:
            return Cost(100.0 + float(rng.normal()) + dict(point)["model.a"], 0.3)  # another probe, another number

    world = Costly(law(**gains), sigma=0.002, num_iterations=5, efficiency_target=target)
    state, step = world.run()
    again, end = replay(world.policy, world.results)
    assert again == state and end == step


def test_a_refuted_winner_is_out_for_the_round() -> None:
    """a was lucky on the seeds that chose it."""
    world = World(law(a=0.0, b=0.01), sigma=1e-4, num_iterations=1)
    measure = world.measure
    lucky = replaced(START, {"model.a": 11})

    def deceiving(ask: Ask, state: State) -> Measured:
        found = measure(ask, state)
        return replace(found, loss=2.5) if ask.point == lucky and ask.seed < 2 else found

    world.measure = deceiving  # type: ignore[method-assign]
    state, _ = world.run()
    assert values(state) == {"a": 10, "b": 11}
    assert [arm.verdict for arm in state.log[0].table.arms] == ["not confirmed", "accepted"]


def test_an_open_round_can_be_looked_at() -> None:
    world = World(law(a=0.05, b=0.02), sigma=1e-3)
    state, step = world.run(most=3)
    found = table(world.policy, state, world.results)
    assert isinstance(step, Run) and found.loss is not None
    assert Accept(Move("grow", "a", "a", START), found).metrics is None
