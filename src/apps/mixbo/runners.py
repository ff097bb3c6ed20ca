"""Who carries out a trial: a pool of training processes, or a simulator. Both leave ``trials/<n>/result.json``."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from src.nanollama.config import ConfigError, read_result, write_json
from src.nanollama.launcher.outcome import RESTARTABLE
from src.nanollama.launcher.pool import Job, Pool, devices

from .objectives import Objective
from .objectives.training import Trainings
from .options import PoolConfig
from .records import Record
from .study import Outcome


class Runner(Protocol):
    """Starts trials and says how they ended. ``slots``: how many at a time."""

    slots: int

    def start(self, trial: Record, ancestors: Sequence[Record]) -> None:
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


class TrainingRunner:
    """Trials as processes on this machine's slots."""

    def __init__(self, folder: Path, trainings: Trainings, options: PoolConfig) -> None:
        self.folder, self.trainings, self.slots = folder, trainings, options.slots
        self._pool = Pool(options.slots, devices=devices(), timeout_s=options.timeout_s, retries=options.retries)
        self._numbers: dict[Path, int] = {}
        self._done: deque[tuple[int, Outcome]] = deque()

    def start(self, trial: Record, ancestors: Sequence[Record]) -> None:
        run_dir = self.folder / str(trial.number)
        known = read_result(run_dir)
        if known and known["status"] not in RESTARTABLE:  # ended while nobody was looking
            self._done.append((trial.number, self.trainings.outcome(run_dir, known)))
            return
        parent = self.folder / str(ancestors[-1].number) if ancestors else None
        try:
            command = self.trainings.command(trial.weights, trial.model_size, trial.steps, run_dir, parent)
        except ConfigError as error:
            self._done.append((trial.number, Outcome("invalid", message=str(error))))
            return
        self._numbers[run_dir] = trial.number
        self._pool.submit(Job(command, run_dir))

    def poll(self, wait_s: float) -> tuple[int, Outcome] | None:
        if self._done:
            return self._done.popleft()
        ended = self._pool.poll(wait_s)
        if ended is None:
            return None
        return self._numbers.pop(ended.job.run_dir), self.trainings.outcome(ended.job.run_dir, ended.result)

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
