"""Trainings of two ranks, in one process group so that torchrun has to start only once; ``test_ranks.py`` looks at what they leave."""

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import Counting, SignalDuringEvaluation, ToyConfig, run_toy

from src.nanollama.config import Requeue
from src.nanollama.config.schema import CheckpointConfig
from src.nanollama.distributed import ranks
from src.nanollama.model.transformer import Transformer
from src.nanollama.train.state import TrainState
from src.nanollama.train.step import Step


def variant(**train: object) -> ToyConfig:
    cfg = ToyConfig()
    model = replace(cfg.model, nb_layers=2, tie_embeddings=True)
    micro = 4 // int(os.environ.get("WORLD_SIZE", 1)) // 2  # two micro-batches a step
    probing = replace(cfg.eval, probe=("layers.*", "layers.*.mixer"), probe_gradients=True)
    return replace(cfg, model=model, train=replace(cfg.train, micro_batch=micro, **train), eval=probing)


RUNS = {
    "ddp": variant(),
    "fsdp": variant(parallel="fsdp"),
    "bf16": variant(parallel="fsdp", precision="bf16"),
    "muon": replace(variant(parallel="fsdp"), optim=replace(ToyConfig().optim, name="muon", schedule="constant")),
}
SAME_AS_DDP = {  # in one process they would be the same training once more
    "compile-ddp": variant(mode="compile"),
    "compile-fsdp": variant(parallel="fsdp", mode="compile"),
    "saved-beside": replace(variant(), checkpoint=CheckpointConfig(asynchronous=True, period=4, keep=5)),
    "evaluated-beside": replace(variant(), eval=replace(ToyConfig().eval, period=8, asynchronous=True)),
}


def from_llama(folder: Path) -> ToyConfig:
    """Shards that begin with the weights of a Hugging Face folder."""
    return replace(variant(parallel="fsdp"), checkpoint=CheckpointConfig(init_from=str(folder)))


class SignalToLastRank(Counting):
    """Of all ranks, only the last one is told to stop, while it draws its part of step 4."""

    def batch(self, split, start, count):
        if start == 4 * 4 + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(split, start, count)


class Collectives(TorchDispatchMode):
    """Counts what ranks do together, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.found[function._opname] += 1
        return function(*args, **kwargs or {})


def collectives(parallel: str, micro_batch: int) -> Counter[str]:
    """Those of one step."""
    cfg = variant(parallel=parallel)
    cfg = replace(cfg, train=replace(cfg.train, micro_batch=micro_batch))
    with ranks("cpu") as here:
        model = Transformer(cfg.model)
        model.init_weights(0)
        here.shard(model, model.layers, parallel)
        step = Step(TrainState(model, cfg.train, cfg.optim, here), cfg.train, cfg.optim, here)
        tokens = torch.from_numpy(Counting().batch("train", 0, 4)).long()
        step(0, tokens)  # DDP plans its buckets in the first one
        with Collectives() as counted:
            step(1, tokens)
    return counted.found


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.compile = partial(torch.compile, backend="aot_eager")  # how graphs meet the ranks; making kernels of them takes a minute
    sys.modules["__main__"].__spec__ = ModuleSpec("toy_evaluation", None)  # the command that evaluates checkpoints
    for name, cfg in (RUNS | SAME_AS_DDP).items():
        run_toy(folder / name, cfg)
    found = {parallel: [collectives(parallel, micro_batch) for micro_batch in (4, 1)] for parallel in ("ddp", "fsdp")}
    (folder / "collectives.json").write_text(json.dumps(found))
    run_toy(folder / "resumed-by-two", variant(parallel="fsdp"))  # one process did the first half
    run_toy(folder / "from-llama", from_llama(folder / "llama"))
    run_toy(folder / "resumed-by-one", variant(parallel="fsdp", steps=6))
    try:
        run_toy(folder / "stopped", variant(), SignalToLastRank())
    except Requeue:
        (folder / f"rank-{dist.get_rank()}-requeued").touch()
    tokens = SignalDuringEvaluation(at=2, number=signal.SIGTERM) if dist.get_rank() else None
    try:
        run_toy(folder / "stopped-in-evaluation", variant(parallel="fsdp"), tokens=tokens)
    except Requeue:
        (folder / f"rank-{dist.get_rank()}-requeued-in-evaluation").touch()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
