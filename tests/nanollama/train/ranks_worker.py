"""Trainings of two ranks, in one process group so that torchrun has to start only once; ``test_ranks.py`` looks at what they leave."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from toy_training import Counting, ToyConfig, run_toy

from src.nanollama.config import Requeue


def variant(**train: object) -> ToyConfig:
    cfg = ToyConfig()
    model = replace(cfg.model, nb_layers=2, tie_embeddings=True)
    micro = 4 // int(os.environ.get("WORLD_SIZE", 1)) // 2  # two micro-batches a step
    return replace(cfg, model=model, train=replace(cfg.train, micro_batch=micro, **train))


RUNS = {
    "ddp": variant(),
    "fsdp": variant(parallel="fsdp"),
    "bf16": variant(parallel="fsdp", precision="bf16"),
    "muon": replace(variant(parallel="fsdp"), optim=replace(ToyConfig().optim, name="muon", schedule="constant")),
}


class SignalToLastRank(Counting):
    """Of all ranks, only the last one is told to stop, while it draws its part of step 4."""

    def batch(self, split, start, count):
        if start == 4 * 4 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(split, start, count)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for name, cfg in RUNS.items():
        run_toy(folder / name, cfg)
    run_toy(folder / "resumed-by-two", variant(parallel="fsdp"))  # one process did the first half
    run_toy(folder / "resumed-by-one", variant(parallel="fsdp", steps=6))
    try:
        run_toy(folder / "stopped", variant(), SignalToLastRank())
    except Requeue:
        (folder / f"rank-{dist.get_rank()}-requeued").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
