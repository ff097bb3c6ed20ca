"""The one decorator of every entry point: command line in, exit code out.

    TRAIN = Entry("gssm_train", GssmConfig, resolve, experiments="src/apps/gssm/configs")

    @main(TRAIN)
    def train(cfg: GssmConfig, run: RunFolder) -> dict[str, float]: ...

    if __name__ == "__main__":
        train()

The task gets its typed config and an open run folder, and returns what goes to ``result.json`` or raises. A single run is composed,
checked and started here; ``--multirun`` checks every job first and then hands over to Hydra, with its sweepers and launchers.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .compose import (
    CONFIGS,
    Entry,
    as_dict,
    check_overrides,
    compose,
    config_loader,
    quoted,
    register_experiments,
    register_schema,
    rewrite_argv,
    typed,
)
from .errors import ConfigError, Interrupted, Requeue, RunFailed
from .failure import Failure, first_failure, unexpected, wait_until_written, watching, written
from .folder import RunFolder, check_resume, check_same, holds_run, new_folder, open_folder, read_result
from .ranks import agree, rank, world_size

Task = Callable[[Any, RunFolder], Mapping[str, Any] | None]
INFO_FLAGS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p")
SWEEP_FLAGS = ("-m", "--multirun")
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # Hydra's default: all jobs in this process, one after the other


class _Stopped(BaseException):
    """Ends a multirun in this process whose running job was told to stop; Hydra lets pass what is no Exception."""


def main(entry: Entry) -> Callable[[Task], Callable[[], None]]:
    """Make a command of ``task(cfg, run)``; see the module's docstring."""

    def decorate(task: Task) -> Callable[[], None]:
        @functools.wraps(task)
        def command() -> None:
            sys.exit(run_command(entry, task, sys.argv[1:]))

        command.entry = entry  # type: ignore[attr-defined]
        return command

    return decorate


def run_command(entry: Entry, task: Task, argv: Sequence[str]) -> int:
    """Do what ``argv`` asks; returns the exit code."""
    resume = next((arg.partition("=")[2] for arg in argv if arg.startswith("resume=")), "auto")
    argv = [arg for arg in argv if not arg.startswith("resume=")]
    try:
        if world_size() > 1 and not entry.ranks:
            raise ConfigError(f"{entry.name} is one process: start it without torchrun")
        if any(arg.split("=")[0] in INFO_FLAGS for arg in argv):
            register_experiments(entry)
            return _hydra(entry, task, rewrite_argv(entry, argv))
        if any(arg in SWEEP_FLAGS for arg in argv):
            return _multirun(entry, task, [arg for arg in argv if arg not in SWEEP_FLAGS], resume)
        if any(arg.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for arg in argv):
            raise ConfigError("command line: name the run folder with run_dir=PATH (Hydra's own folder keys are not used)")
        cfg = compose(entry, argv)
        run = _open(entry, cfg, argv, resume)
    except ConfigError as error:
        if rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        return ConfigError.exit_code
    return execute(task, cfg, run)


def _open(entry: Entry, cfg: Any, argv: Sequence[str], resume: str) -> RunFolder:
    """Rank 0 makes the folder and is the only one to write shared files there; the others get to know its path."""
    mine: list[RunFolder] = []

    def make() -> str:
        mine.append(open_folder(entry, cfg, argv, resume))
        return str(mine[0].path)

    path = Path(agree("run_dir", make))
    if mine:
        return mine[0]
    if rank() == 0:  # torchrun has started its ranks again
        return open_folder(entry, dataclasses.replace(cfg, run_dir=str(path)), argv)
    return RunFolder(path, (path / "checkpoints").is_dir())


