"""Families matched to a number of parameters: how near every cell comes, and how long the solver takes, which builds no model.

    python benchmarks/families.py [--quick] [--json PATH]

All 7 families x 6 sizes of the phase-1 sweep, byte vocabulary, tied and untied head. Every found shape is then built on the meta device
and its parameters counted, which is not part of the time.
"""

from __future__ import annotations

import statistics

import torch
from _rounds import arguments, save, seconds

from src.nanollama.config.schema import FAMILIES, ModelConfig
from src.nanollama.model import families
from src.nanollama.model.transformer import Transformer

TARGETS = ("1.8M", "2.85M", "3.95M", "5M", "6.1M", "7.15M")


def solve_all(tied: bool) -> dict[tuple[str, str], ModelConfig]:
    """The shape of every cell."""
    asked = {(f, t): ModelConfig(vocab_size=256, family=f, target_params=t, tie_embeddings=tied) for f in FAMILIES for t in TARGETS}  # type: ignore[arg-type]
    return {cell: families.solve(cfg) for cell, cfg in asked.items()}


def built(cfg: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Transformer(cfg).parameters())


def main() -> None:
    args = arguments(__doc__)
    taken = seconds({"tied": lambda: solve_all(True), "untied": lambda: solve_all(False)}, 2 if args.quick else 7, args.clock)
    results = {}
    for name, tied in (("tied", True), ("untied", False)):
        cells = solve_all(tied)
        errors = {cell: built(cfg) / (cfg.target_params or 1) - 1 for cell, cfg in cells.items()}
        worst = max(errors, key=lambda cell: abs(errors[cell]))
        print(f"{name}: 42 cells in {statistics.median(taken[name]):.2f} s [{min(taken[name]):.2f}, {max(taken[name]):.2f}]")
        print(f"  worst {' '.join(worst)} {errors[worst]:+.3%}, median {statistics.median(map(abs, errors.values())):.3%}")
        for family in FAMILIES:
            shapes = [(cells[family, target], errors[family, target]) for target in TARGETS]
            print(f"  {family:17s}" + "  ".join(f"{cfg.nb_layers:2d} x {cfg.emb_dim:3d} {error:+.2%}" for cfg, error in shapes))
        results[name] = {
            "seconds": taken[name],
            "worst": [*worst, errors[worst]],
            "deviations": {f"{family} {target}": error for (family, target), error in errors.items()},
        }
    save(args.json, results)


if __name__ == "__main__":
    main()
