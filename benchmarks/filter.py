"""Speed of the exact filter, against the flat forward pass, and of calibration.

    python benchmarks/filter.py [--quick] [--json PATH] [--clock wall|cpu]

``flat`` is hmmlearn's compiled forward pass on the same process with (latents, token) as one hidden state: possible for small graphs
only, since its transition matrix has (S V)^2 entries. Peak memory is that of the whole process.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
from _rounds import CLOCKS, arguments, ratio, save, seconds
from hmmlearn.hmm import CategoricalHMM
from sampler import draw

from src.apps.gssm import calibrate, graph, kernels
from src.apps.gssm.filter import Filter
from src.apps.gssm.measure_config import MeasureConfig
from src.apps.gssm.node import NodeConfig
from src.apps.gssm.sampler import Sampler

GRAPHS = {
    "256 states (4 latents of 4, V=32)": (4, 32, 1e-3, 0.125),
    "256 states, other setting": (4, 32, 5e-2, 1e-3),
    "4,096 states (6 latents of 4, V=64)": (6, 64, 1e-2, 0.1),
    "65,536 states (8 latents of 4, V=64)": (8, 64, 1e-3, 4e-3),
}


def exact(rounds: int, clock: str) -> dict[str, Any]:
    """Microseconds per token of each output."""
    found: dict[str, Any] = {}
    for name, sizes in GRAPHS.items():
        drawn = draw(*sizes)
        shape = (64, 256) if drawn.graph.nb_states <= 256 else (64, 16) if drawn.graph.nb_states <= 4096 else (8, 16)
        tokens, filter_ = Sampler(drawn, 0).sample("train", 0, *shape), Filter(drawn)
        outputs = {"nll": filter_.nll, "entropy": filter_.entropy, "beliefs": filter_.beliefs}
        taken = seconds({key: partial(output, tokens) for key, output in outputs.items()}, rounds, clock)
        found[name] = {key: round(1e6 * statistics.median(times) / tokens.size, 3) for key, times in taken.items()}
    found["peak memory (GB)"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    return found


def against_flat(rounds: int, clock: str) -> dict[str, Any]:
    """Two latents of 4 and 8 tokens: 128 flat states."""
    drawn = draw(2, 8, 0.3, 0.3)
    tokens, filter_ = Sampler(drawn, 0).sample("train", 0, 64, 256), Filter(drawn)
    dense = flat(drawn)
    lengths = [tokens.shape[1]] * len(tokens)
    column = tokens.astype(int).reshape(-1, 1)
    taken = seconds({"ours": lambda: filter_.nll(tokens), "flat": lambda: dense.score(column, lengths)}, rounds, clock)
    assert np.isclose(filter_.nll(tokens).sum(), -dense.score(column, lengths))
    per_token = {key: round(1e6 * statistics.median(times) / tokens.size, 3) for key, times in taken.items()}
    return {**per_token, "ratio": round(ratio(taken["flat"], taken["ours"]), 1)}


def flat(drawn: kernels.Kernels) -> CategoricalHMM:
    (first, second, emission), vocab = drawn.tables, drawn.graph.vocab_size
    states = list(itertools.product(range(4), range(4), range(vocab)))
    joint = np.einsum("axi,bxj,ijy->abxijy", first, second, emission)
    model = CategoricalHMM(n_components=len(states))
    model.startprob_ = joint[0, 0, 0].ravel()
    model.transmat_ = joint.reshape(len(states), len(states))
    model.emissionprob_ = np.eye(vocab)[[x for _, _, x in states]]
    model.n_features = vocab
    return model


def calibration(clock: str) -> dict[str, Any]:
    """Seconds to solve for alpha_Z of the seed graph, on two threads, everything compiled."""
    names = [f"Z{i}" for i in range(4)]
    nodes = [NodeConfig(name=n, state_dim=4, parents=("X",)) for n in names]
    nodes.append(NodeConfig(name="X", state_dim=32, parents=tuple(names)))
    cfg = MeasureConfig(threads=1 if clock == "cpu" else 2)
    found = {}
    for measure, target, tolerance in (("bayes_loss", 1.233, 0.005), ("gzip_legacy", 0.74, 0.002)):
        times = []
        for seed in range(3):
            start = CLOCKS[clock]()
            solved = calibrate.solve(
                lambda a: graph.build(nodes, 1e-3, a), target, measure, graph_seed=seed, tolerance=tolerance, cfg=cfg
            )
            times.append(CLOCKS[clock]() - start)
            assert abs(solved.estimate.value - target) <= tolerance
        found[f"{measure} = {target} ± {tolerance} (s)"] = round(statistics.median(times), 2)
    return found


def main() -> None:
    args = arguments(__doc__)
    rounds, start = 3 if args.quick else 7, time.perf_counter()
    results = {"us per token": exact(rounds, args.clock), "128 flat states": against_flat(rounds, args.clock)}
    if not args.quick:
        results["calibration"] = calibration(args.clock)
    for section, rows in results.items():
        print(section)
        for name, row in rows.items():
            print(f"  {name:40s} {'  '.join(f'{k} {v}' for k, v in row.items()) if isinstance(row, dict) else row}")
    print(f"{time.perf_counter() - start:.0f} s")
    save(args.json, {"clock": args.clock, "results": results})


if __name__ == "__main__":
    main()
