"""Solve for the concentration at which a graph has a wanted difficulty.

    python -m src.apps.gssm.calibrate experiment=debug solve.target=1.23

A measure is a deterministic, nearly continuous function of log alpha, because kernels and sequences use common random numbers. So a
bracketing root finder applies: no noise to average away, and a bracket is believed only if the measure really crosses the target in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from src.nanollama.config import ConfigError, RunFolder, main
from src.nanollama.config.folder import write_json
from src.nanollama.report.format import plus_minus

from . import kernels
from .difficulty import Estimate, Meter, measure
from .graph import Graph, build
from .measure_config import CALIBRATE, CalibrateConfig, LogGrid, MeasureConfig, family, setup_of

SCAN = 9  # concentrations tried, evenly in log alpha, when the ends of the interval do not bracket the target
PLAIN_TOLERANCE = 0.002  # for measures without a standard error
LEAST_TOLERANCE = 1e-4  # at least this, where chains in fixed cycles leave next to no standard error
TOLERANCE = 0.005  # at most this, whatever the standard error
SIDES = ("alpha_X", "alpha_Z")
CURVE = 4  # points of a curve use this many times fewer sequences
ROUGH = 8  # the first search uses this many times fewer tokens
FIRST_WIDTH = 0.1  # of the second one's bracket, in log alpha, to either side


@dataclass(frozen=True)
class Solution:
    """``alpha`` such that ``measure`` is ``target``: found with ``estimate``, confirmed by ``check`` on sequences it has not seen."""

    alpha: float
    measure: str
    target: float
    graph_seed: int
    estimate: Estimate
    check: Estimate
    evaluations: int

    def describe(self) -> dict[str, Any]:
        return {
            "alpha": self.alpha,
            "measure": self.measure,
            "target": self.target,
            "graph_seed": self.graph_seed,
            "value": self.estimate.value,
            "se": self.estimate.se,
            "check": self.check.value,
            "check_se": self.check.se,
            "evaluations": self.evaluations,
        }


class Unreachable(ConfigError):
    """No concentration in the interval has the wanted difficulty."""


def solve(
    graph_at: Callable[[float], Graph],
    target: float,
    name: str = "bayes_loss",
    *,
    seq_len: int = 256,
    graph_seed: int = 0,
    low: float = 1e-3,
    high: float = 10.0,
    tolerance: float | None = None,
    cfg: MeasureConfig | None = None,
) -> Solution:
    """Find alpha in [low, high] at which the measure ``name`` of ``graph_at(alpha)``, with the kernels of ``graph_seed``, is ``target``.

    ``tolerance``: how near counts as equal; by default a quarter of the measure's own standard error, between .0001 and .005. Raises
    ``Unreachable``, with the range of the measure, where no two concentrations that were tried lie on either side of the target.
    """
    cfg = cfg or MeasureConfig()

    def read(log_alpha: float, settings: MeasureConfig) -> Estimate:
        drawn = kernels.draw(graph_at(math.exp(log_alpha)), graph_seed)
        return Meter(drawn, seq_len, settings).read(name)

    rough_cfg = replace(cfg, tokens=max(cfg.tokens // ROUGH, 1), sequences=max(cfg.sequences // ROUGH, 2))
    rough = Search(lambda a: read(a, rough_cfg), target, tolerance or TOLERANCE)
    fine = Search(lambda a: read(a, cfg), target, tolerance)
    ends = math.log(low), math.log(high)
    try:
        found = fine.root(*(_around_rough_root(rough, fine, *ends) or fine.bracket(*ends)))
    except Unreachable as error:
        raise Unreachable(f"{name} = {target:g} cannot be reached with graph seed {graph_seed}: {error}") from None
    fresh = read(found, replace(cfg, seed=cfg.seed + 1))
    return Solution(math.exp(found), name, target, graph_seed, fine.tried[found], fresh, len(fine.tried))


def _around_rough_root(rough: Search, fine: Search, low: float, high: float) -> tuple[float, float] | None:
    """A narrow bracket for ``fine`` where the cheap search ended, if both agree that there is one."""
    try:
        return fine.bracket_around(rough.root(*rough.bracket(low, high)), low, high)
    except Unreachable:
        return None


class Search:
    """The zero of a measure's excess over ``target`` as a function of log alpha; every evaluation is remembered."""

    def __init__(self, read: Callable[[float], Estimate], target: float, tolerance: float | None) -> None:
        self.read, self.target, self.tolerance = read, target, tolerance
        self.tried: dict[float, Estimate] = {}

    def excess(self, at: float) -> float:
        """Measure minus target; exactly 0 where they are near enough."""
        if at not in self.tried:
            self.tried[at] = self.read(at)
        found = self.tried[at]
        near = self.tolerance or (min(max(found.se / 4, LEAST_TOLERANCE), TOLERANCE) if found.se else PLAIN_TOLERANCE)
        return 0.0 if abs(found.value - self.target) <= near else found.value - self.target

    def crosses(self, low: float, high: float) -> bool:
        return self.excess(low) * self.excess(high) <= 0

    def bracket_around(self, guess: float, low: float, high: float) -> tuple[float, float] | None:
        """An interval around ``guess``, widened until the measure crosses the target in it; None if it never does."""
        width = FIRST_WIDTH
        while guess - width > low or guess + width < high:
            left, right = max(low, guess - width), min(high, guess + width)
            if self.crosses(left, right):
                return left, right
            width *= 3
        return None

    def bracket(self, low: float, high: float) -> tuple[float, float]:
        """The whole interval if the measure crosses the target between its ends, else the uppermost such part of a scan.

        The uppermost, because below some concentration the chains fall into short cycles and no measure is monotone any more.
        """
        if self.crosses(low, high):
            return low, high
        points = [low + (high - low) * i / (SCAN - 1) for i in range(SCAN)]
        for left, right in reversed(list(itertools.pairwise(points))):
            if self.crosses(left, right):
                return left, right
        least, most = (pick(self.tried, key=lambda a: self.tried[a].value) for pick in (min, max))
        raise Unreachable(
            f"for alpha from {math.exp(low):.4g} to {math.exp(high):.4g} it lies between {self.tried[least].value:.4f} (at "
            f"{math.exp(least):.4g}) and {self.tried[most].value:.4f} (at {math.exp(most):.4g}); choose a target in that range, or widen it"
        )

    def root(self, low: float, high: float) -> float:
        """Brent's method inside a bracket."""
        for end in (low, high):
            if self.excess(end) == 0:
                return end
        from scipy.optimize import brentq

        found = float(brentq(self.excess, low, high, xtol=1e-9, maxiter=60, disp=False))
        if self.excess(found) != 0:
            raise Unreachable(f"at alpha {math.exp(found):.6g} it jumps across, from one side to {self.tried[found].value:.4f}")
        return found


