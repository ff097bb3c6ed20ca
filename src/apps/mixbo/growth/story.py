"""A growth as it is told: its rounds with their candidates, its path, its noise and its fits. For viewer, report and exports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fits import PowerLaw, Slope, power_law, slope
from .moves import Point, Value
from .names import short
from .noise import Noise
from .problem import Growth
from .replay import table
from .state import Ask, Overrides, Policy, Results, Round, State, Stop, Table
from .trials import GrowthRecord, results

RATIOS = {  # of shapes, as far as both settings are directions
    "mlp_size / n_embd": ("model.ffn_dim", "model.emb_dim"),
    "n_embd / n_layer": ("model.emb_dim", "model.nb_layers"),
    "n_embd / n_head": ("model.emb_dim", "model.nb_heads"),
    "n_qk_head_dim / n_v_head_dim": ("model.qk_head_dim", "model.v_head_dim"),
}


@dataclass(frozen=True)
class Measurement:
    """A shape in a cohort: mean loss over all its seeds, with its standard error (nan for a single one)."""

    point: Point
    cohort: int
    params: float
    loss: float
    error: float
    seeds: int


@dataclass(frozen=True)
class Story:
    """Everything there is to tell; ``reason`` is why the growth has stopped, or None."""

    policy: Policy
    state: State
    chapters: tuple[Round, ...]
    measurements: tuple[Measurement, ...]
    path: tuple[Measurement, ...]
    records: tuple[GrowthRecord, ...]
    reason: str | None
    detectable: float | None
    law: PowerLaw | None
    slopes: tuple[Slope, ...]

    @property
    def noise(self) -> Noise:
        """Of the newest cohort."""
        return self.chapters[-1].table.noise

    @property
    def best(self) -> Measurement | None:
        """The incumbent now."""
        return self.path[-1] if self.path else None


def tell(growth: Growth, records: Sequence[GrowthRecord]) -> Story:
    """The story so far, from the trials alone."""
    state, step = growth.replay(records)
    policy, found = growth.policy, results(records, growth.target)
    end = step if isinstance(step, Stop) else None
    now = table(policy, state, found) if state.batches or state.moves else Table(noise=state.noise)
    action = f"stopped: {end.reason}" if end else f"confirming {state.winner.label}" if state.winner else "running"
    chapters = (*state.log, Round(state.round, state.cohort, state.overrides, state.incumbent, now, action, None, state.scale))
    shown = measurements(policy, found, {chapter.cohort: chapter.overrides for chapter in chapters})
    path = incumbents(policy, chapters)
    law, slopes = fits(shown, path, state.cohort)
    why, smallest = (end.reason, end.detectable) if end else (None, None)
    return Story(policy, state, chapters, shown, path, tuple(records), why, smallest, law, slopes)


def incumbents(policy: Policy, chapters: Sequence[Round]) -> tuple[Measurement, ...]:
    """The incumbents, oldest first, with the losses of the rounds that they led: on seeds that had no part in choosing them."""
    found: dict[tuple[Point, int], Measurement] = {}
    for chapter in chapters:
        table = chapter.table
        if table.loss is not None:
            params = policy.space.params(chapter.incumbent, chapter.overrides)
            error = math.nan if table.error is None else table.error
            one = Measurement(chapter.incumbent, chapter.cohort, params, table.loss, error, table.seeds)
            found[chapter.incumbent, chapter.cohort] = one
    return tuple(found.values())


def measurements(policy: Policy, found: Results, overrides: Mapping[int, Overrides]) -> tuple[Measurement, ...]:
    """Every shape that trained, in the order of its first trial."""
    losses: dict[tuple[Point, int], list[float]] = {}
    for ask, one in found.trainings.items():
        if one.ok and one.loss is not None:
            losses.setdefault((ask.point, ask.cohort), []).append(one.loss)
    return tuple(
        Measurement(point, cohort, policy.space.params(point, overrides.get(cohort, ())), mean, error, len(values))
        for (point, cohort), values in losses.items()
        for mean, error in [_mean_and_error(values)]
    )


def fits(shown: Sequence[Measurement], path: Sequence[Measurement], cohort: int) -> tuple[PowerLaw | None, tuple[Slope, ...]]:
    """Loss against parameters over everything that one cohort has trained; ratios over the shapes that were chosen."""
    mine = [one for one in shown if one.cohort == cohort]
    law = power_law([one.params for one in mine], [one.loss for one in mine], [one.error for one in mine])
    slopes = []
    for name, (above, below) in RATIOS.items():
        values = [(one.params, ratio) for one in path if (ratio := _ratio(dict(one.point), above, below))]
        found = slope(name, *zip(*values, strict=True)) if values else None
        slopes += [found] if found else []
    return law, tuple(slopes)


def shape_words(point: Point) -> dict[str, str]:
    """Name -> value, for tables."""
    return {short(key): shown(value) for key, value in point}


def shown(value: Value) -> str:
    """A value for people."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def failures(story: Story) -> list[GrowthRecord]:
    """Trials that came to nothing."""
    return [record for record in story.records if record.status == "failed"]


def seeds_of(story: Story, point: Point, cohort: int) -> list[tuple[int, Any]]:
    """(seed, measured) of every training of a shape, as it ended."""
    found = results(story.records, story.policy.options.efficiency_target).trainings
    return [(ask.seed, one) for ask, one in found.items() if isinstance(ask, Ask) and (ask.point, ask.cohort) == (point, cohort)]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _ratio(values: Mapping[str, Value], above: str, below: str) -> float | None:
    a, b = values.get(above), values.get(below)
    return a / b if isinstance(a, (int, float)) and isinstance(b, (int, float)) and b else None
