"""The tables of a growth for a terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .fits import PowerLaw
from .names import short
from .state import Arm, Round
from .story import Story, failures, shape_words

UNITS = {"params": "parameters", "vram": "MB", "iter": "ms", "flops": "FLOPs"}
CHOSEN, CHANGED, BAD, QUIET = "bold yellow", "dark_orange", "red", "dim"


def screen(story: Story, rounds: int | None = None) -> RenderableType:
    """Everything, the newest ``rounds`` rounds (None: all) in full."""
    shown = story.chapters if rounds is None else story.chapters[-rounds:]
    parts: list[RenderableType] = [path_table(story), *(round_table(story, chapter) for chapter in shown if chapter.table.arms)]
    parts += [Text(line) for line in (*noise_lines(story), *fit_lines(story))]
    failed = failures(story)
    return Group(*parts, *([failure_table(story)] if failed else []))


def path_table(story: Story) -> Table:
    """The incumbents, with what changed in colour."""
    table = Table(title=f"Path: {headline(story)}", title_justify="left")
    names = [short(key) for key, _ in story.state.incumbent]
    for name in ("step", *names, "params", "loss", "± se", "score"):
        table.add_column(name, justify="right")
    before: dict[str, str] = {}
    for number, one in enumerate(story.path):
        words = shape_words(one.point)
        cells = [Text(words[n], style=CHANGED if before and before[n] != words[n] else "") for n in names]
        error = "–" if math.isnan(one.error) else f"{one.error:.4f}"
        results = f"{one.params:,.0f}", f"{one.loss:.4f}", error, f"{math.exp(-one.loss):.5f}"
        table.add_row(str(number) if number else "start", *cells, *results)
        before = words
    return table


def headline(story: Story) -> str:
    """One line: how far, and whether it goes on."""
    running = sum(record.status == "running" for record in story.records)
    counts = f"{story.state.accepted} {'step' if story.state.accepted == 1 else 'steps'} accepted, {len(story.records)} trials"
    return counts + (f", {running} running" if running else "") + (f"; stopped: {story.reason}" if story.reason else "")


def round_table(story: Story, chapter: Round) -> Table:
    """The candidates of one round."""
    scale = f", steps x {chapter.scale}" if chapter.scale > 1 else ""
    cohort = f", cohort {chapter.cohort} ({', '.join(f'{short(k)}={v}' for k, v in chapter.overrides)})" if chapter.overrides else ""
    loss = "" if chapter.table.loss is None else f", incumbent {chapter.table.loss:.4f} on {chapter.table.seeds} seeds"
    table = Table(title=f"Round {chapter.number}{cohort}{scale}{loss}: {chapter.action}", title_justify="left")
    unit, upstream = UNITS[story.policy.options.efficiency_target], story.policy.options.rule == "upstream"
    gain = "Δscore" if upstream else "gain ± se"
    for name in ("candidate", "seeds", "loss", gain, f"Δcost ({unit})", "efficiency" if upstream else "LCB / cost", "verdict"):
        table.add_column(name, justify="left" if name in ("candidate", "verdict") else "right")
    for arm in chapter.table.arms:
        chosen = chapter.chosen is not None and arm.move == chapter.chosen
        style = CHOSEN if chosen else BAD if arm.verdict.startswith(("failed", "invalid")) else ""
        table.add_row(*arm_cells(arm), style=style)
    return table


def arm_cells(arm: Arm) -> list[str]:
    """One candidate as text."""
    gain = "–" if arm.gain is None else f"{arm.gain:+.4f}" + ("" if arm.error is None else f" ± {arm.error:.4f}")
    return [
        arm.move.label,
        str(arm.seeds),
        "–" if arm.loss is None else f"{arm.loss:.4f}",
        gain,
        "–" if arm.cost is None else f"{arm.cost:+,.4g}",
        "–" if arm.ratio is None else f"{arm.ratio:.3g}",
        arm.verdict,
    ]


def noise_lines(story: Story) -> list[str]:
    """Sigma and what it lets one see."""
    noise, z = story.noise, story.policy.options.z
    if noise.sigma is None:
        return ["Noise: not known yet"] if story.policy.options.rule == "paired" else []
    seeds = story.policy.options.random_iterations
    effects = ", ".join(f"{noise.detectable(n, z):.2g} with {n} seeds" for n in (seeds, 2 * seeds, 4 * seeds))
    return [f"Noise: sigma {noise.sigma:.2g} nats ({noise.freedom} degrees of freedom); smallest gain seen 4 times in 5: {effects}"]


def fit_lines(story: Story) -> list[str]:
    """The fitted curves in words."""
    lines = [law_words(story.law)] if story.law else []
    for one in story.slopes:
        if one.doubt:
            lines.append(f"Ratio {one.name}: {one.first:.3g} to {one.last:.3g}; its trend is not identifiable ({one.doubt})")
            continue
        low, high = one.interval
        lines.append(f"Ratio {one.name}: {one.first:.3g} to {one.last:.3g}, ~ params^{one.slope:.2f} (90 %: {low:.2f} to {high:.2f})")
    return lines


def law_words(law: PowerLaw) -> str:
    """``L(N) = ...``, with its intervals or the doubt about it."""
    if law.doubt:
        return f"Loss against parameters: not identifiable ({law.doubt})"
    (e, f), (a, b) = law.floors, law.alphas
    return f"L(N) = {law.floor:.3f} [{e:.3f}, {f:.3f}] + {law.scale:.3g} N^-{law.alpha:.3f} [{a:.3f}, {b:.3f}] (90 % intervals)"


def failure_table(story: Story) -> Table:
    """Trials that came to nothing, and what they said."""
    table = Table(title="Failures", title_justify="left")
    for name in ("trial", "candidate", "seed", "status", "message"):
        table.add_column(name, justify="left")
    for record in failures(story):
        said = record.message.strip().splitlines()[-1] if record.message else ""
        table.add_row(str(record.number), record.wanted.label, str(record.wanted.seed), record.measured.status, Text(said[:160]))
    return table
