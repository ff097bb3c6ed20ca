"""A sampler of the debug graph that starts fast, for tests in fresh processes."""

from src.apps.gssm import graph, kernels
from src.apps.gssm.config import TRAIN
from src.apps.gssm.sampler import Sampler
from src.nanollama.config import compose


def sampler(alpha: float = 0.3, seed: int = 3) -> Sampler:
    """Neither compiled code nor torch."""
    cfg = compose(TRAIN, ["experiment=debug", f"alpha_X={alpha}"])
    return Sampler(kernels.draw(graph.build(cfg.gssm, cfg.alpha_X, cfg.alpha_Z), 1), seed, backend="numpy")