# --- the command -----------------------------------------------------------------------------------------------------------------


@main(CALIBRATE)
def calibrate(cfg: CalibrateConfig, run: RunFolder) -> dict[str, Any]:
    """Solve on every graph seed, trace the curve, and write ``calibration.json``, ``difficulty.json``, ``setups.yaml`` and a page.

    A setup holds for its graph seed only; the concentration of a single node is none, and then there is no ``setups.yaml``.
    """
    from . import difficulty_page as page

    solutions, curves = [], {}
    for seed in range(cfg.graph_seed, cfg.graph_seed + cfg.graph_seeds):
        options = _options(cfg, seed)
        target = _target(cfg, seed)
        solutions.append(solve(family(cfg, cfg.solve.free), target, **options))
        print(_sentence(cfg, solutions[-1]))
        curves[seed] = list(_curve(cfg, target, options))
    rows = [_row(cfg, s) for s in solutions]
    write_json(run.path / "difficulty.json", rows[0] if len(rows) == 1 else {"settings": rows})
    found = {"free": cfg.solve.free, "solutions": [s.describe() for s in solutions], "curves": curves}
    write_json(run.path / "calibration.json", found)
    page.calibration_page(rows, found, cfg).write(run.path / "calibration.html")
    print(f"\n{page.as_text(page.settings_table(rows))}\n")
    if cfg.solve.free in SIDES:
        snippet = page.setups_yaml({f"setup{s.graph_seed}": _setup(cfg, s) for s in solutions})
        (run.path / "setups.yaml").write_text(snippet)
        print(f"{snippet}\n{run.path}/setups.yaml")
    print(f"{run.path}/calibration.html, calibration.json")
    return {"alpha": solutions[0].alpha, cfg.solve.measure: solutions[0].estimate.value} if len(solutions) == 1 else {}


