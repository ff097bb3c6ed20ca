"""The page on trainings: summary, learning curves over exact floors, optimisation, settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import frames
from .difficulty import difficulty_section
from .families import families_section
from .format import UNKNOWN, duration, fixed, plus_minus, si
from .frames import Row, number
from .page import Block, Cell, Chip, Column, Figure, Page, Panels, Prose, Section, Status, Table
from .runs import Run
from .stored import stored
from .text import text_section
from .traces import TOKENS, Record, Trace, colours, curve, faint, is_training, level, points, positive, thin

COLUMNS = (
    Column("Run", numeric=False),
    Column("Status", numeric=False),
    Column("Parameters"),
    Column("Tokens"),
    Column("Loss", "nats/token"),
    Column("Exact floor", "nats/token"),
    Column("Excess", "nats/token, ± s.e."),
    Column("Speed", "tokens/s"),
    Column("Wall time"),
)
OPTIMISATION: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("grad_norm", "Gradient norm, before clipping", "gradient norm", {"type": "log", "tickformat": "~g", "dtick": "D2"}),
    ("lr", "Learning rate", "learning rate", {"rangemode": "tozero", "tickformat": "~g"}),
    ("tokens_per_s", "Speed, tokens per second", "tokens/s", {"rangemode": "tozero", "tickformat": "~s"}),
)
Maker = Callable[[Sequence[Run], Mapping[str, str]], Section | None]


def training_page(runs: Sequence[Run], title: str = "Training runs", lead: str = "") -> Page:
    """The page of ``python -m src.nanollama.report``."""
    return Page(title, lead, facts(runs)).add(*training_sections(runs), *stored_sections(runs))


def stored_sections(runs: Sequence[Run]) -> list[Section]:
    """What commands other than trainings left to be shown."""
    found: list[Section] = []
    for run in runs:
        try:
            found += stored(run.path)
        except ValueError as error:
            found.append(Section(run.name, [Prose(str(error))]))
    return found


def training_sections(runs: Sequence[Run]) -> list[Section]:
    """Every section that has something to show, in reading order."""
    hue = colours(runs)
    makers: list[Maker] = [families_section, summary_section, difficulty_section, floor_section, text_section]
    makers += [other_losses_section, optimisation_section, settings_section]
    return [section for make in makers if (section := make(runs, hue)) is not None]


def facts(runs: Sequence[Run]) -> list[str]:
    """How much, by which code, when."""
    rows = frames.summary(runs)
    tokens, wall = (sum(row[key] or 0 for row in rows) for key in ("tokens", "wall_s"))
    found = [f"{len(runs)} run{'s' * (len(runs) != 1)}"]
    if tokens:
        found.append(f"{si(tokens)} training tokens")
    if wall:
        found.append(f"{duration(wall)} of work")
    commits = {str(run.env["commit"])[:7] + " with changes" * bool(run.env.get("dirty")) for run in runs if run.env.get("commit")}
    if 0 < len(commits) <= 3:
        found.append(f"commit {', '.join(sorted(commits))}")
    return [*found, time.strftime("%d %B %Y, %H:%M").lstrip("0")]


# --- tables -----------------------------------------------------------------------------------------------------------------------


def summary_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """One row a training, also a failed or damaged one."""
    rows = [(run, row) for run, row in zip(runs, frames.summary(runs), strict=True) if is_training(run)]
    if not rows:
        return None
    caption = (
        "Final losses on held-out data. The exact floor is the Bayes-optimal loss on the very same sequences: "
        "no model can do better but by luck."
    )
    blocks: list[Block] = [Table(COLUMNS, [_cells(run, row, hue) for run, row in rows], caption)]
    troubled: list[list[Cell]] = [[_chip(run, hue), row["problems"]] for run, row in rows if row["problems"]]
    if troubled:
        blocks.append(Table([Column("Run", numeric=False), Column("What is wrong", numeric=False)], troubled))
    return Section("Summary", blocks)


def _chip(run: Run, hue: Mapping[str, str]) -> Chip:
    return Chip(run.name, hue[run.name], str(run.path))


def _cells(run: Run, row: Row, hue: Mapping[str, str]) -> list[Cell]:
    losses = [fixed(row["loss"]), fixed(row["bayes_loss"]), plus_minus(row["excess_loss"], row["excess_loss_se"])]
    sizes = [si(row["parameters"]), si(row["tokens"])]
    return [_chip(run, hue), Status(run.status), *sizes, *losses, si(row["tokens_per_s"]), duration(row["wall_s"])]


def settings_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """The config keys in which the trainings differ: what is being compared."""
    trained = [run for run in runs if is_training(run) and run.config]
    keys, rows = frames.differing_settings(trained)
    if not keys:
        return None
    columns = [Column("Run", numeric=False), *(Column(key) for key in keys)]
    cells: list[list[Cell]] = [[_chip(run, hue), *(_setting(row[key]) for key in keys)] for run, row in zip(trained, rows, strict=True)]
    return Section("Settings that differ", [Table(columns, cells)], "Config keys that have several values among these trainings.", True)


def _setting(value: Any) -> str:
    text = UNKNOWN if value is None else str(value)
    return text if len(text) <= 32 else text[:31] + "…"


# --- figures ----------------------------------------------------------------------------------------------------------------------


def floor_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """Loss over its exact floor, and the excess on logarithmic axes."""
    losses: list[Trace] = []
    excess: list[Trace] = []
    for run in runs:
        train, valid = (points(run, split, "loss", "bayes_loss", "excess_loss") for split in ("train", "valid"))
        if train or valid:
            losses += _loss_traces(run.name, train, valid, hue[run.name])
            excess += _excess_traces(run.name, train, valid, hue[run.name])
    if not losses:
        return None
    over_floor = Figure(
        losses,
        {"xaxis": TOKENS, "yaxis": {}},
        "A curve can approach the dashed line of its colour, its exact floor, but never stay below it. "
        "Dots are held-out losses, the thin line behind them is the training loss.",
        "Loss, nats per token",
        height=420,
    )
    logarithmic = {"type": "log", "dtick": "D2"}
    left_to_learn = Figure(
        excess,
        {"xaxis": {**TOKENS, **logarithmic, "rangemode": "normal"}, "yaxis": {**logarithmic, "tickformat": "~g"}},
        "What is left to learn. With the floor taken away, data of different difficulty share one axis: lower is closer to optimal, "
        "and a straight line is a power law. Bars are one standard error of the held-out excess.",
        "Excess over the exact floor, nats per token",
        height=420,
    )
    return Section("Learning curves over their exact floors", [over_floor, left_to_learn])


def _loss_traces(name: str, train: Sequence[Record], valid: Sequence[Record], colour: str) -> list[Trace]:
    traces = [faint(curve(name, train, "loss", colour, "training loss"), colour)] if train and valid else []
    main = valid or train
    end = max(record["tokens"] for record in [*train, *valid])
    floor = level(name, name, end, main[-1]["bayes_loss"], colour, "dash", "exact floor") | {"showlegend": False}
    return [*traces, curve(name, main, "loss", colour, "loss"), floor]


def _excess_traces(name: str, train: Sequence[Record], valid: Sequence[Record], colour: str) -> list[Trace]:
    train, valid = positive(train, "excess_loss"), positive(valid, "excess_loss")
    traces = [faint(curve(name, train, "excess_loss", colour, "training excess"), colour)] if train and valid else []
    main = valid or train
    bars = [number(record.get("excess_loss_se")) or 0 for record in thin(main)]
    error = {"error_y": {"array": bars, "color": f"{colour}/0.6", "thickness": 1.25, "width": 0}} if any(bars) else {}
    return [*traces, curve(name, main, "excess_loss", colour, "excess") | error]


def other_losses_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """Losses of the runs whose floor is not known."""
    traces: list[Trace] = []
    for run in runs:
        if points(run, "train", "bayes_loss") or points(run, "valid", "bayes_loss"):
            continue
        train, valid = points(run, "train", "loss"), points(run, "valid", "loss")
        seen = curve(run.name, train, "loss", hue[run.name], "training loss")
        traces += [faint(seen, hue[run.name]) if valid else seen] if train else []
        traces += [curve(run.name, valid, "loss", hue[run.name], "held-out loss")] if valid else []
    if not traces:
        return None
    caption = "No floor is known for this data, so a loss tells only which of two runs on the same data is better."
    figure = Figure(traces, {"xaxis": TOKENS, "yaxis": {}}, caption, "Loss, nats per token")
    return Section("Loss where no floor is known", [figure], collapsed=True)


def optimisation_section(runs: Sequence[Run], hue: Mapping[str, str]) -> Section | None:
    """Gradient norm, learning rate and speed."""
    panels = []
    for key, title, label, axis in OPTIMISATION:
        found = [(run.name, positive(points(run, "train", key), key) if key == "grad_norm" else points(run, "train", key)) for run in runs]
        traces = [curve(name, records, key, hue[name], label, ".4~g") | {"mode": "lines"} for name, records in found if records]
        if traces:
            panels.append(Figure(traces, {"xaxis": {**TOKENS, "nticks": 5}, "yaxis": axis}, title=title, height=270))
    if not panels:
        return None
    caption = "A spike in the gradient norm or a sag in the speed explains most odd curves above."
    return Section("Optimisation and speed", [Panels(panels, caption)], collapsed=True)
