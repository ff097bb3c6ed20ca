"""Report pages on trained models: what their layers know, and their loss by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.nanollama.report import Column, Figure, Page, Panels, Section, Table
from src.nanollama.report.format import fixed, plus_minus
from src.nanollama.report.page import series_colour

Found = Mapping[str, Any]
Trace = dict[str, Any]

LAYERS = {"title": {"text": "layer (0: the embedding)"}, "dtick": 1}
START = "Every sequence starts in the same, known state of the graph, so there is little to infer at its first tokens."
POSITION = {"title": {"text": "position in the sequence"}, "type": "log", "dtick": "D2", "tickformat": "~s"}


def line(name: str, x: Sequence[float], y: Sequence[float], colour: str, **more: Any) -> Trace:
    """A named curve; ``dash`` and ``mode`` as in plotly."""
    style = {"color": colour, "width": 2, "dash": more.pop("dash", "solid")}
    hover = "<b>%{fullData.name}</b><br>%{x}: %{y:.4f}<extra></extra>"
    return {"x": list(x), "y": list(y), "name": name, "legendgroup": name, "mode": "lines", "line": style, "hovertemplate": hover} | more


# --- beliefs ----------------------------------------------------------------------------------------------------------------------


def beliefs_page(found: Found) -> Page:
    """R2 by layer for both targets with every control, R2 by position, and the numbers."""
    lead = "Probes read the exact filtered marginals p(z | x up to here), and the states, from activations they were not fitted on."
    facts = [
        found["checkpoint"],
        f"{found['sequences']} sequences of {found['seq_len']} tokens",
        f"fitted on {found['fit_sequences']} others",
    ]
    page = Page("Beliefs inside the model", lead, facts)
    panels = [
        _by_layer(found, target, title) for target, title in (("beliefs", "R² on the exact marginals"), ("states", "R² on the states"))
    ]
    caption = (
        "What training has added is the distance from trained to untrained; what needs memory is the distance from trained to the best "
        "window of last tokens (dotted). Shuffled targets must stay at zero. No function of the tokens so far can pass the exact filter."
    )
    by_layer = Section("By layer", [Panels(panels, caption), _beliefs_table(found)])
    return page.add(by_layer, Section("By position", [_by_position(found)]))


def _rows(found: Found, features: str, probe: str, target: str) -> list[Mapping[str, Any]]:
    return [row for row in found["rows"] if (row["features"], row["probe"], row["target"]) == (features, probe, target)]


def _windows(found: Found) -> list[str]:
    return list(dict.fromkeys(row["features"] for row in found["rows"] if row["features"].startswith("last ")))


def _by_layer(found: Found, target: str, title: str) -> Figure:
    traces, layers = [], [0, found["layers"]]
    for i, features in enumerate(("trained", "untrained", "shuffled")):
        for probe, dash in (("linear", "solid"), ("mlp", "dash")):
            rows = _rows(found, features, probe, target)
            bars = {"array": [row["r2_se"] for row in rows], "width": 0, "thickness": 1}
            name = f"{features}, {probe} probe"
            x, y = [row["layer"] for row in rows], [row["r2"] for row in rows]
            traces.append(line(name, x, y, series_colour(i), dash=dash, mode="lines+markers", error_y=bars))
    for i, features in enumerate(_windows(found)):
        best = max(row["r2"] for probe in ("linear", "mlp") for row in _rows(found, features, probe, target))
        name = f"{features} token{'s' * (features != 'last 1')}, better probe"
        traces.append(line(name, layers, [best] * 2, series_colour(i + 3), dash="dot"))
    top = 1.0 if target == "beliefs" else found["ceiling"]["r2"]
    traces.append(line("exact filter", layers, [top] * 2, "var(--ink)", dash="dash"))
    low = min(-0.05, *(min(trace["y"]) for trace in traces))
    return Figure(traces, {"xaxis": LAYERS, "yaxis": {"range": [low, 1.05]}}, title=title, height=340)


def _beliefs_table(found: Found) -> Table:
    each_latent = [Column(f"R² {name}", "beliefs") for name in found["latents"]]
    columns = [
        Column("Features", numeric=False), Column("Layer"), Column("Probe", numeric=False), Column("R² beliefs", "± s.e."),
        Column("R² states", "± s.e."), Column("Accuracy", "states"), *each_latent,
    ]  # fmt: skip
    cells = []
    for known, states in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        layer = "–" if known["layer"] is None else str(known["layer"])
        scores = [plus_minus(row["r2"], row["r2_se"]) for row in (known, states)]
        each = [fixed(known["r2_by_latent"][name], 3) for name in found["latents"]]
        cells.append([known["features"], layer, known["probe"], *scores, fixed(states["accuracy"], 3), *each])
    top = found["ceiling"]
    exact = [
        "exact filter",
        "–",
        "–",
        "1",
        plus_minus(top["r2"], top["r2_se"]),
        fixed(top["accuracy"], 3),
        *("1" for _ in found["latents"]),
    ]
    return Table(columns, [*cells, exact])


def _by_position(found: Found) -> Figure:
    traces = [
        line(name if name.startswith("last") else f"{name}, layer {found['best_layer']}", range(1, len(y) + 1), y, series_colour(i))
        for i, (name, y) in enumerate(found["r2_by_position"].items())
    ]
    caption = (
        "A window of last tokens stops improving once the sequence is longer than it; a model that filters goes on. "
        "In units of the variance over all positions, linear probes."
    )
    return Figure(traces, {"xaxis": POSITION, "yaxis": {}}, caption, "R² on the exact marginals")


# --- positions --------------------------------------------------------------------------------------------------------------------


def positions_page(found: Found) -> Page:
    """Loss over the floor at every position, and the excess on logarithmic axes."""
    excess = f"mean excess {plus_minus(found['mean_excess_loss'], found['mean_excess_loss_se'])} nats per token"
    facts = [found["checkpoint"], f"{found['sequences']} sequences of {len(found['bayes_loss'])} tokens", excess]
    page = Page("Loss by position", "Where in a sequence the model is worse than the exact predictor.", facts)
    x = range(1, len(found["bayes_loss"]) + 1)
    loss = [b + e for b, e in zip(found["bayes_loss"], found["excess_loss"], strict=True)]
    level = [line("model", x, loss, series_colour(0)), line("exact floor", x, found["bayes_loss"], "var(--ink)", dash="dash")]
    levels = Figure(level, {"xaxis": POSITION, "yaxis": {}, **_trained(found)}, START, "Loss, nats per token")
    bars = {"array": found["excess_loss_se"], "width": 0, "thickness": 1, "color": f"{series_colour(0)}/0.4"}
    gap = [line("excess", x, found["excess_loss"], series_colour(0), error_y=bars)]
    axes = {"xaxis": POSITION, "yaxis": {"type": "log", "dtick": "D2", "tickformat": "~g"}, **_trained(found)}
    caption = "An excess that grows with position is inference that the model fails to carry on. Bars: one standard error over sequences."
    return page.add(Section("Against the exact floor", [levels, Figure(gap, axes, caption, "Excess over the floor, nats per token")]))


def _trained(found: Found) -> dict[str, Any]:
    """A mark where training sequences ended, if these go on."""
    length = found["trained_seq_len"]
    if len(found["bayes_loss"]) <= length:
        return {}
    mark = {"type": "line", "x0": length, "x1": length, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "var(--muted)", "dash": "dot"}}
    return {"shapes": [mark]}


# --- scaling laws -----------------------------------------------------------------------------------------------------------------

UNITS = {"parameters": "parameters", "sequences": "training sequences", "tokens": "training tokens", "flops": "training FLOPs"}


def scaling_page(found: Found) -> Page:
    """Excess over x on logarithmic axes with the fitted laws, and their exponents."""
    page = Page("Scaling laws", "Excess loss over the exact floor: a straight line is a power law, a bend upwards a plateau.")
    traces: list[Trace] = []
    for i, curve in enumerate(found["curves"]):
        bars = {"array": curve["se"], "width": 0, "thickness": 1.25}
        traces.append(line(curve["name"], curve["x"], curve["excess"], series_colour(i), mode="markers", error_y=bars))
        if curve["line"] and not curve["law"]["problem"]:
            low, high = curve["x"][0], curve["x"][-1]
            x = [low * (high / low) ** (k / (len(curve["line"]) - 1)) for k in range(len(curve["line"]))]
            traces.append(line(curve["name"], x, curve["line"], series_colour(i), showlegend=False))
    logarithmic = {"type": "log", "dtick": "D2"}
    x_axis = logarithmic | {"title": {"text": UNITS[found["x"]]}, "tickformat": "~s"}
    layout = {"xaxis": x_axis, "yaxis": logarithmic | {"tickformat": "~g"}}
    which = "at the end of training" if found["loss"] == "final" else "at its lowest"
    caption = (
        f"Held-out excess {which}; bars are one standard error over repetitions (of a single run: over its evaluation's sequences). "
        "No line is drawn where the points do not determine one."
    )
    columns = [
        Column("Curve", numeric=False),
        Column("Exponent", "95 % interval"),
        Column("Plateau", "nats/token"),
        Column("Note", numeric=False),
    ]
    cells = [_law(curve) for curve in found["curves"]]
    return page.add(
        Section("Excess loss", [Figure(traces, layout, caption, "Excess over the floor, nats per token"), Table(columns, cells)])
    )


def _law(curve: Found) -> list[str]:
    law = curve["law"]
    if law["problem"]:
        return [curve["name"], "–", "–", f"not identifiable: {law['problem']}"]
    (low, high), (least, most) = law["b_interval"], law["c_interval"]
    return [curve["name"], f"{law['b']:.3g} [{low:.3g}, {high:.3g}]", f"{law['c']:.3g} [{least:.3g}, {most:.3g}]", ""]
