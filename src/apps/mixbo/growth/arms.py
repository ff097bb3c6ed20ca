"""What an open round has shown: gains of its candidates with their errors, and what they cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .moves import Move, Point
from .noise import Noise, residuals
from .propose import judged
from .state import Arm, Ask, Cost, Measured, Policy, Probe, Results, State, Table

FLOOR = 1e-3  # share of the incumbent's cost below which a difference counts as none
STATIC = ("params", "flops")  # costs that are known without measuring


def table(policy: Policy, state: State, results: Results) -> Table:
    """Every candidate of the open round with what is known of it now."""
    blocks = [_block(state, results, seeds) for seeds in dict.fromkeys(batch.seeds for batch in state.batches)]
    noise = sum(blocks, state.noise)
    own = list(losses(state, results, state.incumbent).values())
    loss = float(np.mean(own)) if own else None
    error = float(np.std(own, ddof=1) / math.sqrt(len(own))) if len(own) > 1 else None
    impossible = judged(policy, state, state.moves).impossible
    arms = [_arm(policy, state, results, move, noise, impossible.get(move.point)) for move in state.moves]
    return Table(tuple(arms), noise, len(own), loss, error)


def losses(state: State, results: Results, point: Point) -> dict[int, float]:
    """Seed -> loss, of the trainings that this round asked for and that came to an end."""
    found = {}
    for ask in _asked(state, point):
        one = results.trainings.get(ask)
        if one and one.ok and one.loss is not None:
            found[ask.seed] = one.loss
    return found


def differences(state: State, results: Results, point: Point, seeds: Iterable[int]) -> list[float]:
    """Gains of a point over the incumbent, seed by seed."""
    here, there = losses(state, results, state.incumbent), losses(state, results, point)
    return [here[seed] - there[seed] for seed in seeds if seed in here and seed in there]


def tolerated(policy: Policy, move: Move) -> float:
    """The least gain, exclusive, that a move may have."""
    return -policy.options.undo_tolerance if move.kind == "undo" else 0.0


def rank(policy: Policy, state: State, results: Results, arm: Arm) -> tuple[int, float]:
    """Cheaper and better first, then free ones, both by gain; then by gain per cost."""
    assert arm.cost is not None and arm.bound is not None and arm.ratio is not None
    least = floor(policy, state, results, arm.move.point)
    if arm.cost < -least:
        return 2, arm.bound
    return (1, arm.bound) if arm.cost <= least else (0, arm.ratio)


def unprobed(policy: Policy, state: State, results: Results, arms: Sequence[Arm]) -> Probe | None:
    """The measurement that is needed to compare the costs of ``arms``; None where all are known."""
    if policy.options.efficiency_target in STATIC:
        return None
    points = dict.fromkeys(arm.move.point for arm in arms if not _probed(state, results, arm.move.point))
    return Probe((state.incumbent, *points), state.cohort) if points else None


def added_cost(policy: Policy, state: State, results: Results, point: Point) -> float | None:
    """Cost of a point above the incumbent's; None: not measured."""
    if policy.options.efficiency_target in STATIC:
        return static_cost(policy, state, point) - static_cost(policy, state, state.incumbent)
    costs = _probed(state, results, point)
    return costs[point].value - costs[state.incumbent].value if costs else None


def floor(policy: Policy, state: State, results: Results, point: Point) -> float:
    """Differences below it count as none: a small share of the incumbent's cost, or three times the scatter of the measurements."""
    if policy.options.efficiency_target in STATIC:
        return FLOOR * static_cost(policy, state, state.incumbent)
    costs = _probed(state, results, point)
    assert costs
    here, there = costs[state.incumbent], costs[point]
    return max(FLOOR * here.value, 3 * max(here.scatter, there.scatter))


def static_cost(policy: Policy, state: State, point: Point) -> float:
    """Parameters, or FLOPs of a step."""
    space = policy.space
    return (space.flops if policy.options.efficiency_target == "flops" else space.params)(point, state.overrides)


def _probed(state: State, results: Results, point: Point) -> Mapping[Point, Cost] | None:
    """The first probe that had both the incumbent and the point: the one that a decision about it went by."""
    for probe, costs in results.probes.items():
        if probe.cohort == state.cohort and probe.points[0] == state.incumbent and point in costs:
            return costs
    return None


def _asked(state: State, point: Point) -> list[Ask]:
    return [Ask(point, state.cohort, seed) for batch in state.batches if point in batch.points for seed in batch.seeds]


def _block(state: State, results: Results, seeds: tuple[int, ...]) -> Noise:
    """Noise in the complete part of the shapes that were trained on these seeds."""
    points = dict.fromkeys(point for batch in state.batches if batch.seeds == seeds for point in batch.points)
    rows = [losses(state, results, point) for point in points]
    return residuals([[row[seed] for seed in seeds] for row in rows if all(seed in row for seed in seeds)])


def _arm(policy: Policy, state: State, results: Results, move: Move, noise: Noise, impossible: str | None) -> Arm:
    if impossible:
        return Arm(move, f"invalid: {impossible}")
    asked = list(dict.fromkeys(_asked(state, move.point)))
    ended = [results.trainings[ask] for ask in asked if ask in results.trainings]
    found = losses(state, results, move.point)
    cost = added_cost(policy, state, results, move.point)
    arm = Arm(move, "running", len(found), float(np.mean(list(found.values()))) if found else None, cost=cost)
    if any(not one.ok for one in ended):
        return replace(arm, verdict=f"failed: {_statuses(ended)}")
    gains = differences(state, results, move.point, found)
    if not gains:
        return arm
    gain, error = float(np.mean(gains)), noise.error(len(gains))
    if not math.isfinite(error):
        return replace(arm, gain=gain)
    bound = gain - noise.quantile(policy.options.z) * error
    ratio = None if cost is None else bound / max(cost, floor(policy, state, results, move.point))
    arm = replace(arm, gain=gain, error=error, bound=bound, ratio=ratio)
    return arm if len(ended) < len(asked) else _judge(policy, state, arm)


def _judge(policy: Policy, state: State, arm: Arm) -> Arm:
    assert arm.bound is not None and arm.gain is not None
    significant = arm.bound > tolerated(policy, arm.move)
    if arm.move.point in state.refuted:
        return replace(arm, verdict="not confirmed")
    return replace(arm, eligible=significant, verdict="gain" if significant else "unclear" if arm.gain > 0 else "no gain")


def _statuses(ended: Sequence[Measured]) -> str:
    return ", ".join(sorted({one.status if one.status != "ok" else "no loss" for one in ended if not one.ok}))
