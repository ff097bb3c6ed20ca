"""Where a growth stands, and the steps by which it goes on. Pure data: the same trials always lead to the same state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from .moves import Direction, Move, Point, Value
from .noise import NO_NOISE, Noise
from .options import GrowthConfig

Overrides = tuple[tuple[str, Value], ...]  # training settings of a cohort that differ from the baseline's


@dataclass(frozen=True)
class Ask:
    """One training: a shape in a cohort, with one seed (counted from the baseline's)."""

    point: Point
    cohort: int
    seed: int


@dataclass(frozen=True)
class Probe:
    """One measurement of what shapes cost, side by side; the first is the incumbent."""

    points: tuple[Point, ...]
    cohort: int


@dataclass(frozen=True)
class Measured:
    """How a training ended: ``status`` as in ``result.json``; what is not known is None."""

    status: str
    loss: float | None = None  # final held-out loss, nats per token
    params: float | None = None
    vram: float | None = None  # peak memory, MB
    iter: float | None = None  # a step, ms
    best_iter: int | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok" and self.loss is not None


@dataclass(frozen=True)
class Cost:
    """A measured cost and its scatter (median absolute deviation of the measurements)."""

    value: float
    scatter: float = 0.0


@dataclass(frozen=True)
class Results:
    """What has ended so far."""

    trainings: Mapping[Ask, Measured] = field(default_factory=dict)
    probes: Mapping[Probe, Mapping[Point, Cost]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Shapes that train on the same seeds, and what for."""

    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    purpose: Literal["baseline", "candidates", "seeds", "confirm"]


@dataclass(frozen=True)
class Arm:
    """A candidate in the table of a round. Gains are losses saved, in nats; costs those of ``efficiency_target``."""

    move: Move
    verdict: str
    seeds: int = 0
    loss: float | None = None  # mean over its seeds
    gain: float | None = None
    error: float | None = None
    bound: float | None = None  # lower confidence bound of the gain
    cost: float | None = None  # added
    ratio: float | None = None  # bound / cost; upstream's rule: gained score / cost
    eligible: bool = False


@dataclass(frozen=True)
class Metrics:
    """The incumbent in upstream's books: its own single run at first, then averages of accepted candidates."""

    loss: float
    score: float
    cost: float
    params: float = 0.0
    vram: float = 0.0
    iter: float = 0.0
    best_iter: float = 0


@dataclass(frozen=True)
class Table:
    """What a round has shown so far."""

    arms: tuple[Arm, ...] = ()
    noise: Noise = NO_NOISE  # of the cohort
    seeds: int = 0  # of the incumbent
    loss: float | None = None  # of the incumbent, mean over its seeds
    error: float | None = None  # its standard error over seeds


@dataclass(frozen=True)
class Round:
    """A round, finished (in the log of a state) or, for those who look, open."""

    number: int
    cohort: int
    overrides: Overrides
    incumbent: Point
    table: Table
    action: str
    chosen: Move | None
    scale: int
    metrics: Metrics | None = None  # upstream's rule: after the step


@dataclass(frozen=True)
class State:
    """Everything that a decision may depend on, beside results and policy."""

    incumbent: Point
    overrides: Overrides = ()
    cohort: int = 0
    accepted: int = 0
    next_seed: int = 0
    scale: int = 1  # multiplies all increments
    stuck: int = 0  # escalations since the last acceptance
    moves: tuple[Move, ...] = ()
    batches: tuple[Batch, ...] = ()
    winner: Move | None = None  # on its fresh seeds
    refuted: tuple[Point, ...] = ()
    noise: Noise = NO_NOISE  # of the cohort's finished rounds
    metrics: Metrics | None = None
    log: tuple[Round, ...] = ()

    @property
    def round(self) -> int:
        """Number of the round that is open."""
        return len(self.log)

    def asks(self, batch: Batch) -> list[Ask]:
        """The trainings of a batch, the incumbent's first, seed by seed."""
        return [Ask(point, self.cohort, seed) for seed in batch.seeds for point in batch.points]


class Space(Protocol):
    """What shapes cost without training them. Both raise ConfigError for a shape that cannot be."""

    def params(self, point: Point, overrides: Overrides) -> float:
        """Number of parameters."""
        ...

    def flops(self, point: Point, overrides: Overrides) -> float:
        """FLOPs of one training step."""
        ...


@dataclass(frozen=True)
class Policy:
    """What is searched and how. ``start``: the baseline; ``steps``: training steps of its cohort."""

    options: GrowthConfig
    directions: tuple[Direction, ...]
    start: Point
    space: Space
    steps: int
    overrides: Overrides = ()

    @property
    def begin(self) -> State:
        """Before anything has run."""
        return State(self.start, self.overrides)


# --- steps -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Wait for these trainings, or for this probe, which wants the machine to itself."""

    asks: tuple[Ask, ...] = ()
    probe: Probe | None = None


@dataclass(frozen=True)
class Measure:
    """Plan a batch; ``moves`` are the round's from now on. ``escalation``: because nothing was found without it.

    ``metrics``: the incumbent in the books from now on (upstream's rule).
    """

    batch: Batch | None
    moves: tuple[Move, ...]
    escalation: str | None = None
    metrics: Metrics | None = None


@dataclass(frozen=True)
class Confirm:
    """Give the winner and the incumbent fresh seeds."""

    move: Move
    batch: Batch


@dataclass(frozen=True)
class Refute:
    """The winner did not hold on fresh seeds: out for this round."""

    move: Move


@dataclass(frozen=True)
class Accept:
    """The winner is the incumbent from now on."""

    move: Move
    table: Table
    metrics: Metrics | None = None


@dataclass(frozen=True)
class NewCohort:
    """Other training settings; what was measured before does not compare. ``stuck``: escalations used up by then."""

    overrides: Overrides
    reason: str
    table: Table = Table()
    stuck: int = 0


@dataclass(frozen=True)
class Stop:
    """The end. ``failed``: the baseline does not train."""

    reason: str
    table: Table = Table()
    failed: bool = False
    detectable: float | None = None  # the smallest gain that could have been seen, nats


Step = Run | Measure | Confirm | Refute | Accept | NewCohort | Stop


def apply(state: State, step: Step) -> State:
    """The state after a step that changes it."""
    match step:
        case Measure(batch, moves, escalation, metrics):
            return replace(_planned(state, batch, moves, escalation), metrics=metrics or state.metrics)
        case Confirm(move, batch):
            return replace(state, winner=move, batches=(*state.batches, batch), next_seed=max(batch.seeds) + 1)
        case Refute(move):
            return replace(state, winner=None, refuted=(*state.refuted, move.point))
        case Accept(move, table, metrics):
            return _accepted(state, move, table, metrics)
        case NewCohort(overrides, reason, table, stuck):
            log = (*state.log, _round(state, table, reason, None))
            kept = replace(state, overrides=overrides, cohort=state.cohort + 1, log=log, stuck=stuck)
            return replace(kept, moves=(), batches=(), winner=None, refuted=(), noise=NO_NOISE)
        case _:
            raise AssertionError(f"{step} changes nothing")


def _planned(state: State, batch: Batch | None, moves: tuple[Move, ...], escalation: str | None) -> State:
    batches = (*state.batches, batch) if batch else state.batches
    return replace(
        state,
        moves=moves,
        batches=batches,
        next_seed=max([state.next_seed, *(seed + 1 for seed in (batch.seeds if batch else ()))]),
        scale=state.scale * (2 if escalation == "steps" else 1),
        stuck=state.stuck + (escalation is not None),
    )


def _accepted(state: State, move: Move, table: Table, metrics: Metrics | None) -> State:
    """The fresh seeds of the confirmation are the next round's: the luck that made the winner win must not make it hard to beat."""
    log = (*state.log, _round(state, table, f"accepted {move.label}", move, metrics))
    seeds = [batch.seeds for batch in state.batches if batch.purpose == "confirm"]
    first = (Batch((move.point,), seeds[-1], "baseline"),) if seeds else ()
    kept = replace(state, incumbent=move.point, accepted=state.accepted + 1, stuck=0, log=log, metrics=metrics)
    return replace(kept, moves=(), batches=first, winner=None, refuted=(), noise=table.noise)


def _round(state: State, table: Table, action: str, chosen: Move | None, metrics: Metrics | None = None) -> Round:
    after = metrics or state.metrics
    return Round(state.round, state.cohort, state.overrides, state.incumbent, table, action, chosen, state.scale, after)
