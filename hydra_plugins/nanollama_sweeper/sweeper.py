"""``hydra/sweeper=mixbo``: the mixture sweep for ``-m`` on any command that mixes domains by ``data.weights``.

    python -m src.apps.mixbo.train -m hydra/sweeper=mixbo hydra.sweeper.strategy=kg model=pico,nano,tiny train.steps=50,100,200

Choices of ``model`` and ``train.steps`` are the fidelities, the last of each the target; everything else goes to every trial as it
is. Hydra runs this module at every start, so nothing heavy is imported here; and before it is in ``sys.modules``, so no postponed
annotations.
"""

import sys
from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class MixboConf:
    """The main knobs of ``src.apps.mixbo.sweep``; a study is resumed by the same command, or by ``run_dir``."""

    _target_: str = "hydra_plugins.nanollama_sweeper.sweeper.MixboSweeper"
    strategy: str = "kg"
    division_coefficient: float = 1.0
    seed: int = 0
    full_runs: Optional[float] = None  # noqa: UP045
    flops: Optional[float] = None  # noqa: UP045
    trials: Optional[int] = None  # noqa: UP045
    slots: int = 2
    storage: Optional[str] = None  # noqa: UP045


ConfigStore.instance().store(group="hydra/sweeper", name="mixbo", node=MixboConf(), provider="nanollama")


class MixboSweeper(Sweeper):
    """Translates a multirun's command line for ``src.apps.mixbo.sweep``, which does the work."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.task_function, self.sweep_dir = task_function, str(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> Any:
        from src.apps.mixbo.sweeper import run

        folder = self.sweep_dir
        return run(self._module(), arguments, self.options, None if folder.startswith("multirun/") else folder)

    def _module(self) -> str:
        name = self.task_function.__module__
        return sys.modules["__main__"].__spec__.name if name == "__main__" else name  # type: ignore[union-attr]


