"""The jobs of a Hydra multirun in a local pool (``hydra/launcher=pool``), each a fresh process of the same command.

A job that is already done in its folder, with the same config, is not started again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import ConfigError, Entry, compose, quoted, read_result
from ..config.compose import as_dict
from ..config.folder import check_same
from ..config.main import entry_of
from .grid import room
from .pool import Ended, Job, JobPool, Pool, run_all
from .script import command


def run_jobs(
    module: str,
    jobs: Mapping[Path, Sequence[str]],
    slots: int | None = None,
    timeout_s: float | None = None,
    retries: int = 2,
    pool: JobPool | None = None,
) -> dict[Path, dict[str, Any]]:
    """Run folder -> what is in its ``result.json``, for jobs given as run folder -> overrides of ``module``.

    ``slots``: jobs at a time, by default as many as the config's ``cluster`` lets fit on this machine. Never raises for a job's failure;
    after Ctrl-C jobs that did not begin are missing in the result. ``pool``: another one than this machine's, to which those three belong.
    """
    entry = entry_of(module)
    configs = {run_dir: compose(entry, [*overrides, f"run_dir={quoted(str(run_dir))}"]) for run_dir, overrides in jobs.items()}
    results = {run_dir: result for run_dir, cfg in configs.items() if (result := _done(entry, run_dir, cfg))}
    todo = [
        Job(tuple(command(module, cfg.cluster, *jobs[run_dir], f"run_dir={quoted(str(run_dir))}")), run_dir)
        for run_dir, cfg in configs.items()
        if run_dir not in results
    ]
    if not todo:
        return results

    def report(ended: Ended) -> None:
        results[ended.job.run_dir] = ended.result
        print(ended.line(" ".join(jobs[ended.job.run_dir])), flush=True)

    if pool is None:
        fits, gpus, each = room(next(iter(configs.values())).cluster, len(todo))
        pool = Pool(min(slots or fits, len(todo)), devices=gpus, processes=each, timeout_s=timeout_s, retries=retries)
    run_all(pool, todo, report)
    return results


def _done(entry: Entry, run_dir: Path, cfg: Any) -> dict[str, Any] | None:
    result = read_result(run_dir)
    if not result or result["status"] != "ok":
        return None
    try:
        check_same(entry, run_dir, run_dir / "config.yaml", {key: value for key, value in as_dict(cfg).items() if key != "run_dir"})
    except ConfigError:
        return None  # the job itself will refuse
    return result
