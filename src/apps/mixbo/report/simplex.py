"""The posterior at the target over the simplex of mixtures."""

from __future__ import annotations

import itertools

import numpy as np

from src.nanollama.arrays import Array, Mask
from src.nanollama.report import Block, Figure, Panels, Section

from ..baseline import difference, tested
from ..style import BEST, CLOSE_IS_STRONG, GOOD, Trace, mixture, plain
from ..surrogate import Surrogate
from .folder import Sweep

SLICE = 41  # points along one domain's share
CELLS = 24  # cells along one side of a map
PAIRED = 4  # domains, by share, that are mapped in pairs


def simplex_section(sweep: Sweep) -> Section | None:
    """Slices through the recommended mixture, and maps: a ternary one for three domains, pairs of domains for more."""
    if sweep.surrogate is None:
        return None
    blocks: list[Block] = [_slices(sweep, sweep.surrogate)]
    dim = sweep.problem.space.dim
    if dim == 3:
        blocks.append(_ternary(sweep, sweep.surrogate))
    elif dim > 3:
        blocks.append(_pairs(sweep, sweep.surrogate))
    return Section(
        "The posterior over mixtures", blocks, f"What the study believes about {sweep.target}, relative to the recommended mixture."
    )


def along(best: Array, domain: int, shares: Array) -> Array:
    """(n, K): the given shares of one domain, the rest divided as in ``best`` (evenly where that leaves nothing to divide)."""
    rest = np.delete(best, domain)
    rest = rest / rest.sum() if rest.sum() > 1e-9 else np.full(len(rest), 1 / len(rest))
    return np.insert((1 - shares)[:, None] * rest, domain, shares, axis=1)


def inside(sweep: Sweep, mixtures: Array) -> Mask:
    """Which mixtures the caps and floors allow."""
    space = sweep.problem.space
    return np.all((mixtures >= np.array(space.floor) - 1e-9) & (mixtures <= np.array(space.cap) + 1e-9), axis=1)


