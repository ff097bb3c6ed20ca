"""``hydra/sweeper=mixbo``: the mixture sweep for ``-m`` on any command that mixes domains by ``data.weights``.

    python -m src.apps.mixbo.train -m hydra/sweeper=mixbo hydra.sweeper.strategy=kg model=pico,nano,tiny train.steps=50,100,200

Choices of ``model`` and ``train.steps`` are the fidelities, the last of each the target; everything else goes to every trial as it
is. Trials run on our local pool, or in batches of ``slots`` by the ``hydra/launcher`` that is named. Hydra runs this module at every
start, so nothing heavy is imported here; and before it is in ``sys.modules``, so no postponed annotations.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's default: nobody asked for it


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
        self.launched = 0  # jobs so far

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from src.apps.mixbo.sweeper import run

        folder = str(self.config.hydra.sweep.dir)
        launch = None if self.config.hydra.launcher._target_ == BASIC else self._launch
        return run(self._module(), arguments, self.options, None if folder.startswith("multirun/") else folder, launch)

    def _launch(self, jobs: Mapping[Path, Sequence[str]]) -> None:
        """Have Hydra's launcher carry out jobs, run folder -> overrides. What it returns is not needed: results are in the folders."""
        from hydra.core.plugins import Plugins

        from src.nanollama.config import quoted

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        overrides = []
        for run_dir, asked in jobs.items():
            where = run_dir.absolute()
            folder = [f"hydra.sweep.dir={quoted(where.parent)}", f"hydra.sweep.subdir={quoted(where.name)}", "hydra.output_subdir=null"]
            overrides.append([*asked, *folder])
        launcher.launch(overrides, self.launched)
        self.launched += len(jobs)

    def _module(self) -> str:
        name = self.task_function.__module__
        return sys.modules["__main__"].__spec__.name if name == "__main__" else name  # type: ignore[union-attr]
