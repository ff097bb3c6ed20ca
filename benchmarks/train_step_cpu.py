"""Training step on a CPU: ours against Hugging Face Llama of equal shape, parameters and weights.

    python benchmarks/train_step_cpu.py [--quick] [--json PATH] [--shape debug|small] [--precision fp32|bf16]
        [--threads N] [--rounds N] [--clock wall|cpu]

Every variant (ours | hf) x (eager | compile) x (fp32 | bf16 autocast) lives in this one process and takes one step a round, in a new
order each round, so that whatever else the machine does falls on all of them. A step is forward, cross-entropy, backward, gradient
clipping and fused AdamW. Reported: the median over rounds, and the median over rounds of the ratio within a round.
On a machine that others use too, ``--threads 1 --clock cpu`` counts only the time in which the process really ran.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model.sizing import resolve
from src.nanollama.model.transformer import Transformer


@dataclass(frozen=True)
class Shape:
    model: ModelConfig
    batch: int
    length: int


SHAPES = {
    "debug": Shape(ModelConfig(vocab_size=32, emb_dim=128, nb_layers=4, nb_heads=4), batch=16, length=256),
    "small": Shape(ModelConfig(vocab_size=32, emb_dim=288, nb_layers=6, nb_heads=6), batch=8, length=512),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PRECISIONS = {"fp32": False, "bf16": True}


def hf_llama(cfg: ModelConfig, length: int) -> nn.Module:
    cfg = resolve(cfg)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.emb_dim,
            intermediate_size=cfg.ffn_dim,
            num_hidden_layers=cfg.nb_layers,
            num_attention_heads=cfg.nb_heads,
            num_key_value_heads=cfg.nb_kv_heads,
            head_dim=cfg.qk_head_dim,
            max_position_embeddings=length,
            rms_norm_eps=cfg.norm_eps,
            tie_word_embeddings=cfg.tie_embeddings,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )


def build_step(kind: str, mode: str, precision: str, shape: Shape) -> Callable[[Tensor], Tensor]:
    """One optimiser step on (B, T + 1) tokens, returning the loss."""
    model: nn.Module = Transformer(shape.model) if kind == "ours" else hf_llama(shape.model, shape.length)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def loss_of(tokens: Tensor) -> Tensor:
        out = model(tokens[:, :-1])
        logits = out if kind == "ours" else out.logits
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    forward = torch.compile(loss_of) if mode == "compile" else loss_of

    def step(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision]):
            loss = forward(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(shape: Shape, modes: list[str], precisions: list[str], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every step, by variant; the two first steps of each (compilation, allocation) are not counted."""
    variants = [f"{kind} {mode} {precision}" for kind in ("ours", "hf") for mode in modes for precision in precisions]
    steps = {name: build_step(*name.split(), shape) for name in variants}
    tokens = torch.randint(required_vocab(shape), (shape.batch, shape.length + 1), generator=torch.Generator().manual_seed(0))
    for step in steps.values():
        step(tokens)
        step(tokens)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(variants, len(variants)):
            start = clock()
            steps[name](tokens)
            seconds[name].append(clock() - start)
    return seconds


def required_vocab(shape: Shape) -> int:
    assert shape.model.vocab_size is not None
    return shape.model.vocab_size


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Median over rounds of how many times more tokens per second ``ours`` does."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def summarise(seconds: dict[str, list[float]]) -> dict[str, float | str]:
    median = {name: statistics.median(times) for name, times in seconds.items()}
    pairs = [name.removeprefix("ours ") for name in median if name.startswith("ours")]
    best = {kind: min((name for name in median if name.startswith(kind)), key=lambda name: median[name]) for kind in ("ours", "hf")}
    return {
        **{f"{name} (s)": round(value, 4) for name, value in median.items()},
        **{f"{name} ratio": round(ratio(seconds, f"ours {name}", f"hf {name}"), 3) for name in pairs},
        "best ours": best["ours"],
        "best hf": best["hf"],
        "best mode ratio": round(ratio(seconds, best["ours"], best["hf"]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="debug shape, eager only, few rounds")
    parser.add_argument("--json", type=Path, help="write the summary there")
    parser.add_argument("--shape", choices=SHAPES, help="one shape only")
    parser.add_argument("--precision", choices=PRECISIONS, help="one precision only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of the process, for one thread")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu adds up the time of all threads, waiting included: use it with --threads 1")
    torch.set_num_threads(args.threads)
    names = [args.shape] if args.shape else ["debug"] if args.quick else list(SHAPES)
    modes = ["eager"] if args.quick else ["eager", "compile"]
    precisions = [args.precision] if args.precision else list(PRECISIONS)
    results = {}
    for name in names:
        seconds = measure(SHAPES[name], modes, precisions, args.rounds or (5 if args.quick else 15), CLOCKS[args.clock])
        results[name] = summarise(seconds)
        print(f"{name}: {SHAPES[name].batch} x {SHAPES[name].length} tokens a step")
        for key, value in results[name].items():
            print(f"  {key:24s} {value}")
    if args.json:
        setting = {"torch": torch.__version__, "threads": args.threads, "clock": args.clock}
        args.json.write_text(json.dumps({**setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
