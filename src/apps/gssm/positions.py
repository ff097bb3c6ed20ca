"""Loss of a trained model at every position, against the Bayes-optimal loss there.

    python -m src.apps.gssm.positions checkpoint=RUN [seq_len=512]

The excess at a position is the divergence KL(p(. | x_<t) || model), p from the exact filter, averaged over fresh sequences: the same mean
as loss minus floor, without the noise of the drawn token. A ``seq_len`` above that of the training shows how the model extrapolates.
Writes ``positions.json`` and ``positions.html``.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from src.nanollama.config import RunFolder, main, write_json

from .inspect_config import POSITIONS, PositionsConfig

if TYPE_CHECKING:
    from .inspection import Trained


@main(POSITIONS)
def positions(cfg: PositionsConfig, run: RunFolder) -> dict[str, Any]:
    """Measure, print a short table, write the report."""
    from .inspection import open_trained
    from .pages import positions_page

    trained = open_trained(cfg)
    found = measure(trained, cfg)
    write_json(run.path / "positions.json", found)
    positions_page(found).write(run.path / "positions.html")
    print(table(found))
    print(f"\nreport: {run.path / 'positions.html'}")
    return {key: found[key] for key in ("checkpoint", "mean_bayes_loss", "mean_excess_loss", "mean_excess_loss_se")}


def measure(trained: Trained, cfg: PositionsConfig) -> dict[str, Any]:
    """Per predicted position (the t-th is token t + 1 given t tokens): Bayes loss and excess, nats, with standard errors over sequences."""
    import torch

    tokens = trained.sampler.sample("probe", 0, cfg.sequences, trained.seq_len + 1)
    shape = (cfg.sequences, trained.seq_len)
    bayes, excess = np.empty(shape), np.empty(shape)
    with torch.no_grad():
        for rows, part in trained.batches(tokens, cfg.batch):
            law = trained.filter.predictive(tokens[rows])[:, 1:]
            logs = np.log(law, out=np.zeros_like(law), where=law > 0)
            model = torch.log_softmax(trained.model(part[:, :-1]).double(), dim=-1).cpu().numpy()
            bayes[rows] = -(law * logs).sum(axis=-1)
            excess[rows] = (law * (logs - model)).sum(axis=-1)
    root = np.sqrt(cfg.sequences)
    return {
        "checkpoint": str(trained.path),
        "trained_seq_len": trained.cfg.data.seq_len,
        "sequences": cfg.sequences,
        "bayes_loss": bayes.mean(axis=0).tolist(),
        "bayes_loss_se": (bayes.std(axis=0, ddof=1) / root).tolist(),
        "excess_loss": excess.mean(axis=0).tolist(),
        "excess_loss_se": (excess.std(axis=0, ddof=1) / root).tolist(),
        "mean_bayes_loss": float(bayes.mean()),
        "mean_excess_loss": float(excess.mean()),
        "mean_excess_loss_se": float(excess.mean(axis=1).std(ddof=1) / root),
    }


def octaves(length: int) -> list[slice]:
    """Positions 1, 2, 3-4, 5-8, .. as slices from 0."""
    edges = [0, *(2**k for k in range((length - 1).bit_length())), length] if length > 1 else [0, length]
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def table(found: dict[str, Any]) -> str:
    """Means over octaves of positions, for a terminal."""
    lines = [f"{'positions':>12}{'Bayes loss':>12}{'excess':>10}"]
    for part in octaves(len(found["bayes_loss"])):
        name = f"{part.start + 1}" if part.stop == part.start + 1 else f"{part.start + 1}-{part.stop}"
        lines.append(f"{name:>12}{np.mean(found['bayes_loss'][part]):>12.4f}{np.mean(found['excess_loss'][part]):>10.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    positions()
