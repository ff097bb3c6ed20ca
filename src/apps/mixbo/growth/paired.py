"""The decision rule: gains on the same seeds, accepted by their lower confidence bound per cost and confirmed on fresh seeds.

A round trains the incumbent and all candidates on the same seeds. Eligible is a candidate whose gain is significantly positive,
whatever it costs. Among these come first those that also cost less, then those that cost nothing, then the largest ratio of the lower
confidence bound to the added cost. The winner and the incumbent get fresh seeds; if the gain is there again, it is accepted. Where
nothing is eligible, the options' list of escalations is gone through, then the search stops and says what it could have seen.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .arms import differences, rank, table, tolerated, unprobed
from .moves import Move, pairs
from .names import STEPS
from .noise import Noise
from .propose import growing, judged, undoing
from .state import Accept, Arm, Batch, Confirm, Measure, NewCohort, Policy, Refute, Results, Run, State, Step, Stop, Table

CONTENDERS = 3  # candidates that get more seeds, or are tried in pairs
KNOWN = 6  # degrees of freedom of the noise from which on one seed may do
LONGER = 1.5  # training steps of the next cohort


def decide(policy: Policy, state: State, results: Results) -> Step:
    """The next step."""
    if state.accepted >= policy.options.num_iterations:
        return Stop(f"growth.num_iterations = {policy.options.num_iterations}: that many steps are made")
    if not state.batches:
        return Measure(Batch((state.incumbent,), _fresh(policy, state, state.noise), "baseline"), ())
    missing = [ask for batch in state.batches for ask in state.asks(batch) if ask not in results.trainings]
    if missing:
        return Run(tuple(dict.fromkeys(missing)))
    if not state.moves:
        return _broken(state, results) or _open(policy, state)
    if state.winner:
        return _confirmed(policy, state, results, state.winner)
    found = table(policy, state, results)
    eligible = [arm for arm in found.arms if arm.eligible]
    if not eligible:
        return _escalate(policy, state, found)
    probe = unprobed(policy, state, results, eligible)
    if probe:
        return Run(probe=probe)
    chosen = max(eligible, key=lambda arm: rank(policy, state, results, arm)).move
    return Confirm(chosen, Batch((state.incumbent, chosen.point), _fresh(policy, state, found.noise), "confirm"))


def _fresh(policy: Policy, state: State, noise: Noise) -> tuple[int, ...]:
    """Seeds that were never used: at least two as long as the noise is not known."""
    asked = policy.options.random_iterations
    return tuple(range(state.next_seed, state.next_seed + (asked if noise.freedom >= KNOWN else max(2, asked))))


def _open(policy: Policy, state: State) -> Step:
    proposal = judged(policy, state, growing(policy, state))
    return Measure(Batch((state.incumbent, *proposal.points), state.batches[0].seeds, "candidates"), proposal.moves)


def _broken(state: State, results: Results) -> Stop | None:
    """Why the incumbent cannot be compared with: too few of its trainings came to an end."""
    ended = [results.trainings[ask] for ask in state.asks(state.batches[0])]
    if sum(one.ok for one in ended) >= min(2, len(ended)):
        return None
    said = ", ".join(sorted({one.status for one in ended if not one.ok}))
    first = not state.log
    return Stop(f"the {'baseline' if first else 'incumbent'} does not train: its trainings ended with {said}", failed=first)


def _confirmed(policy: Policy, state: State, results: Results, winner: Move) -> Step:
    """Accept the winner if it gains on the fresh seeds, too, and on all of them together."""
    found = table(policy, state, results)
    arm = next(arm for arm in found.arms if arm.move == winner)
    fresh = differences(state, results, winner.point, state.batches[-1].seeds)
    if fresh and arm.eligible and np.mean(fresh) > tolerated(policy, winner):
        return Accept(winner, _with_verdict(found, winner, "accepted"))
    return Refute(winner)


def _with_verdict(found: Table, move: Move, verdict: str) -> Table:
    return replace(found, arms=tuple(replace(arm, verdict=verdict) if arm.move == move else arm for arm in found.arms))


# --- nothing is eligible ---------------------------------------------------------------------------------------------------------


def _escalate(policy: Policy, state: State, found: Table) -> Step:
    """The next escalation of the list; one that has nothing to try is passed over."""
    if state.stuck >= len(policy.options.stuck):
        return _give_up(policy, state, found)
    kind, seeds = policy.options.stuck[state.stuck], state.batches[0].seeds
    if kind == "iterations":
        return _longer(policy, state, found)
    if kind == "seeds":
        points = tuple(dict.fromkeys(arm.move.point for arm in _contenders(found) if arm.gain is not None and arm.gain > 0))
        more = Batch((state.incumbent, *points), _fresh(policy, state, found.noise), "seeds")
        return Measure(more if points else None, state.moves, kind)
    moves = _further(policy, state, found, kind)
    proposal = judged(policy, state, moves)
    batch = Batch((state.incumbent, *proposal.points), seeds, "candidates") if proposal.points else None
    return Measure(batch, tuple(moves) if kind == "steps" else (*state.moves, *moves), kind)


def _further(policy: Policy, state: State, found: Table, kind: str) -> list[Move]:
    """Larger steps in place of those that were tried; or pairs of the best ones, or steps back, beside them."""
    if kind == "steps":
        return growing(policy, replace(state, scale=2 * state.scale))
    single = [arm.move for arm in _contenders(found) if arm.move.kind == "grow"]
    more = list(pairs(single, state.incumbent)) if kind == "joint" else undoing(policy, state)
    known = {move.point for move in state.moves}
    return [move for move in more if move.point not in known]


def _contenders(found: Table) -> list[Arm]:
    """The candidates that may still turn out to gain, most promising first."""
    measured = [arm for arm in found.arms if arm.gain is not None and not arm.verdict.startswith(("failed", "not confirmed"))]
    return sorted(measured, key=lambda arm: -(arm.gain or 0.0))[:CONTENDERS]


def _longer(policy: Policy, state: State, found: Table) -> NewCohort:
    """More training steps for everyone, the incumbent measured anew."""
    overrides = dict(state.overrides)
    steps = overrides.get(STEPS, policy.steps)
    assert isinstance(steps, int)
    more = steps + policy.options.max_iters_increase if policy.options.max_iters_increase else math.ceil(LONGER * steps)
    return NewCohort(tuple((overrides | {STEPS: more}).items()), f"max_iters_increased_to_{more}", found, state.stuck + 1)


def _give_up(policy: Policy, state: State, found: Table) -> Stop:
    """No feasible direction: say so, and what would have been seen."""
    seeds = max((arm.seeds for arm in found.arms), default=0)
    smallest = found.noise.detectable(seeds, policy.options.z)
    if not math.isfinite(smallest):
        verdicts = ", ".join(sorted({arm.verdict.partition(":")[0] + f" ({arm.move.label})" for arm in found.arms}))
        return Stop(f"no direction could be measured: {verdicts}", found)
    best = max((arm for arm in found.arms if arm.gain is not None), key=lambda arm: arm.gain or 0.0, default=None)
    hint = _hint(policy, found.noise, best)
    said = f"no direction gains significantly: with sigma {found.noise.sigma:.2g} and {seeds} seeds a gain of {smallest:.2g} would be seen"
    return Stop(f"{said}{hint}", found, detectable=smallest)


def _hint(policy: Policy, noise: Noise, best: Arm | None) -> str:
    needed = noise.seeds_for(best.gain, policy.options.z) if best and best.gain else None
    return f"; the best, {best.move.label}, shows {best.gain:.2g} and would need {needed} seeds" if best and needed else ""