def _slices(sweep: Sweep, surrogate: Surrogate) -> Panels:
    figures, seen = [], tested(sweep.records)
    shares = np.linspace(0, 1, SLICE)
    lines = [along(sweep.best, i, shares) for i in range(sweep.problem.space.dim)]
    gain, sd = (values.reshape(-1, SLICE) for values in difference(surrogate, np.vstack(lines), sweep.best))
    worse = -gain
    allowed = np.array([inside(sweep, line) for line in lines])
    ceiling = float(np.nanmax(np.where(allowed, worse + sd, np.nan), initial=0.0))
    bottom = float(np.nanmin(np.where(allowed, worse - sd, np.nan), initial=0.0))
    pad = 0.06 * max(ceiling - bottom, 1e-9)
    for i, domain in enumerate(sweep.problem.space.domains):
        x, y, s = 100 * shares[allowed[i]], worse[i][allowed[i]], sd[i][allowed[i]]
        edge = {"x": x, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        traces: list[Trace] = [
            edge | {"y": y - s},
            edge | {"y": y + s, "fill": "tonexty", "fillcolor": f"{GOOD}/0.15"},
            {
                "x": x,
                "y": y,
                "name": "predicted, ± sd",
                "mode": "lines",
                "line": {"color": GOOD, "width": 2},
                "hovertemplate": "%{x:.0f} %: %{y:+.4f}<extra></extra>",
            },
            {
                "x": [100 * sweep.best[i]],
                "y": [0],
                "name": "recommended mixture",
                "mode": "markers",
                "marker": {"symbol": "diamond", "size": 10, "color": BEST},
                "hovertemplate": "recommended: %{x:.1f} %<extra></extra>",
            },
            {
                "x": 100 * seen[:, i] if len(seen) else [],
                "y": [bottom - pad / 2] * len(seen),
                "name": "tested mixtures",
                "mode": "markers",
                "marker": {"symbol": "line-ns-open", "size": 6, "color": "var(--muted)", "line": {"width": 1}},
                "hoverinfo": "skip",
            },
        ]
        axis = {"title": {"text": f"{plain(domain)}, %"}, "range": [-2, 102], "dtick": 25}
        layout = {"xaxis": axis, "yaxis": {"range": [bottom - pad, ceiling + pad], "nticks": 5, "zeroline": True}}
        figures.append(Figure(traces, layout, title=f"worse by, when {domain} changes", height=230))
    caption = (
        "One domain's share changes, the others keep their proportions. Steep sides: this domain matters. Wide bands: not known yet. "
        "Ticks below: shares in the mixtures tested so far."
    )
    return Panels(figures, caption)


def _pairs(sweep: Sweep, surrogate: Surrogate) -> Panels:
    """Maps over the shares of two domains, the rest divided as in the recommended mixture."""
    heaviest = sorted(np.argsort(-sweep.best, kind="stable")[:PAIRED])
    shares = np.linspace(0, 1, CELLS + 1)
    first, second = (g.ravel() for g in np.meshgrid(shares, shares))
    maps = {}
    for i, j in itertools.combinations(heaviest, 2):
        mixtures = _two(sweep.best, int(i), int(j), first, second)
        valid = (first + second <= 1 + 1e-9) & inside(sweep, mixtures)
        z = np.full(len(first), np.nan)
        if valid.any():
            z[valid] = _worse(sweep, surrogate, mixtures[valid])
        maps[int(i), int(j)] = z
    top = _ceiling(np.concatenate(list(maps.values())))
    seen = tested(sweep.records)
    figures = []
    for (i, j), z in maps.items():
        a, b = (plain(sweep.problem.space.domains[k]) for k in (i, j))
        heat: Trace = {
            "type": "heatmap",
            "x": 100 * shares,
            "y": 100 * shares,
            "z": z.reshape(len(shares), -1),
            "colorscale": CLOSE_IS_STRONG,
            "zmin": 0,
            "zmax": top,
            "showscale": False,
            "hoverongaps": False,
            "hovertemplate": f"{a} %{{x:.0f}} %, {b} %{{y:.0f}} %<br>worse by %{{z:.4f}}<extra></extra>",
        }
        layout = {
            "xaxis": {"title": {"text": f"{a}, %"}, "range": [-3, 103], "dtick": 25},
            "yaxis": {"title": {"text": f"{b}, %"}, "range": [-3, 103], "dtick": 25, "showgrid": False},
        }
        figures.append(Figure([heat, *_points(sweep, seen, i, j)], layout, height=300))
    caption = (
        f"The {len(heaviest)} domains with the largest shares, two at a time; the others divide the rest as in the recommended mixture. "
        f"Full colour: as good as the recommended mixture; none: worse by {top:.2g} or more. "
        "Dots: tested mixtures, seen from the same side."
    )
    return Panels(figures, caption)


def _points(sweep: Sweep, seen: Array, i: int, j: int) -> list[Trace]:
    points: list[Trace] = []
    if len(seen):
        points.append(
            {
                "x": 100 * seen[:, i],
                "y": 100 * seen[:, j],
                "name": "tested mixtures",
                "mode": "markers",
                "text": _names(sweep, seen),
                "marker": {"symbol": "circle-open", "size": 6, "color": "var(--ink)", "line": {"width": 1.25}},
                "hovertemplate": "tested: %{text}<extra></extra>",
                "cliponaxis": False,
            }
        )
    best = {"x": [100 * sweep.best[i]], "y": [100 * sweep.best[j]], "name": "recommended mixture", "mode": "markers", "cliponaxis": False}
    return [*points, best | {"marker": {"symbol": "diamond", "size": 10, "color": BEST}, "hovertemplate": "recommended<extra></extra>"}]


def _ternary(sweep: Sweep, surrogate: Surrogate) -> Figure:
    grid = np.array([(i, j, 40 - i - j) for i in range(41) for j in range(41 - i)], dtype=float) / 40
    grid = grid[inside(sweep, grid)]
    worse, seen = _worse(sweep, surrogate, grid), tested(sweep.records)
    top = _ceiling(worse)
    bar = {
        "title": {"text": "worse by", "side": "top"},
        "thickness": 10,
        "outlinewidth": 0,
        "len": 0.7,
        "tickfont": {"color": "var(--muted)"},
    }
    traces: list[Trace] = [
        {
            "type": "scatterternary",
            "mode": "markers",
            "showlegend": False,
            "text": [f"{m}<br>worse by {w:.4f}" for m, w in zip(_names(sweep, grid), worse, strict=True)],
            **_corners(grid),
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {
                "symbol": "hexagon",
                "size": 12,
                "color": worse,
                "cmin": 0,
                "cmax": top,
                "colorscale": CLOSE_IS_STRONG,
                "showscale": True,
                "colorbar": bar,
            },
        }
    ]
    for name, points, symbol, size, colour in (
        ("tested mixtures", seen, "circle-open", 7, "var(--ink)"),
        ("recommended mixture", sweep.best[None], "diamond", 12, BEST),
    ):
        if len(points):
            traces.append(
                {
                    "type": "scatterternary",
                    "mode": "markers",
                    "name": name,
                    **_corners(points),
                    "text": _names(sweep, points),
                    "marker": {"symbol": symbol, "size": size, "color": colour, "line": {"width": 1.5, "color": colour}},
                    "hovertemplate": f"{name}: %{{text}}<extra></extra>",
                    "cliponaxis": False,
                }
            )
    layout = {"ternary": _axes(sweep), "margin": {"l": 40, "r": 40, "t": 40, "b": 40}}
    return Figure(
        traces, layout, f"The whole simplex. Full colour: as good as the recommended mixture; none: worse by {top:.2g} or more.", height=470
    )


def _axes(sweep: Sweep) -> dict[str, object]:
    ternary: dict[str, object] = {"sum": 1, "bgcolor": "rgba(0,0,0,0)"}
    for axis, domain in zip(("aaxis", "baxis", "caxis"), sweep.problem.space.domains, strict=True):
        ternary[axis] = {
            "title": {"text": plain(domain)},
            "tickformat": ".0%",
            "gridcolor": "var(--grid)",
            "linecolor": "var(--faint)",
            "nticks": 5,
            "tickfont": {"size": 12, "color": "var(--muted)"},
        }
    return ternary


def _corners(points: Array) -> Trace:
    return {"a": points[:, 0], "b": points[:, 1], "c": points[:, 2]}


def _two(best: Array, i: int, j: int, first: Array, second: Array) -> Array:
    others = [k for k in range(len(best)) if k not in (i, j)]
    rest = best[others] / best[others].sum() if best[others].sum() > 1e-9 else np.full(len(others), 1 / len(others))
    mixtures = np.zeros((len(first), len(best)))
    mixtures[:, i], mixtures[:, j] = first, second
    mixtures[:, others] = np.maximum(1 - first - second, 0.0)[:, None] * rest
    return mixtures


def _worse(sweep: Sweep, surrogate: Surrogate, mixtures: Array) -> Array:
    """(n,) posterior mean at the target above that of the recommended mixture, minimised objective."""
    return surrogate.mean_at_target(mixtures) - surrogate.mean_at_target(sweep.best[None])[0]


def _ceiling(worse: Array) -> float:
    """Where the colours end: the worst third needs no detail."""
    finite = worse[np.isfinite(worse)]
    return max(float(np.quantile(finite, 0.67)), 1e-9) if len(finite) else 1.0


def _names(sweep: Sweep, points: Array) -> list[str]:
    return [plain(mixture(dict(zip(sweep.problem.space.domains, w, strict=True)))) for w in points]
