"""Write a finite data set of a graph, training and held-out sequences, or one for each setup of the config.

    python -m src.apps.gssm.data src/apps/gssm/configs/experiment1/data.yaml

It takes the arguments of the training that is to read it: ``data.sequences`` training sequences of ``data.seq_len`` + 1 tokens and
``eval.sequences`` held-out ones go to ``data.path``, drawn with ``train.seed``. Data that are already there are left as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.nanollama.config import RunFolder, main

from .config import DATA, GssmConfig, data_sets


@main(DATA)
def data(cfg: GssmConfig, run: RunFolder) -> dict[str, Any]:
    """Write every data set that the config asks for and say what is in it."""
    from . import files, graph, kernels
    from .sampler import Sampler

    written: dict[str, Any] = {}
    for one in data_sets(cfg):
        assert one.data.path and one.data.sequences
        path = Path(one.data.path)
        tables = kernels.draw(graph.build(one.gssm, one.alpha_X, one.alpha_Z), one.graph_seed)
        header = files.write(path, Sampler(tables, one.train.seed), one.data.seq_len + 1, one.data.sequences, one.eval.sequences)
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        written[str(path)] = {"bytes": total, **{key: value for key, value in header.items() if key != "graph"}}
        print(
            f"{path}  train {one.data.sequences:,} + test {one.eval.sequences:,} sequences of {header['length']:,} tokens, vocabulary "
            f"{header['vocab_size']}, {files.size(total)}; test sequences that also are in train: {header['equal_sequences']}"
        )
    return {"data_sets": written}


if __name__ == "__main__":
    data()
