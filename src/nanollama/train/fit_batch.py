"""Find the largest micro-batch that fits into memory for a training's config, and say how well it uses the device.

    python -m src.nanollama.train.fit_batch script=MODULE [memory=8G] [run_dir=PATH] config=FILE [key=value ...]

Every size is tried for real: a few training steps in a fresh process, whose peak memory is measured (a GPU's allocator, or on a CPU the
process with everything in it). ``memory`` is the bound; default: 95 % of the GPU, or what this machine has available now. Prints a table
and, with ``run_dir``, writes ``fit_batch.json`` there. Exit codes: 0 done, 2 wrong input, 3 nothing fits.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import ConfigError, RunFailed, compose, write_json
from ..config.compose import as_dict
from ..config.failure import out_of_memory
from ..config.main import entry_of
from ..config.schema import ModelConfig, OptimConfig, TrainConfig
from ..config.tool import run_tool
from ..profiler import flops

# From the second step on the optimiser's state is there too, and on a CPU the largest batches take half a minute each; what is
# compiled may be compiled once more, and a graph is recorded after a few.
STEPS = {"eager": 2, "compile": 3, "cudagraph": 7}
NEAR = 0.95  # of the bound: with less than 5 % more sequences promised, the search ends there instead of stepping over it
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Trial:
    """One size: peak memory in bytes and speed; None where memory ran out."""

    batch: int
    peak: int | None
    tokens_per_s: float | None = None


def search(measure: Callable[[int], Trial], bound: int, limit: int = 1 << 20) -> list[Trial]:
    """All trials on the way to the largest batch whose peak is within ``bound``, to within 5 %.

    Memory grows linearly with the batch, so each guess is what a line through the last two fits promises, at most eight times the size
    that is known to fit (to stay near the bound on machines where passing it hurts).
    """
    trials = [measure(1)]
    low, high = trials[0], limit + 1  # fits; does not
    if low.peak is None or low.peak > bound:
        return trials
    before, guess = low, 2
    while guess < high and high - low.batch > max(1, low.batch // 20):
        trial = measure(guess)
        trials.append(trial)
        if trial.peak is None or trial.peak > bound:
            high = guess
            guess = (low.batch + high) // 2
            continue
        before, low = low, trial
        assert low.peak is not None and before.peak is not None
        slope = max(1.0, (low.peak - before.peak) / (low.batch - before.batch))
        promised = low.batch + int((bound - low.peak) / slope)
        if low.peak > NEAR * bound and promised - low.batch <= max(1, low.batch // 20):
            break
        guess = min(max(promised, low.batch + 1), 8 * low.batch, high - 1)
    return trials


def best(trials: Sequence[Trial], bound: int) -> Trial:
    """The largest that fits. RunFailed if none does."""
    fitting = [trial for trial in trials if trial.peak is not None and trial.peak <= bound]
    if not fitting:
        peak = trials[0].peak
        took = "ran out of memory" if peak is None else f"takes {gib(peak)}"
        raise RunFailed(f"not even one sequence fits: it {took} of {gib(bound)}; a smaller model or data.seq_len would", status="oom")
    return max(fitting, key=lambda trial: trial.batch)


# --- one trial, in a process of its own ------------------------------------------------------------------------------------------


def in_child(cfg: Any, batch: int) -> Trial:
    """Measure one size in a fresh process."""
    command = [sys.executable, "-m", "src.nanollama.train.fit_batch", "--measure"]
    out = subprocess.run(command, input=json.dumps(parts_of(cfg, batch)), capture_output=True, text=True)
    if out.returncode == 0:
        return Trial(batch, **json.loads(out.stdout.splitlines()[-1]))
    if out.returncode < 0 or out_of_memory(out.stderr):
        return Trial(batch, None)
    raise RunFailed(f"a step with {batch} sequences failed:\n{out.stderr}")


def parts_of(cfg: Any, batch: int) -> dict[str, Any]:
    """What ``measure`` has to know of a training's config."""
    asked = as_dict(cfg)
    data = {"seq_len": asked["data"]["seq_len"], "documents": asked["data"].get("document_masks", False)}
    return {key: asked[key] for key in ("model", "train", "optim")} | data | {"batch": batch}


