"""Loss against length beyond that of the training, for every way to scale rotary embeddings, on data whose floor is exact at any length.

    python benchmarks/rope_length.py [--quick] [--json PATH] [--steps N] [--seeds N]

One small transformer a seed is trained on sequences of length L; then its excess over the Bayes-optimal loss is measured on sequences of
2 L, 4 L and 8 L, position by position, with each scaling switched on at the factor that the length asks for (nothing is trained again).
Scalings share weights, sequences and floor, so their differences are paired.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from src.apps.gssm.config import TRAIN_ONFLY
from src.apps.gssm.inspect_config import PositionsConfig
from src.apps.gssm.inspection import Trained, open_trained
from src.apps.gssm.positions import measure
from src.apps.gssm.train_onfly import train_onfly
from src.nanollama.config.main import run_command
from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.transformer import Transformer

SCALINGS = get_args(get_type_hints(ModelConfig)["rope_scaling"])
FACTORS = (2, 4, 8)
LENGTH = 64
SMALL = ["experiment=science/two_of_6", "alpha_X=1e-3", "alpha_Z=0.05", f"data.seq_len={LENGTH}", "data.batch_size=32",
         "model.emb_dim=64", "model.nb_layers=2", "model.nb_heads=2", "eval.sequences=32", "metrics.tensorboard=false"]  # fmt: skip


def rescaled(trained: Trained, scaling: str, factor: int) -> Trained:
    """The same weights with other angles."""
    cfg = replace(trained.cfg.model, rope_scaling=scaling, rope_factor=float(factor), rope_length=LENGTH)
    model = Transformer(cfg).eval()
    model.load_state_dict(trained.model.state_dict())
    return replace(trained, model=model, seq_len=factor * LENGTH)


def one_seed(seed: int, steps: int, sequences: int) -> list[dict[str, Any]]:
    """Train, then one row for each length and scaling: mean excess over the positions trained on, and over those beyond."""
    with tempfile.TemporaryDirectory() as folder:
        args = [*SMALL, f"train.seed={seed}", f"graph_seed={seed}", f"train.steps={steps}", f"optim.warmup={min(50, steps // 4)}"]
        with contextlib.redirect_stderr(io.StringIO()) as log:
            code = run_command(TRAIN_ONFLY, train_onfly.__wrapped__, [*args, f"run_dir={folder}"])  # type: ignore[attr-defined]
        if code:
            raise SystemExit(log.getvalue())
        cfg = PositionsConfig(checkpoint=folder, sequences=sequences)
        trained = open_trained(cfg)
        rows = []
        for factor in FACTORS:
            for scaling in SCALINGS:
                excess = np.asarray(measure(rescaled(trained, scaling, factor), cfg)["excess_loss"])
                within, beyond = float(excess[:LENGTH].mean()), float(excess[LENGTH:].mean())
                rows.append({"seed": seed, "length": factor * LENGTH, "scaling": scaling, "within": within, "beyond": beyond})
        return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: median over seeds of the excess within / beyond the trained length."""
    lengths = [factor * LENGTH for factor in FACTORS]
    lines = [f"| scaling | {' | '.join(f'length {length}' for length in lengths)} |", "|---" * (len(lengths) + 1) + "|"]
    for scaling in SCALINGS:
        cells = []
        for length in lengths:
            mine = [row for row in rows if row["scaling"] == scaling and row["length"] == length]
            cells.append(" / ".join(f"{statistics.median(row[part] for row in mine):.3f}" for part in ("within", "beyond")))
        lines.append(f"| {scaling} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train and measure every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, says nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    steps, seeds = args.steps or (20 if args.quick else 1000), args.seeds or (1 if args.quick else 3)
    rows = [row for seed in range(seeds) for row in one_seed(seed, steps, 8 if args.quick else 64)]
    print(f"excess over the floor, nats per token: positions to {LENGTH} (as trained) / beyond; median of {seeds} seeds\n\n{table(rows)}")
    if args.json:
        args.json.write_text(json.dumps({"steps": steps, "overrides": SMALL, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
