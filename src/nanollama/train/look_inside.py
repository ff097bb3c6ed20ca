"""What ``eval.probe`` names, looked at on held-out sequences: activations, gradients, attention entropies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..distributed import Ranks
from ..model.probe import probe, statistics
from ..model.transformer import Transformer
from .evaluate import HeldOut
from .resolve import Training
from .step import NextToken, precision

SEQUENCES = 4  # looked at, however many fit in a micro-batch: records of any number of ranks compare


def look_inside(model: Transformer, cfg: Training, held_out: Mapping[str, HeldOut], ranks: Ranks) -> dict[str, dict[str, float]]:
    """A record of the name ``probe``: ``probe.statistics`` of the first sequences of the first split; none without ``eval.probe``.

    Gradients are those of the mean loss; nothing of them stays. All ranks look at the same sequences, so that a sharded model is gathered
    by all of them together.
    """
    if not cfg.eval.probe:
        return {}
    gradients = cfg.eval.probe_gradients
    tokens = next(iter(held_out.values())).tokens[:SEQUENCES]
    batch = torch.from_numpy(tokens.astype(np.int64)).to(ranks.device)
    # compiled blocks would not call the hooks
    with torch.compiler.set_stance("force_eager"), probe(model, *cfg.eval.probe, gradients=gradients, entropy=True) as seen:
        with precision(cfg.train.precision, ranks.device), torch.set_grad_enabled(gradients):
            loss = NextToken(model)(batch)
        if gradients:
            count = len(tokens) * cfg.data.seq_len
            (loss * count).backward()  # of the sum over tokens: in half precision the gradients of the mean would vanish
            model.zero_grad(set_to_none=True)
            seen.gradients = {name: gradient.float() / count for name, gradient in seen.gradients.items()}
    return {"probe": statistics(seen)}
