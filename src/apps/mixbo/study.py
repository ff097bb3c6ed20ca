"""The trials of a sweep as an Optuna study, so that optuna-dashboard and every Optuna plot work on them.

Optuna only stores here: suggestions come from our strategies, and one controller is the only writer. What a trial's parameters are, the
problem says; the learning curve is stored as intermediate values (the objective) and, whole, in the user attribute ``curve``.
"""

from __future__ import annotations

import logging
import math
import socket
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

from src.nanollama.config import ConfigError
from src.nanollama.config.secret import without_passwords

from .protocol import A, Search, Status, T

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

Curve = tuple[tuple[int, tuple[float, ...]], ...]
FOLDER = "folder"  # study attribute: where its trials are
ENDINGS = ("status", "charged_flops", "curve", "message")  # user attributes that a trial has once it is told


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: ``status`` as in ``result.json``, its own learning curve, and the FLOPs it added."""

    status: str
    curve: Curve = ()
    flops: float = 0.0
    message: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)  # further user attributes of the trial

    def charge(self, asked: float) -> float:
        """FLOPs to book for a trial that was to add ``asked``: what it says that it added.

        One that made no step, or was killed before it could say anything, is booked with all of ``asked``: trials that fail use up a
        budget, too, or a study of them would never end.
        """
        return self.flops or asked

    @property
    def ok(self) -> bool:
        return self.status == "ok" and bool(self.curve)

    @property
    def aside(self) -> bool:
        """A measurement that went well and has no objective."""
        return self.status == "ok" and not self.curve and bool(self.measured)


class Study(Generic[A, T]):
    """One sweep's trials. ``identity`` says what is searched; a store that holds something else under this name is refused."""

    def __init__(self, name: str, storage: str, problem: Search[A, T], identity: str) -> None:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.problem = problem
        shown = without_passwords(storage)
        try:
            self._storage = _open(storage)
            direction: Literal["maximize", "minimize"] = "maximize" if problem.maximise else "minimize"
            self._study = optuna.create_study(study_name=name, storage=self._storage, load_if_exists=True, direction=direction)
            stored = self._study.user_attrs.get("identity")
            if stored is None:
                self._study.set_user_attr("identity", identity)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            raise ConfigError(f"storage={shown}: cannot be used: {without_passwords(_first_line(error))}") from error
        if stored not in (None, identity):
            self.close()
            raise ConfigError(f"storage={shown} holds a study {name!r} of another space, objective or strategy; take another name")

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    @staticmethod
    def sqlite(folder: Path) -> str:
        """URL of the store inside a sweep's folder."""
        return f"sqlite:///{folder.resolve() / 'study.db'}"

    def note(self, key: str, value: Any) -> None:
        """Keep something beside the trials, as plain JSON."""
        self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What was kept under ``key``; None: nothing."""
        return self._study.user_attrs.get(key)

    def claim(self, folder: Path) -> None:
        """Keep that this study's trials lie in ``folder``, whose lock lets one sweep in at a time.

        A store of its own can be named by sweeps in any folder: two would start each other's trials. Raises ConfigError where
        another folder has the study; one that is gone from this host was moved.
        """
        here, known = {"host": socket.gethostname(), "folder": str(folder.resolve())}, self.noted(FOLDER)
        if known and known["folder"] != here["folder"] and (known["host"] != here["host"] or Path(known["folder"]).exists()):
            self.close()
            raise ConfigError(
                f"this study is in the store already, with its trials in {known['folder']} on {known['host']}; "
                "continue it with that run_dir, or begin another with another name"
            )
        if known != here:
            self.note(FOLDER, here)

    def records(self) -> tuple[T, ...]:
        """Every trial, in order of its number."""
        return tuple(self._record(trial) for trial in self._trials())

    def add(self, asked: A) -> int:
        """Store what was asked for as a running trial, atomically; returns its number. Nothing may start before this returns."""
        from optuna.trial import TrialState, create_trial

        chosen = self.problem.parameters(asked)
        values, kinds = {key: value for key, (value, _) in chosen.items()}, {key: kind for key, (_, kind) in chosen.items()}
        why = self.problem.attributes(asked)
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=values, distributions=kinds, user_attrs=why))
        return self._trials()[-1].number

    def tell(self, number: int, outcome: Outcome) -> None:
        """Book how a running trial ended.

        These are several writes, and a kill may come between any two: the trial counts as running until the last one, which ends it
        (:meth:`records` sees none of the others before), and may be told again.
        """
        import optuna
        from optuna.trial import TrialState

        trial = self._trials()[number]
        outcome = _finite(outcome)
        objective = [(step, self.problem.value(values)) for step, values in outcome.curve]
        told = {
            **outcome.measured,
            "status": outcome.status,
            "charged_flops": outcome.charge(trial.user_attrs.get("flops", 0.0)),
            "curve": [[step, list(values)] for step, values in outcome.curve],
        }
        if outcome.message or "message" in trial.user_attrs:  # a message of an earlier, interrupted telling goes
            told["message"] = (outcome.message or "")[:2000]
        for step, value in objective:
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
        for key, attribute in told.items():
            self._storage.set_trial_user_attr(trial._trial_id, key, attribute)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if outcome.ok:
                self._study.tell(number, objective[-1][1])
            else:
                self._study.tell(number, state=TrialState.PRUNED if outcome.aside else TrialState.FAIL)

    def details(self) -> list[dict[str, Any]]:
        """One flat dictionary a trial, for tables: parameters, status, value, why it was asked for."""
        rows = []
        for trial in self._trials():
            attrs = {k: v for k, v in _attributes(trial).items() if k != "curve"}
            value = trial.value if trial.state.name == "COMPLETE" else None
            row = {"trial": trial.number, "status": attrs.pop("status", "running"), "value": value, **trial.params, **attrs}
            row["started"] = trial.datetime_start and trial.datetime_start.isoformat(timespec="seconds")
            row["ended"] = trial.datetime_complete and trial.datetime_complete.isoformat(timespec="seconds")
            rows.append(row)
        return rows

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _record(self, trial: FrozenTrial) -> T:
        ended: Status = "ok" if trial.state.name in ("COMPLETE", "PRUNED") else "failed"
        status: Status = "running" if trial.state.name in ("RUNNING", "WAITING") else ended
        return self.problem.record(trial.number, status, trial.params, _attributes(trial))


def _finite(outcome: Outcome) -> Outcome:
    """The outcome, or that of a diverged trial where a value is not finite: one would make every prediction nan."""
    if all(math.isfinite(value) for _, values in outcome.curve for value in values):
        return outcome
    return replace(outcome, status="nan", curve=(), message=outcome.message or "a loss is not finite")


def _attributes(trial: FrozenTrial) -> dict[str, Any]:
    """User attributes of a trial; of one that is running, none of those that say how it ended."""
    over = trial.state.is_finished()
    return {key: value for key, value in trial.user_attrs.items() if over or key not in ENDINGS}


def _open(url: str) -> RDBStorage:
    """Connect, and make the tables where there are none; two studies may do so at once on a new server, then one of them is late."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DatabaseError

    for wait_s in (0.2, 1.0, 5.0, None):
        try:
            return RDBStorage(url)
        except DatabaseError as error:
            if wait_s is None or "already exists" not in str(error):
                raise
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
