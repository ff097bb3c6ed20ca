"""Do the published findings on graph-structured sequences show at small scale, at equal exact floor?

    python benchmarks/gssm_science.py [--quick] [--json PATH] [--steps N] [--seeds N] [--only TEXT] [--override KEY=VALUE ..]

Every case is an experiment of src/apps/gssm/configs/science. Its free concentration is solved for each graph seed, so that all cases of
a claim have the same exact floor; then one small transformer is trained on each, with the same budget, and its held-out excess over the
floor compared within each graph seed. A claim counts as reproduced if its mean difference over seeds is significant at 5 % (paired t
test, two-sided). Everything about a training can be changed, also its scale (--override train.device=cuda model.emb_dim=512).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t

from src.apps.gssm import graph
from src.apps.gssm.calibrate import solve
from src.apps.gssm.config import TRAIN_ONFLY
from src.apps.gssm.measure_config import MeasureConfig
from src.apps.gssm.train_onfly import train_onfly
from src.nanollama.config import compose, read_result
from src.nanollama.config.main import run_command
from src.nanollama.metrics.sinks import read_jsonl

SMALL = ["data.seq_len=128", "data.batch_size=16", "model.nb_layers=2", "eval.sequences=128", "metrics.tensorboard=false"]
TOLERANCE = 0.005  # nats; the held-out floor itself is paired, so that this is no error of the excess


@dataclass(frozen=True)
class Case:
    """An experiment with one free concentration; ``fixed`` are overrides that stay."""

    name: str
    experiment: str
    free: str = "alpha_Z"
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """Cases at the same exact floor, from the one expected to be hardest to the easiest; ``ordered`` False: a question, not a claim."""

    text: str
    floor: float
    cases: tuple[Case, ...]
    ordered: bool = True


def pair(name: str) -> tuple[Case, ...]:
    """Easy to infer and easy to predict on one graph."""
    small_X = Case(f"{name}: small alpha_X", name, "alpha_Z", ("setup=null", "alpha_X=1e-3"))
    small_Z = Case(f"{name}: small alpha_Z", name, "alpha_X", ("setup=null", "alpha_Z=1e-3"))
    return small_X, small_Z


CLAIMS = (
    Claim("one latent of 36 is harder than two of 6", 2.0, (Case("one of 36", "one_of_36"), Case("two of 6", "two_of_6"))),
    Claim("dense is harder than sparse", 2.0, (Case("dense", "dense"), Case("sparse", "sparse"))),
    Claim("default is harder than slow, slow than dead", 2.0, (Case("default", "sparse"), Case("slow", "slow"), Case("dead", "dead"))),
    Claim("easy to infer or easy to predict? (the seed's graph)", 1.5, pair("feedback"), ordered=False),
    Claim("easy to infer or easy to predict? (independent latents)", 1.5, pair("independent"), ordered=False),
)


def run_case(case: Case, floor: float, graph_seed: int, common: list[str]) -> dict[str, Any]:
    """Calibrate, train, and report the excess loss along the way."""
    args = [f"experiment=science/{case.experiment}", *case.fixed, f"graph_seed={graph_seed}", *common]
    cfg = compose(TRAIN_ONFLY, [*args, f"{case.free}=1"])

    def family(alpha: float) -> graph.Graph:
        return graph.build(cfg.gssm, *((alpha, cfg.alpha_Z) if case.free == "alpha_X" else (cfg.alpha_X, alpha)))

    effort = MeasureConfig(sequences=64)
    found = solve(family, floor, seq_len=cfg.data.seq_len, graph_seed=graph_seed, high=30.0, tolerance=TOLERANCE, cfg=effort)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as log:
        task = train_onfly.__wrapped__  # type: ignore[attr-defined]
        code = run_command(TRAIN_ONFLY, task, [*args, f"{case.free}={found.alpha!r}", f"run_dir={folder}"])
        result = read_result(folder) or {}
        if code:
            raise SystemExit(f"{case.name}: {log.getvalue()}")
        curve = [(r["step"], r["excess_loss"]) for r in read_jsonl(Path(folder) / "metrics.jsonl") if r["split"] == "valid"]
    kept = {key: result[key] for key in ("bayes_loss", "excess_loss", "excess_loss_se", "tokens", "parameters")}
    return {"graph_seed": graph_seed, case.free: found.alpha, **kept, "curve": curve, "cpu_s": time.process_time() - began}


def verdict(claim: Claim, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each pair of neighbouring cases: mean difference of excess, its standard error over seeds, and what that means."""
    rows = []
    for harder, easier in itertools.pairwise(claim.cases):
        by_case = {name: {r["graph_seed"]: r["excess_loss"] for r in runs if r["case"] == name} for name in (harder.name, easier.name)}
        gaps = [by_case[harder.name][seed] - by_case[easier.name][seed] for seed in by_case[harder.name]]
        mean = statistics.mean(gaps)
        se = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("inf")
        clear = len(gaps) > 1 and abs(mean) > t.ppf(0.975, len(gaps) - 1) * se
        if claim.ordered:
            found = "reproduced" if mean > 0 else "the reverse was found"
        else:
            found = f"{(easier if mean > 0 else harder).name} is easier"
        agree = sum(gap * mean > 0 for gap in gaps)
        word = found if clear else f"not significant ({found} in {agree} of {len(gaps)} seeds)"
        rows.append({"claim": claim.text, "harder": harder.name, "easier": easier.name, "difference": mean, "se": se, "verdict": word})
    return rows


