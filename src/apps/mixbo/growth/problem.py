"""A growth as the controller asks it: which training is next, decided anew from everything that has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.nanollama.config import RunFailed

from ..protocol import Done
from ..study import Study
from .moves import Point
from .replay import Override, replay
from .shapes import Shapes
from .state import Ask, Overrides, Policy, Probe, Run, State, Stop
from .trials import GrowthRecord, Wanted, results

EVENTS = "overrides"  # study attribute: changes of the training's settings, each with the trials that had ended by then


class Growth:
    """The growth of one study. ``events``: as they are stored there."""

    def __init__(self, shapes: Shapes, events: Sequence[Mapping[str, Any]]) -> None:
        first, *self._later = events
        self.shapes, self.target = shapes, shapes.growth.efficiency_target
        given = shapes.overrides(first["override"])
        steps = shapes.trained_steps(given)
        self.policy = Policy(shapes.growth, shapes.directions, shapes.start, shapes, steps, given)

    @property
    def first_flops(self) -> float:
        """Of the baseline's training, which comes first."""
        return self.shapes.flops(self.shapes.start, self.policy.overrides) * self.policy.steps

    def replay(self, records: Sequence[GrowthRecord]) -> tuple[State, Run | Stop]:
        """Where the growth stands, and what it waits for."""
        return replay(self.policy, results(records, self.target), [self._event(event, records) for event in self._later])

    def ask(self, records: Sequence[GrowthRecord]) -> Wanted | Done | None:
        """The next trial; None while that depends on running ones. Raises RunFailed if the baseline does not train."""
        state, step = self.replay(records)
        running = [record.wanted for record in records if record.status == "running"]
        if isinstance(step, Stop):
            if step.failed:
                raise RunFailed(f"{step.reason}{_said(records)}; mend growth.baseline and take another run_dir")
            return Done(step.reason)
        if step.probe:
            return None if running else self._probe(state, step.probe, records)
        known = {Ask(wanted.points[0], wanted.cohort, wanted.seed) for wanted in running if wanted.kind == "train"}
        ask = next((ask for ask in step.asks if ask not in known), None)
        return self._training(state, ask) if ask else None

    def _event(self, event: Mapping[str, Any], records: Sequence[GrowthRecord]) -> Override:
        seen = set(event["seen"])
        known = [record for record in records if record.number in seen]
        return Override(self.shapes.overrides(event["override"]), results(known, self.target))

    def _training(self, state: State, ask: Ask) -> Wanted:
        flops = self.shapes.flops(ask.point, state.overrides) * self.shapes.trained_steps(state.overrides)
        return Wanted("train", (ask.point,), state.cohort, state.overrides, state.round, label(state, ask.point), ask.seed, flops)

    def _probe(self, state: State, probe: Probe, records: Sequence[GrowthRecord]) -> Wanted:
        """A probe is asked for once; if it failed, and the trainings measured nothing either, there is no cost to go by."""
        asked = [record for record in records if (record.wanted.points, record.wanted.cohort) == (probe.points, probe.cohort)]
        failed = [record for record in asked if record.wanted.kind == "probe" and record.status == "failed"]
        if failed:
            raise RunFailed(f"the cost ({self.target}) cannot be measured: {failed[-1].message}")
        return Wanted("probe", probe.points, state.cohort, state.overrides, state.round, f"cost of {len(probe.points)} shapes")


def label(state: State, point: Point) -> str:
    """What a point is in the open round."""
    move = next((move for move in state.moves if move.point == point), None)
    return move.label if move else "baseline" if not state.accepted else "incumbent"


def open_growth(shapes: Shapes, study: Study[Wanted, GrowthRecord], override: Mapping[str, Any]) -> Growth:
    """The growth of a study; a new ``growth.override`` opens a new cohort there. Checked before anything is stored."""
    given: Overrides = shapes.overrides(override)
    events = study.noted(EVENTS) or []
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given}
    seen = [record.number for record in study.records() if record.status != "running"]
    if not events or (plain and plain != events[-1]["override"]):
        events = [*events, {"override": plain, "seen": seen}]
        study.note(EVENTS, events)
    return Growth(shapes, events)


def stored_growth(shapes: Shapes, study: Study[Wanted, GrowthRecord]) -> Growth:
    """The growth of a study as it is, for those who only look."""
    return Growth(shapes, study.noted(EVENTS) or [{"override": {}, "seen": []}])


def _said(records: Sequence[GrowthRecord]) -> str:
    messages = [record.message for record in records if record.status == "failed" and record.message]
    return f" ({messages[0].strip().splitlines()[-1]})" if messages else ""