def measure(parts: dict[str, Any]) -> dict[str, float]:
    """A few steps on random tokens, with masks for documents if the data have them: peak bytes and tokens per second (of the last one)."""
    import torch

    from ..distributed import Ranks, pick_device
    from ..model.transformer import Transformer
    from ..profiler.memory import peak
    from .state import TrainState
    from .step import Step

    batch, model_cfg = parts["batch"], ModelConfig(**parts["model"])
    train = replace(TrainConfig(**parts["train"]), micro_batch=batch)
    here = Ranks(0, 1, pick_device(train.device))
    state = TrainState(Transformer(model_cfg).to(here.device), train, OptimConfig(**parts["optim"]), here)
    step = Step(state, train, OptimConfig(**parts["optim"]), here)
    for i in range(STEPS[train.mode]):
        tokens = torch.randint(model_cfg.vocab_size or 1, (batch, parts["seq_len"] + 1), device=here.device)
        if parts["documents"]:
            tokens = torch.stack([tokens, torch.zeros_like(tokens)], dim=1)
        float(step.norm)  # wait for the device
        began = time.perf_counter()
        step(i, tokens)
        float(step.norm)
    return {"peak": peak(here.device), "tokens_per_s": batch * parts["seq_len"] / (time.perf_counter() - began)}


# --- the command -----------------------------------------------------------------------------------------------------------------


def memory_bound(text: str | None, device: str) -> tuple[int, str]:
    """Bytes, and where the number comes from."""
    if text is not None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])", text)
        if not match:
            raise ConfigError(f"memory={text}: write a number and a unit, such as memory=8G (K, M, G or T)")
        return int(float(match[1]) * UNITS[match[2]]), "asked for"
    import psutil
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return int(0.95 * torch.cuda.mem_get_info()[1]), "95 % of the GPU"
    return psutil.virtual_memory().available, "available on this machine now"


def gib(value: int) -> str:
    """Bytes for people."""
    return f"{value / UNITS['G']:.2f} GiB"


def utilisation(cfg: Any, trial: Trial) -> dict[str, float | None]:
    """Shares of the device's peak; None on a device whose peak is not known."""
    import torch

    from .journal import UTILISATION

    cuda = cfg.train.device != "cpu" and torch.cuda.is_available()
    peak = flops.peak(torch.cuda.get_device_name(), cfg.train.precision) if cuda else None
    return {name: getattr(flops, name)(cfg.model, cfg.data.seq_len, trial.tokens_per_s, peak) for name in UTILISATION}


def _check(cfg: Any) -> None:
    """What a training of one process would refuse, before any is started."""
    from ..distributed import Ranks, pick_device
    from .step import check_mode

    check_mode(cfg, Ranks(0, 1, pick_device(cfg.train.device)))


def fit(argv: Sequence[str]) -> None:
    """Search, print, write."""
    own = dict(arg.split("=", 1) for arg in argv if arg.startswith(("script=", "memory=", "run_dir=")))
    if "script" not in own:
        raise ConfigError("name the training: script=src.apps.gssm.train (see --help)")
    cfg = compose(entry_of(own["script"]), [arg for arg in argv if arg.partition("=")[0] not in own])
    _check(cfg)
    bound, origin = memory_bound(own.get("memory"), cfg.train.device)
    print(f"bound: {gib(bound)}, {origin}\n{'batch':>8} {'peak':>12} {'tokens/s':>12}")

    def shown(batch: int) -> Trial:
        trial = in_child(cfg, batch)
        peak = "out of memory" if trial.peak is None else gib(trial.peak) + (" too much" if trial.peak > bound else "")
        print(f"{batch:8d} {peak:>12} {trial.tokens_per_s or 0:12,.0f}", flush=True)
        return trial

    trials = search(shown, bound)
    found = best(trials, bound)
    assert found.peak is not None
    shares = utilisation(cfg, found)
    known = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share is not None)
    print(
        f"train.micro_batch={found.batch} fits: {gib(found.peak)}, {found.peak / bound:.0%} of the bound" + (f", {known}" if known else "")
    )
    if "run_dir" in own:
        Path(own["run_dir"]).mkdir(parents=True, exist_ok=True)
        result = {"micro_batch": found.batch, "bound": bound, "bound_is": origin, "peak": found.peak, **shares}
        write_json(Path(own["run_dir"]) / "fit_batch.json", {**result, "trials": [vars(trial) for trial in trials]})


def main(argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    if list(argv) == ["--measure"]:
        print(json.dumps(measure(json.load(sys.stdin))))
        return 0
    return run_tool(argv, __doc__, fit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
