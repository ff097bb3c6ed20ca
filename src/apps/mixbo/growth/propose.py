"""Which steps a round tries. Pure: shapes are judged by arithmetic, nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from src.nanollama.config import ConfigError

from .moves import Direction, Move, Point, grow, together, undo, value_of
from .names import LAYERS
from .state import Policy, State

MOST = 64  # increments in one step, unless escalation asks for more


@dataclass(frozen=True)
class Proposal:
    """Moves of a round; ``impossible``: why a point cannot be built."""

    moves: tuple[Move, ...]
    impossible: dict[Point, str]

    @property
    def points(self) -> tuple[Point, ...]:
        """Those that can be trained, each once."""
        return tuple(dict.fromkeys(move.point for move in self.moves if move.point not in self.impossible))


def judged(policy: Policy, state: State, moves: Sequence[Move]) -> Proposal:
    """Say which moves lead to shapes that cannot be."""
    impossible = {}
    for move in moves:
        try:
            policy.space.params(move.point, state.overrides)
        except ConfigError as error:
            impossible[move.point] = str(error)
    return Proposal(tuple(moves), impossible)


def growing(policy: Policy, state: State) -> list[Move]:
    """Single steps in every direction, at ``iterations`` multiples, and the joint steps that the options name."""
    options, moves = policy.options, []
    first: dict[str, Move] = {}
    for direction in policy.directions:
        multiple = state.scale * _increments(policy, state, direction)
        for times in range(1, options.iterations + 1):
            found = grow(direction, state.incumbent, multiple * times, options.nlayer_dup_mode)
            first.setdefault(direction.key, found[0])
            moves += found
    keys = [direction.key for direction in policy.directions]
    joint = [[first[keys[options.param_names.index(name)]] for name in names] for names in options.joint]
    return moves + [together(group, state.incumbent) for group in joint]


def upstream(policy: Policy, state: State) -> list[Move]:
    """What upstream tries: one increment and its multiples, a layer always alone, its increment and the depth ignored."""
    options, moves = policy.options, []
    for direction in policy.directions:
        if direction.key == LAYERS:
            moves += grow(replace(direction, step=1), state.incumbent, 1, options.nlayer_dup_mode)
            continue
        by_multiple = [grow(direction, state.incumbent, times) for times in range(1, options.iterations + 1)]
        moves += [move for element in zip(*by_multiple, strict=True) for move in element]
    return moves


def undoing(policy: Policy, state: State) -> list[Move]:
    """A step back in every direction that has left the baseline's value."""
    found = []
    for direction in policy.directions:
        found += undo(direction, state.incumbent, policy.start, max(1, state.scale * _increments(policy, state, direction)))
    return [move for move in found if move.point != state.incumbent]


def _increments(policy: Policy, state: State, direction: Direction) -> int:
    """So many that the step costs ``cost_fraction`` of the incumbent's parameters: equal increments drown in the noise of a grown model."""
    share = policy.options.cost_fraction
    if share == 0:
        return 1
    try:
        now = policy.space.params(state.incumbent, state.overrides)
        added = [policy.space.params(move.point, state.overrides) - now for move in grow(direction, state.incumbent, 1)]
    except ConfigError:  # one increment does not divide; more may
        return 1
    if isinstance(value_of(state.incumbent, direction.key), tuple) or max(added) <= 0:
        return 1
    return min(MOST, max(1, math.ceil(share * now / max(added) - 1e-9)))
