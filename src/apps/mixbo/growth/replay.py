"""From what has ended to what comes next: decisions are not stored, they are taken again from the trials, and come out the same. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import paired, upstream
from .state import NewCohort, Overrides, Policy, Results, Run, State, Step, Stop, Table, apply

RULES = {"paired": paired, "upstream": upstream}


@dataclass(frozen=True)
class Override:
    """The user changed training settings between two parts of a study; ``results`` are those that had ended by then."""

    overrides: Overrides
    results: Results


def replay(policy: Policy, results: Results, events: Sequence[Override] = ()) -> tuple[State, Run | Stop]:
    """The state that the results lead to, and what it waits for (or why it is the end)."""
    state = policy.begin
    for event in events:
        state, _ = advance(policy, state, event.results)
        found = table(policy, state, event.results)
        changed = ", ".join(f"{key}={value}" for key, value in event.overrides)
        state = apply(state, NewCohort(tuple((dict(state.overrides) | dict(event.overrides)).items()), f"override: {changed}", found))
    return advance(policy, state, results)


def advance(policy: Policy, state: State, results: Results) -> tuple[State, Run | Stop]:
    """Take decisions until one has to wait."""
    decide = RULES[policy.options.rule].decide
    while True:
        step: Step = decide(policy, state, results)
        if isinstance(step, (Run, Stop)):
            return state, step
        state = apply(state, step)


def table(policy: Policy, state: State, results: Results) -> Table:
    """The open round so far."""
    return RULES[policy.options.rule].table(policy, state, results)