def execute(task: Task, cfg: Any, run: RunFolder) -> int:
    """Run the task, turn every way it can end into ``result.json`` (rank 0) and an exit code."""
    log_to(run.path)
    began = time.time()
    with watching(lambda failure: _give_up(run, failure, began)):
        values, status, code, message = _attempt(task, cfg, run)
        if message:
            status, message = _say(status, message)
        if rank() == 0:
            extra = {"message": message} if message else {}
            try:
                run.finish(status, **values, **extra, wall_s=round(time.time() - began, 3))
            except OSError as error:  # a full disk: what can still be said is said by the exit code
                logging.getLogger("nanollama").error(f"{run.path}/result.json could not be written ({error.strerror})")
                code = code or RunFailed.exit_code
        if code:
            written() if rank() == 0 else wait_until_written()
    run.close()
    return code


def _attempt(task: Task, cfg: Any, run: RunFolder) -> tuple[Mapping[str, Any], str, int, str | None]:
    """What the task returned, how it ended, the exit code for that, and what is to be said about it."""
    try:
        return task(cfg, run) or {}, "ok", 0, None
    except ConfigError as error:
        return {}, "invalid", error.exit_code, f"error: {error}"
    except RunFailed as error:
        return {}, error.status, error.exit_code, f"failed ({error.status}): {error}"
    except Requeue as error:
        return {}, "requeue", error.exit_code, f"stopped, start again to continue: {error}"
    except (Interrupted, KeyboardInterrupt) as error:
        return {}, "interrupted", Interrupted.exit_code, f"interrupted: {error or 'Ctrl-C'}"
    except Exception as error:
        status, text = unexpected(error)
        return {}, status, RunFailed.exit_code, text


def _say(status: str, message: str) -> tuple[str, str]:
    """Log why this rank ended; the first of all to fail is shown. Returns the status and the message that explain the run's end."""
    log = logging.getLogger("nanollama")
    first = first_failure(status, message) if status in ("error", "oom", "invalid") else None
    if first is None:
        log.error(message.rstrip())
        return status, message
    if first.rank == rank():
        log.error(str(first))
        if rank() != 0:  # whose log is a file only
            print(first, file=sys.stderr, flush=True)
    else:
        log.debug(message.rstrip())
        log.error(f"ended because rank {first.rank} failed")
    return first.status, str(first)


def _give_up(run: RunFolder, failure: Failure, began: float) -> None:
    """End this rank although it may be waiting for another, in a collective that no signal reaches."""
    logging.getLogger("nanollama").error(f"ended because rank {failure.rank} failed")
    if rank() == 0:
        run.finish(failure.status, message=str(failure), wall_s=round(time.time() - began, 3))
        written()
    os._exit(RunFailed.exit_code)


def log_to(run_dir: Path) -> None:
    """Messages go to ``logs/rank_<r>.log``; those of rank 0 also to the terminal."""
    logger = logging.getLogger("nanollama")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(run_dir / "logs" / f"rank_{rank()}.log")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if rank() == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[1].setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


# --- Hydra: information flags and multirun ---------------------------------------------------------------------------------------


