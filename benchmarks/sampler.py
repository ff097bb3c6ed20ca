"""Sampling speed: ours against a numpy sampler that is vectorised over the batch, and against hmmlearn.

    python benchmarks/sampler.py [--quick] [--json PATH] [--clock wall|cpu]

Graphs: the seed experiment's (4 latents of 4 states, 32 tokens) and its larger one (8 latents, 64 tokens, a table of 16 MiB). ``numpy``
advances all sequences of a batch one step at a time and draws by counting the cumulative probabilities below a uniform number.
``hmmlearn`` samples a flat hidden Markov model with as many states as the latents have together (256) and as many symbols.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from _rounds import arguments, ratio, save, seconds
from hmmlearn.hmm import CategoricalHMM

from src.apps.gssm import graph, kernels
from src.apps.gssm.node import NodeConfig
from src.apps.gssm.sampler import Sampler

GRAPHS = {"4 latents, V=32": (4, 32, 1e-3, 0.125), "8 latents, V=64": (8, 64, 1e-3, 4e-3)}
LENGTH = 2048
DEMAND = 1.5e6  # tokens per second of a training to keep ahead of


def draw(latents: int, vocab: int, alpha_X: float, alpha_Z: float) -> kernels.Kernels:
    names = [f"Z{i}" for i in range(latents)]
    nodes = [NodeConfig(name=n, state_dim=4, parents=("X",)) for n in names]
    nodes.append(NodeConfig(name="X", state_dim=vocab, parents=tuple(names)))
    return kernels.draw(graph.build(nodes, alpha_X, alpha_Z), 0)


def numpy_sampler(drawn: kernels.Kernels, batch: int, length: int) -> Callable[[], Any]:
    """The plain way in numpy, written for this graph alone: latents read (self, X), X reads all latents."""
    *latents, emission = [np.cumsum(table, axis=-1) for table in drawn.tables]
    shape = emission.shape[:-1]
    emission = emission.reshape(-1, emission.shape[-1])
    rng = np.random.default_rng(0)

    def run() -> np.ndarray:
        states, x = np.zeros((len(latents), batch), np.intp), np.zeros(batch, np.intp)
        out = np.empty((batch, length), np.uint8)
        for t in range(length):
            uniform = rng.random((len(latents) + 1, batch, 1))
            for i, table in enumerate(latents):
                states[i] = (table[states[i], x, :-1] < uniform[i]).sum(axis=1)
            x = (emission[np.ravel_multi_index(tuple(states), shape), :-1] < uniform[-1]).sum(axis=1)
            out[:, t] = x
        return out

    return run


def flat_hmm(vocab: int) -> CategoricalHMM:
    rng = np.random.default_rng(0)
    model = CategoricalHMM(n_components=256)
    model.startprob_ = np.full(256, 1 / 256)
    model.transmat_, model.emissionprob_ = (rng.dirichlet(np.ones(n), 256) for n in (256, vocab))
    model.n_features = vocab
    return model


def contenders(drawn: kernels.Kernels, quick: bool) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """What to time, and how many tokens each draws."""
    sampler, pair = Sampler(drawn, 0), Sampler(drawn, 0, threads=2)
    short = 256 if quick else LENGTH
    runs: dict[str, Callable[[], Any]] = {f"ours, batch {b}": partial(sampler.sample, "train", 0, b, LENGTH) for b in (16, 64, 256)}
    tokens = {f"ours, batch {b}": b * LENGTH for b in (16, 64, 256)}
    runs["ours, batch 256, 2 threads"], tokens["ours, batch 256, 2 threads"] = partial(pair.sample, "train", 0, 256, LENGTH), 256 * LENGTH
    runs["numpy, batch 16"], tokens["numpy, batch 16"] = numpy_sampler(drawn, 16, short), 16 * short
    runs["hmmlearn, 256 states"], tokens["hmmlearn, 256 states"] = partial(flat_hmm(sampler.vocab_size).sample, short), short
    return runs, tokens


def measure(drawn: kernels.Kernels, quick: bool, clock: str) -> dict[str, Any]:
    runs, tokens = contenders(drawn, quick)
    taken = seconds(runs, 3 if quick else 9, clock)
    per_token = {name: [s / tokens[name] for s in times] for name, times in taken.items()}
    return {
        "ns_per_token": {name: round(1e9 * statistics.median(times), 2) for name, times in per_token.items()},
        "ms_16x2048": round(1e3 * statistics.median(taken["ours, batch 16"]), 3),
        "times_numpy_at_batch_16": round(ratio(per_token["numpy, batch 16"], per_token["ours, batch 16"]), 1),
        "times_hmmlearn": round(ratio(per_token["hmmlearn, 256 states"], per_token["ours, batch 16"]), 1),
        "speedup_of_2_threads": round(ratio(per_token["ours, batch 256"], per_token["ours, batch 256, 2 threads"]), 2),
        "cores_to_feed_1.5M_tokens_per_s": round(DEMAND * statistics.median(per_token["ours, batch 64"]), 4),
    }


def main() -> None:
    args = arguments(__doc__)
    results = {}
    for name, sizes in GRAPHS.items():
        results[name] = measure(draw(*sizes), args.quick, args.clock)
        print(name)
        for key, value in results[name].items():
            for label, number in value.items() if isinstance(value, dict) else [(key, value)]:
                print(f"  {label:34s} {number:>12,}" + (" ns/token" if isinstance(value, dict) else ""))
    save(args.json, {"clock": args.clock, "results": results})


if __name__ == "__main__":
    main()
