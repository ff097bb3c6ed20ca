"""Find the data mixture that is best for the largest model, from small and short runs; or the way in which a model should grow.

python -m src.apps.mixbo.sweep                                     # real trainings on this machine
python -m src.apps.mixbo.sweep objective=simulator strategy=kg     # a simulated study, in seconds
python -m src.apps.mixbo.sweep strategy=greedy experiment=lobo_attnhead_search
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from src.nanollama.config import RunFolder, main

from .config import SWEEP, SweepConfig
from .strategies import GREEDY

if TYPE_CHECKING:
    from .jobs import Launch
    from .parts import Parts


@main(SWEEP)
def sweep(cfg: SweepConfig, run: RunFolder, launch: Launch | None = None) -> dict[str, Any]:
    """Run or resume the study in ``run``, its trainings in batches by ``launch`` if given; returns what ``best.json`` says."""
    from threadpoolctl import threadpool_limits

    from src.nanollama.launcher.signals import stop_flag

    from .controller import Controller

    parts = _parts(cfg, run, launch)

    # One thread: the matrices are small, and the machine's cores belong to the trials.
    with threadpool_limits(1), stop_flag() as stop, parts.progress, closing(parts.watch):
        reason = Controller(parts.ask, parts.study, parts.runner, parts.limits, parts.watch).run(stop)
        parts.watch(parts.study.records())
    parts.progress.conclude(parts.watch.answers, reason)
    return {**parts.watch.answers, "stopped_because": reason}


def _parts(cfg: SweepConfig, run: RunFolder, launch: Launch | None) -> Parts[Any, Any]:
    """Growth decides without torch, which takes seconds to load."""
    if cfg.strategy.name == GREEDY:
        from .growth.parts import growth

        return growth(cfg, run)
    import torch

    from .mixture_search import mixture_search

    torch.set_num_threads(1)
    return mixture_search(cfg, run, launch)


if __name__ == "__main__":
    sweep()
