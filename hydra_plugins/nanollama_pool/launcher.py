"""``hydra/launcher=pool``: the jobs of a multirun as fresh local processes, a bounded number at a time, without barriers.

Hydra runs this module at every start, so nothing heavy is imported here; and before it is in ``sys.modules``, so no postponed
annotations.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class PoolConf:
    """``slots``: jobs at a time (default: as many as fit). ``timeout_s``: of one job. ``retries``: of a job killed from outside."""

    _target_: str = "hydra_plugins.nanollama_pool.launcher.PoolLauncher"
    slots: Optional[int] = None  # noqa: UP045
    timeout_s: Optional[float] = None  # noqa: UP045
    retries: int = 2


ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolConf(), provider="nanollama")


class PoolLauncher(Launcher):
    """Hydra's face of ``src.nanollama.launcher.sweep``. Results are what jobs left in ``result.json``."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from src.nanollama.launcher.sweep import run_jobs

        configs = [self._job_config(list(overrides), initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        folders = [Path(cfg.hydra.sweep.dir).absolute() / cfg.hydra.sweep.subdir for cfg in configs]
        tasks = [[text for text in overrides if not text.startswith("hydra")] for overrides in job_overrides]
        results = run_jobs(self._module(), dict(zip(folders, tasks, strict=True)), **self.options)
        returns = []
        for cfg, overrides, folder in zip(configs, job_overrides, folders, strict=True):
            done = JobReturn(overrides=list(overrides), cfg=cfg, working_dir=str(folder), task_name=cfg.hydra.job.name)
            done.status, done.return_value = JobStatus.COMPLETED, results.get(folder, {"status": "interrupted"})
            returns.append(done)
        return returns

    def _job_config(self, overrides: list[str], number: int) -> DictConfig:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        return cfg

    def _module(self) -> str:
        name = self.task_function.__module__
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if name != "__main__":
            return name
        if spec is None:
            raise ValueError("hydra/launcher=pool starts jobs with python -m MODULE: start the sweep that way too")
        return str(spec.name)