def _hydra(entry: Entry, task: Task, argv: Sequence[str]) -> int:
    """Hand over to ``hydra.main``: it composes each job again and calls ``job``."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf, open_dict

    register_schema(entry)

    def job(node: DictConfig) -> dict[str, Any]:
        hydra_cfg = HydraConfig.get()
        with open_dict(node):
            node.run_dir = hydra_cfg.runtime.output_dir
        overrides = rewrite_argv(entry, list(OmegaConf.to_container(hydra_cfg.overrides.task)))  # type: ignore[arg-type]
        cfg = typed(entry, node, overrides)
        run = open_folder(entry, cfg, overrides)
        code = execute(task, cfg, run)
        if code in (Interrupted.exit_code, Requeue.exit_code) and hydra_cfg.launcher._target_ == BASIC:
            raise _Stopped(code)
        return read_result(run.path) or {}

    job.__module__, job.__qualname__ = task.__module__, task.__qualname__
    sys.argv[1:] = list(argv)
    options: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    try:
        hydra.main(config_path=str(CONFIGS), config_name=entry.name, **options)(job)()
    except _Stopped as stopped:
        return int(str(stopped))
    return 0


def _multirun(entry: Entry, task: Task, argv: Sequence[str], resume: str) -> int:
    """Check every job, run the sweep, print a table; one job's failure does not stop the rest."""
    if world_size() > 1:
        raise ConfigError("a multirun is one process: start it without torchrun and let cluster.torchrun=true give each job its ranks")
    given = next((os.path.expanduser(arg.partition("=")[2].strip("'\"")) for arg in argv if arg.startswith("run_dir=")), None)
    overrides = rewrite_argv(entry, [arg for arg in argv if not arg.startswith("run_dir=")])
    check_overrides(entry, overrides)
    quiet = [] if any(a.startswith("hydra/job_logging=") for a in overrides) else ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    if any(arg.startswith("hydra/sweeper=") for arg in overrides):  # it knows which jobs there are, and where they go
        return _hydra(entry, task, ["-m", *overrides, *quiet, *([f"hydra.sweep.dir={quoted(given)}"] if given else [])])
    in_files = set()
    for number, job in enumerate(expand(overrides)):
        cfg = compose(entry, [arg for arg in job if not arg.startswith("hydra")])
        if not any(arg.startswith("run_dir=") for arg in argv):
            given = cfg.run_dir and os.path.expanduser(cfg.run_dir)
            in_files.add(given)
        if len(in_files) > 1:
            names = ", ".join(sorted(map(str, in_files)))
            raise ConfigError(f"run_dir: the files of this multirun name several ({names}); give one for all, run_dir=PATH")
        folder = Path(given or os.devnull) / str(number)
        held = holds_run(folder)
        check_resume(folder, held, resume)
        if held:
            check_same(entry, folder, folder / "config.yaml", {key: value for key, value in as_dict(cfg).items() if key != "run_dir"})
    folder = Path(given) if given else new_folder(entry.name)
    hydra_args = [f"hydra.sweep.dir={quoted(folder)}", "hydra.sweep.subdir='${hydra.job.num}'", "hydra.output_subdir=null"]
    _hydra(entry, task, ["-m", *overrides, *hydra_args, *quiet])
    return summarise(folder)


def expand(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The jobs of a plain multirun: the product of all ``key=a,b`` choices, as Hydra's basic sweeper forms it.

    Raises ConfigError for what Hydra cannot expand, and if there is no job at all.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        with config_loader() as loader:
            parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
            (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"command line: {error}") from error
    if not jobs:
        raise ConfigError(f"command line: no job to run: a choice in {' '.join(overrides)} matches nothing")
    yield from jobs


def summarise(folder: Path) -> int:
    """Print how each job of a multirun ended; exit code 0 only if all did well, else the worst one's."""
    jobs = sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    results = [(job.name, read_result(job) or {"status": "killed"}) for job in jobs]
    for name, result in results:
        numbers = "  ".join(f"{k}={v:.4g}" for k, v in result.items() if isinstance(v, float) and k.endswith("loss"))
        print(f"{folder / name}  {result['status']}  {numbers}")
    statuses = {result["status"] for _, result in results}
    if "interrupted" in statuses:
        return Interrupted.exit_code
    if "requeue" in statuses:
        return Requeue.exit_code
    if statuses == {"invalid"}:
        return ConfigError.exit_code
    return 0 if statuses <= {"ok"} else RunFailed.exit_code


def entry_of(script: str) -> Entry:
    """The Entry of a command by its module name (``src.apps.gssm.train``), without importing torch. ConfigError if there is none."""
    import importlib

    try:
        module = importlib.import_module(script)
    except ModuleNotFoundError as error:
        raise ConfigError(f"script={script}: no module of that name ({error}); give a command such as src.apps.gssm.train") from error
    entry = next((value.entry for value in vars(module).values() if isinstance(getattr(value, "entry", None), Entry)), None)
    if entry is None:
        raise ConfigError(f"script={script}: this module is no command (nothing in it is decorated with nanollama.config.main)")
    return entry
