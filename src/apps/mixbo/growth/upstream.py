"""The original tool's decision rule, exactly: for comparison, and for those who want their old searches to go on.

The baseline is measured once with one seed, candidates with several; the efficiency is gained score per added cost, so that a loss that
saves cost counts as a gain and a gain that saves cost does not; no noise is estimated; the winner's own averages are the next baseline,
also after the training settings have changed. Only its crashes are left out: a candidate one of whose trainings fails is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .arms import STATIC, static_cost
from .moves import Move, Point
from .names import STEPS
from .propose import judged, upstream
from .state import Accept, Arm, Ask, Batch, Measure, Measured, Metrics, NewCohort, Policy, Results, Run, State, Step, Stop, Table


def decide(policy: Policy, state: State, results: Results) -> Step:
    """The next step."""
    if state.round >= policy.options.num_iterations:
        return Stop(f"growth.num_iterations = {policy.options.num_iterations} rounds are made")
    if not state.batches and state.metrics is None:
        return Measure(Batch((state.incumbent,), (0,), "baseline"), ())
    if not state.moves:
        missing = [ask for batch in state.batches for ask in state.asks(batch) if ask not in results.trainings]
        return Run(tuple(missing)) if missing else _open(policy, state, results)
    missing = [ask for ask in state.asks(state.batches[-1]) if ask not in results.trainings]
    if missing:
        return Run(tuple(missing))
    found = table(policy, state, results)
    chosen = best([arm for arm in found.arms if arm.ratio is not None and arm.ratio > 0])
    if chosen:
        runs = _runs(policy, state, results, chosen.move.point)
        return Accept(chosen.move, found, average(policy, state, chosen.move.point, runs))
    return _stuck(policy, state, found)


def best(arms: Sequence[Arm]) -> Arm | None:
    """The greatest efficiency; among infinite ones the greatest gain."""
    chosen: Arm | None = None
    for arm in arms:
        if chosen is None or _order(arm) > _order(chosen):
            chosen = arm
    return chosen


def _order(arm: Arm) -> tuple[float, float]:
    assert arm.ratio is not None and arm.gain is not None
    return arm.ratio, arm.gain if math.isinf(arm.ratio) else 0.0


def efficiency(gain: float, cost: float) -> float:
    """Gained score per added cost; infinite for a gain that costs nothing."""
    if cost == 0:
        return math.inf if gain > 0 else 0.0
    return gain / cost


def average(policy: Policy, state: State, point: Point, runs: Sequence[Measured]) -> Metrics:
    """Means over seeds: of the score 1 / exp(loss), whose logarithm is the loss that goes by the name of the mean."""
    score = sum(_score(run) for run in runs) / len(runs)
    loss = -math.log(score) if score > 0 else math.inf
    params, vram, time = (_mean([getattr(run, key) for run in runs]) for key in ("params", "vram", "iter"))
    target = policy.options.efficiency_target
    cost = static_cost(policy, state, point) if target in STATIC else {"vram": vram, "iter": time}[target]
    return Metrics(loss, score, cost, params, vram, time, max((run.best_iter or 0) for run in runs))


def table(policy: Policy, state: State, results: Results) -> Table:
    """Every candidate of the open round with its efficiency (in ``ratio``) and gained score (in ``gain``)."""
    impossible = judged(policy, state, state.moves).impossible
    arms = tuple(_arm(policy, state, results, move, impossible.get(move.point)) for move in state.moves)
    return Table(arms, seeds=1, loss=state.metrics.loss if state.metrics else None)


def _first(policy: Policy, state: State, results: Results) -> Metrics | None:
    first = results.trainings.get(Ask(state.incumbent, state.cohort, 0))
    return average(policy, state, state.incumbent, [first]) if first and first.ok else None


def _open(policy: Policy, state: State, results: Results) -> Step:
    metrics = state.metrics or _first(policy, state, results)
    if not metrics:
        ended = results.trainings[Ask(state.incumbent, state.cohort, 0)]
        return Stop(f"the baseline does not train: its training ended with {ended.status}", failed=True)
    proposal = judged(policy, state, upstream(policy, state))
    seeds = tuple(range(policy.options.random_iterations))
    return Measure(Batch(proposal.points, seeds, "candidates"), proposal.moves, metrics=metrics)


def _stuck(policy: Policy, state: State, found: Table) -> Step:
    """Longer trainings if they were asked for; the baseline's metrics stay those of the shorter ones."""
    if policy.options.max_iters_increase is None:
        return Stop("no_positive_efficiency", found)
    overrides = dict(state.overrides)
    steps = overrides.get(STEPS, policy.steps)
    assert isinstance(steps, int)
    more = steps + policy.options.max_iters_increase
    return NewCohort(tuple((overrides | {STEPS: more}).items()), f"max_iters_increased_to_{more}", found, state.stuck)


def _runs(policy: Policy, state: State, results: Results, point: Point) -> list[Measured]:
    asks = [Ask(point, state.cohort, seed) for seed in range(policy.options.random_iterations)]
    return [results.trainings[ask] for ask in asks if ask in results.trainings]


def _arm(policy: Policy, state: State, results: Results, move: Move, impossible: str | None) -> Arm:
    if impossible:
        return Arm(move, f"invalid: {impossible}")
    runs = _runs(policy, state, results, move.point)
    failed = sorted({run.status for run in runs if not run.ok})
    before = state.metrics
    if failed or len(runs) < policy.options.random_iterations or before is None:
        return Arm(move, f"failed: {', '.join(failed)}" if failed else "running", len(runs))
    after = average(policy, state, move.point, runs)
    gain, cost = after.score - before.score, after.cost - before.cost
    ratio = efficiency(gain, cost)
    return Arm(move, "gain" if ratio > 0 else "no gain", len(runs), after.loss, gain, cost=cost, ratio=ratio, eligible=ratio > 0)


def _score(run: Measured) -> float:
    assert run.loss is not None
    return math.exp(-run.loss) if run.loss < 700 else 0.0


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
