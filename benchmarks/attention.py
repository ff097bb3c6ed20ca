"""Which attention to use on the machine at hand: every kernel the model can run, timed side by side.

    python benchmarks/attention.py [--quick] [--json PATH] [--threads N] [--rounds N] [--clock wall|cpu]

CPU, plain causal, rotary embedding included: SDPA's fused kernel and the compiled passes of ``model/fused_attention.py``.
GPU, packed documents in a window: SDPA with a dense mask against FlexAttention. Forward and backward together; medians of
interleaved rounds. The last column is what the model does by itself: it should name the faster one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from src.nanollama.config.schema import ModelConfig
from src.nanollama.model import masks, rope
from src.nanollama.model.attention import _flex, fastest
from src.nanollama.model.fused_attention import attend, plain_attend
from src.nanollama.model.rope_scaling import inverse_frequencies

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LONG = [(1, 4096, 8, 64), (1, 8192, 8, 64)]
CPU_SHAPES = [(16, 256, 4, 32), (8, 512, 6, 48), (4, 1024, 6, 48), (2, 2048, 12, 24), (2, 2048, 8, 64), *LONG]  # B, T, H, D
GPU_SHAPES = [(32, 512, 6, 48), (16, 2048, 12, 24), (8, 2048, 12, 64), (2, 8192, 12, 64)]

Case = dict[str, Callable[[], Tensor]]


def cpu_case(batch: int, length: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Case, Tensor]:
    qkv = torch.randn(batch, length, 3 * heads * dim, dtype=dtype, requires_grad=True)
    cos, sin = rope.rotation(torch.arange(length), inverse_frequencies(ModelConfig(qk_head_dim=dim)), 1.0, dtype)

    return {
        "sdpa": lambda: plain_attend(qkv, cos, sin, heads, heads),
        "native": lambda: attend(qkv, cos, sin, heads, heads),
    }, qkv


def gpu_case(batch: int, length: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Case, Tensor]:
    qkv = torch.randn(3, batch, heads, length, dim, dtype=dtype, device="cuda", requires_grad=True)
    documents = (torch.arange(length, device="cuda") // 300).expand(batch, -1)
    sees = masks.rule(documents, window=length // 2)
    dense, sparse = masks.dense(sees, batch, length, qkv.device), masks.sparse(sees, batch, length, qkv.device)
    return {
        "sdpa": lambda: F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=dense),
        "flex": lambda: _flex()(*qkv.unbind(0), block_mask=sparse),
    }, qkv


def measure(case: Case, leaf: Tensor, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of forward and backward by kernel."""
    seconds: dict[str, list[float]] = {name: [] for name in case}
    for i in range(rounds + 2):
        for name, kernel in case.items():
            leaf.grad = None
            start = clock()
            y = kernel()
            y.backward(y.detach())
            if leaf.is_cuda:
                torch.cuda.synchronize()
            if i >= 2:
                seconds[name].append(clock() - start)
    return {name: round(1e3 * statistics.median(times), 2) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two shapes, few rounds")
    parser.add_argument("--json", type=Path, help="write the table there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: time of the process, for one thread on a busy machine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = torch.cuda.is_available()
    shapes, build = (GPU_SHAPES, gpu_case) if on_gpu else (CPU_SHAPES, cpu_case)
    rows = []
    print(f"{'B':>4}{'T':>6}{'H':>4}{'D':>4}  {'precision':10}{'kernels, ms':46}{'faster':9}the model uses")
    for shape in shapes[:2] if args.quick else shapes:
        for dtype in (torch.float32, torch.bfloat16):
            torch.compiler.reset()  # FlexAttention is compiled for every shape by itself, as in a training
            case, leaf = build(*shape, dtype)
            times = measure(case, leaf, args.rounds or (3 if args.quick else 11), CLOCKS[args.clock])
            uses = "flex" if on_gpu else fastest(leaf)
            faster = min(times, key=lambda name: times[name])
            rows.append({"shape": shape, "precision": str(dtype).removeprefix("torch."), "ms": times, "faster": faster, "uses": uses})
            table = ", ".join(f"{name} {value}" for name, value in times.items())
            sizes = "".join(f"{n:>{width}}" for n, width in zip(shape, (4, 6, 4, 4), strict=True))
            print(f"{sizes}  {rows[-1]['precision']:10}{table:46}{faster:9}{uses}")
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