def _options(cfg: CalibrateConfig, seed: int) -> dict[str, Any]:
    chosen = cfg.solve
    bounds = {"low": chosen.low, "high": chosen.high, "tolerance": chosen.tolerance}
    return {"name": chosen.measure, "seq_len": cfg.data.seq_len, "graph_seed": seed, "cfg": cfg.measure, **bounds}


def _target(cfg: CalibrateConfig, seed: int) -> float:
    if cfg.solve.like is None:
        assert cfg.solve.target is not None  # checked in resolve
        return cfg.solve.target
    like = setup_of(replace(cfg, graph_seed=seed), cfg.solve.like, "solve.like")
    drawn = kernels.draw(build(cfg.gssm, like.alpha_X, like.alpha_Z), like.graph_seed)
    return Meter(drawn, cfg.data.seq_len, cfg.measure).read(cfg.solve.measure).value


def _curve(cfg: CalibrateConfig, target: float, options: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """The reachable points (alpha_X, alpha_Z) of the iso-difficulty curve."""
    from tqdm import tqdm

    chosen = cfg.solve
    if not chosen.curve or chosen.free not in SIDES:
        return
    effort = replace(cfg.measure, sequences=max(cfg.measure.sequences // CURVE, 2))
    options = {**options, "cfg": effort, "tolerance": chosen.tolerance or TOLERANCE}
    for fixed in tqdm(LogGrid(chosen.low, min(chosen.high, 1.0), chosen.curve).values(), desc="iso-difficulty curve", disable=None):
        try:
            found = solve(family(cfg, chosen.free, fixed), target, **options).alpha
        except Unreachable:
            continue
        yield (fixed, found) if chosen.free == "alpha_Z" else (found, fixed)


def _setup(cfg: CalibrateConfig, solution: Solution) -> dict[str, Any]:
    """A solution as an entry of ``setups``: with its graph seed, since it holds for no other kernels."""
    alphas = {"alpha_X": cfg.alpha_X, "alpha_Z": cfg.alpha_Z, cfg.solve.free: solution.alpha}
    return {**alphas, "graph_seed": solution.graph_seed, "difficulty": solution.estimate.value}


def _row(cfg: CalibrateConfig, solution: Solution) -> dict[str, Any]:
    """All measures of a solution, as a row of ``difficulty``."""
    drawn = kernels.draw(family(cfg, cfg.solve.free)(solution.alpha), solution.graph_seed)
    alphas = {"alpha_X": cfg.alpha_X, "alpha_Z": cfg.alpha_Z}
    about = {"name": f"graph seed {solution.graph_seed}", **alphas, "graph_seeds": [solution.graph_seed]}
    return {**about, cfg.solve.free: solution.alpha, **measure(drawn, cfg.data.seq_len, cfg.measure)}


def _sentence(cfg: CalibrateConfig, s: Solution) -> str:
    like = f" (that of {cfg.solve.like})" if cfg.solve.like else ""
    found, check = (plus_minus(e.value, e.se) for e in (s.estimate, s.check))
    return (
        f"graph seed {s.graph_seed}: {cfg.solve.free} = {s.alpha:.6g} gives {s.measure} {found} for a target of {s.target:.4f}{like}; "
        f"{check} on fresh sequences"
    )


if __name__ == "__main__":
    calibrate()
