"""Who carries out a trial: a pool of trainings, or a simulator. Both leave ``trials/<n>/result.json``."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol

from src.nanollama.config import ConfigError, read_result, write_json
from src.nanollama.launcher.outcome import RESTARTABLE
from src.nanollama.launcher.pool import Job, JobPool

from .objectives import Objective
from .protocol import T, T_contra
from .records import Record
from .study import Outcome


class Runner(Protocol[T_contra]):
    """Starts trials and says how they ended."""

    @property
    def slots(self) -> int:
        """Trials at a time; 0: none is to be asked for now."""
        ...

    def start(self, trial: T_contra, ancestors: Sequence[T_contra]) -> None:
        """Begin a trial, or take it up where a killed process left it. ``ancestors``: the trials it continues, oldest first."""
        ...

    def poll(self, wait_s: float) -> tuple[int, Outcome] | None:
        """The next trial that ended within ``wait_s`` seconds."""
        ...

    def stop(self) -> None:
        """Let running trials save and end; they are taken up by the next start."""
        ...

    def close(self) -> None:
        """End everything now."""
        ...


class Commands(Protocol[T_contra]):
    """Trials as command lines."""

    def command(self, trial: T_contra, run_dir: Path, parent: Path | None) -> tuple[str, ...]:
        """The command of a trial; ``parent`` is the run folder that it continues. Raises ConfigError for one that cannot be."""
        ...

    def outcome(self, trial: T_contra, run_dir: Path, result: Mapping[str, Any]) -> Outcome:
        """What its run folder and ``result.json`` say."""
        ...


class TrainingRunner(Generic[T]):
    """Trials as jobs of a pool."""

    def __init__(self, folder: Path, commands: Commands[T], pool: JobPool) -> None:
        self.folder, self.commands, self._pool = folder, commands, pool
        self._started: dict[Path, T] = {}
        self._done: deque[tuple[int, Outcome]] = deque()

    @property
    def slots(self) -> int:
        return self._pool.slots

    def start(self, trial: T, ancestors: Sequence[T]) -> None:
        run_dir = self.folder / str(trial.number)
        known = read_result(run_dir)
        if known and known["status"] not in RESTARTABLE:  # ended while nobody was looking
            self._done.append((trial.number, self.commands.outcome(trial, run_dir, known)))
            return
        parent = self.folder / str(ancestors[-1].number) if ancestors else None
        try:
            command = self.commands.command(trial, run_dir, parent)
        except ConfigError as error:
            self._done.append((trial.number, Outcome("invalid", message=str(error))))
            return
        self._started[run_dir] = trial
        self._pool.submit(Job(command, run_dir))

    def poll(self, wait_s: float) -> tuple[int, Outcome] | None:
        if self._done:
            return self._done.popleft()
        ended = self._pool.poll(wait_s)
        if ended is None:
            return None
        trial = self._started.pop(ended.job.run_dir)
        return trial.number, self.commands.outcome(trial, ended.job.run_dir, ended.result)

    def stop(self) -> None:
        self._pool.stop()

    def close(self) -> None:
        self._pool.kill()


class SimulatedRunner:
    """Trials answered at once by a simulator, an emulator or a table."""

    slots = 1

    def __init__(self, folder: Path, objective: Objective) -> None:
        self.folder, self.objective = folder, objective
        self._done: deque[tuple[int, Outcome]] = deque()

    def start(self, trial: Record, ancestors: Sequence[Record]) -> None:
        run = ancestors[0].number if ancestors else trial.number  # a continued run keeps its own noise
        reached = ancestors[-1].steps if ancestors else 0
        steps = [step for step in self.objective.fidelities.steps if reached < step <= trial.steps]
        curve = tuple(self.objective.observe(trial.weights, trial.model_size, steps, run))
        run_dir = self.folder / str(trial.number)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "result.json", {"status": "ok", "flops": trial.flops, "curve": curve})
        self._done.append((trial.number, Outcome("ok", curve, trial.flops)))

    def poll(self, wait_s: float) -> tuple[int, Outcome] | None:
        return self._done.popleft() if self._done else None

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass
