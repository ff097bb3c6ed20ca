"""Training step on a GPU: tokens per second and utilisation of the whole loop's step (forward, loss, backward, clip, fused AdamW).

    python benchmarks/train_step_gpu.py [--quick] [--json PATH]

Without CUDA it says so and ends with code 0. Medians over rounds; every mode of a shape takes its turn in each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from src.nanollama.config.schema import ModelConfig, OptimConfig, TrainConfig
from src.nanollama.distributed import Ranks
from src.nanollama.model.sizing import resolve
from src.nanollama.model.transformer import Transformer
from src.nanollama.profiler import flops
from src.nanollama.train.state import TrainState
from src.nanollama.train.step import Step


@dataclass(frozen=True)
class Case:
    """A shape, the modes to compare, and what the project wants of the best one."""

    model: ModelConfig
    batch: int
    length: int
    modes: tuple[str, ...]
    target: str


CASES = {
    "12x12x288": Case(ModelConfig(vocab_size=32, emb_dim=288, nb_layers=12, nb_heads=12), 32, 2048, ("eager", "compile", "cudagraph"),
                      "at least 1.2 M tokens/s"),
    "gssm-debug": Case(ModelConfig(vocab_size=32, emb_dim=128, nb_layers=4, nb_heads=4), 16, 256, ("eager", "compile", "cudagraph"),
                       "at least 10 M tokens/s with cudagraph"),
    "gpt2-small": Case(ModelConfig(vocab_size=50304, emb_dim=768, nb_layers=12, nb_heads=12), 32, 1024, ("compile",), "mfu_palm >= 45 %"),
}  # fmt: skip


def build(case: Case, mode: str) -> Step:
    here, cfg = Ranks(0, 1, torch.device("cuda")), resolve(case.model)
    train, optim = TrainConfig(precision="bf16", mode=mode, steps=10**6, micro_batch=case.batch), OptimConfig()  # type: ignore[arg-type]
    return Step(TrainState(Transformer(cfg).cuda(), train, optim, here), train, optim, here)


def rounds(case: Case, count: int, steps: int) -> dict[str, float]:
    """Median tokens per second of each mode."""
    tokens = torch.randint(case.model.vocab_size or 1, (case.batch, case.length + 1), device="cuda")
    parts = {mode: build(case, mode) for mode in case.modes}
    for step in parts.values():
        for i in range(6):  # compiles and records
            step(i, tokens)
    speeds: dict[str, list[float]] = {mode: [] for mode in case.modes}
    for _ in range(count):
        for mode, step in parts.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            for i in range(steps):
                step(100 + i, tokens)
            torch.cuda.synchronize()
            speeds[mode].append(steps * case.batch * case.length / (time.perf_counter() - began))
    return {mode: statistics.median(found) for mode, found in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("train_step_gpu: skipped, torch sees no CUDA device")
        return
    name = torch.cuda.get_device_name()
    peak, results = flops.peak(name), []
    print(f"{name}, torch {torch.__version__}\n{'shape':<12} {'mode':<10} {'tokens/s':>12} {'mfu_causal':>10} {'mfu_palm':>10}")
    for shape, case in CASES.items():
        for mode, speed in rounds(case, 3 if args.quick else 9, 10 if args.quick else 50).items():
            causal, palm = (f(resolve(case.model), case.length, speed, peak) for f in (flops.mfu_causal, flops.mfu_palm))
            shown = [f"{share:10.1%}" if share is not None else f"{'-':>10}" for share in (causal, palm)]
            print(f"{shape:<12} {mode:<10} {speed:12,.0f} {' '.join(shown)}  {case.target}", flush=True)
            results.append({"shape": shape, "mode": mode, "tokens_per_s": speed, "mfu_causal": causal, "mfu_palm": palm})
    if args.json:
        args.json.write_text(json.dumps({"device": name, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