def table(runs: list[dict[str, Any]], verdicts: list[dict[str, Any]]) -> str:
    """Markdown: excess by case, then a line for each comparison."""
    lines = ["| case | exact floor | excess, mean over graph seeds | each seed |", "|---|---|---|---|"]
    for name in dict.fromkeys(run["case"] for run in runs):
        mine = [run for run in runs if run["case"] == name]
        floor, excess = (statistics.mean(run[key] for run in mine) for key in ("bayes_loss", "excess_loss"))
        each = ", ".join(f"{run['excess_loss']:.4f}" for run in mine)
        lines.append(f"| {name} | {floor:.3f} | {excess:.4f} | {each} |")
    lines += ["", "| claim | difference of excess | verdict |", "|---|---|---|"]
    for row in verdicts:
        gap = f"{row['difference']:+.4f}" + (f" ± {row['se']:.4f}" if math.isfinite(row["se"]) else " (one seed)")
        lines.append(f"| {row['claim']}: {row['harder']} - {row['easier']} | {gap} | {row['verdict']} |")
    return "\n".join(lines)


def main() -> None:
    """Run every case on every seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, says nothing about the claims")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--only", default="", help="claims whose text has this in it")
    parser.add_argument("--override", nargs="*", default=[])
    args = parser.parse_args()
    steps, seeds = args.steps or (20 if args.quick else 600), args.seeds or (1 if args.quick else 3)
    common = [*SMALL, f"train.steps={steps}", f"eval.period={max(1, steps // 4)}", f"optim.warmup={min(50, steps // 4)}", *args.override]
    done: dict[tuple[Any, ...], dict[str, Any]] = {}  # two claims may share a training
    runs: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    for claim in (claim for claim in CLAIMS if args.only in claim.text):
        mine = []
        for case in claim.cases:
            for seed in range(seeds):
                key = (case.experiment, case.fixed, claim.floor, seed)
                done[key] = done.get(key) or run_case(case, claim.floor, seed, common)
                mine.append({"case": case.name, **done[key]})
                print(f"{case.name:<28} seed {seed}  floor {mine[-1]['bayes_loss']:.3f}  excess {mine[-1]['excess_loss']:.4f}", flush=True)
        runs += mine
        verdicts += verdict(claim, mine)
    print("\n" + table(runs, verdicts))
    if args.json:
        args.json.write_text(json.dumps({"steps": steps, "overrides": common, "runs": runs, "verdicts": verdicts}, indent=1))


if __name__ == "__main__":
    main()
