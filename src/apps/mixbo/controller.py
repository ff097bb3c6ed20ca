"""The loop of a sweep: ask, start, tell, without barriers. A free slot is filled at once, a finished trial is told at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from src.nanollama.config import ConfigError, Interrupted, RunFailed
from src.nanollama.launcher.signals import StopFlag

from .options import BudgetConfig
from .protocol import A, Asked, Done, T, Trial
from .records import finished, spent
from .runners import Runner
from .study import Outcome, Study

SLACK = 1e-9  # relative; sums of FLOPs are rounded
MAX_FAILURES = 5  # in a row, with nothing that ever worked: the set-up is wrong, not the trials


@dataclass(frozen=True)
class Limits:
    """A budget; ``why_not`` says which part of it is spent."""

    flops: float  # of all trials, without launch overhead
    trials: float  # how many, failed ones included

    @classmethod
    def of(cls, budget: BudgetConfig, first: float, full_run: float = float("inf")) -> Limits:
        """The tighter of the FLOP bounds; ``first``: FLOPs of the strategy's first trial, which must fit, or nothing would be tried."""
        full_runs = budget.full_runs * full_run if budget.full_runs else float("inf")
        limits = cls(min(budget.flops or float("inf"), full_runs), budget.trials or float("inf"))
        if limits.flops * (1 + SLACK) < first:
            raise ConfigError(
                f"budget: {limits.flops:.3g} FLOPs do not pay for this strategy's first trial, which needs {first:.3g}; "
                "raise the budget, or take a strategy or fidelities that start smaller"
            )
        return limits

    def why_not(self, records: Sequence[Trial], asked: Asked) -> str | None:
        """The reason against starting one more trial, or None."""
        if len(records) >= self.trials:
            return f"budget.trials = {self.trials:g} are used"
        total = spent(records) + asked.flops
        return f"the next trial would bring the cost to {total:.3g} of {self.flops:.3g} FLOPs" if total > self.flops * (1 + SLACK) else None


def ancestors(records: Sequence[T], trial: T) -> list[T]:
    """The trials that ``trial`` continues, oldest first."""
    by_number = {record.number: record for record in records}
    chain: list[T] = []
    while trial.parent is not None:
        trial = by_number[trial.parent]
        chain.insert(0, trial)
    return chain


class Controller(Generic[A, T]):
    """Runs one study until there is nothing to ask for or its budget is spent.

    ``ask(records)`` says which trial is next; ``Done`` with the reason if none is any more, or None as long as that depends on trials
    which are running. ``on_change(records)`` is called after every start and end.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[T]], A | Done | None],
        study: Study[A, T],
        runner: Runner[T],
        limits: Limits,
        on_change: Callable[[Sequence[T]], None],
    ) -> None:
        self.ask, self.study, self.runner, self.limits, self.on_change = ask, study, runner, limits, on_change

    def run(self, stop: StopFlag) -> str:
        """Work until the end; returns the reason for stopping. Raises Interrupted when asked to stop."""
        reason: str | None = None
        try:
            self._take_up()
            while not stop.kind:
                reason = self._fill()
                running = [r for r in self.study.records() if r.status == "running"]
                if not running:
                    break
                self._settle(0.2)
            if stop.kind:
                self._let_go()
                raise Interrupted("running trials have saved; the same command continues")
        finally:
            self.runner.close()
        return reason or "nothing is left to try"

    def _take_up(self) -> None:
        """Start again what an earlier, killed sweep left running."""
        records = self.study.records()
        for record in records:
            if record.status == "running":
                self.runner.start(record, ancestors(records, record))

    def _fill(self) -> str | None:
        """Start trials until every slot is busy; the reason if another one is not wanted or not paid for."""
        while True:
            records = self.study.records()
            if sum(record.status == "running" for record in records) >= self.runner.slots:
                return None
            asked = self.ask(records)
            if asked is None:
                return None
            if isinstance(asked, Done):
                return asked.reason
            reason = self.limits.why_not(records, asked)
            if reason:
                return reason
            number = self.study.add(asked)
            records = self.study.records()
            self.runner.start(records[number], ancestors(records, records[number]))
            self.on_change(records)

    def _settle(self, wait_s: float) -> None:
        ended = self.runner.poll(wait_s)
        if ended is None:
            return
        self._book(*ended)
        records = self.study.records()
        self.on_change(records)
        failed = [record for record in records if record.status == "failed"]
        if not finished(records) and len(failed) >= MAX_FAILURES:
            raise RunFailed(f"the first {len(failed)} trials all failed; the last said: {ended[1].message or ended[1].status}")

    def _book(self, number: int, outcome: Outcome) -> None:
        self.study.tell(number, outcome)

    def _let_go(self) -> None:
        """Trials that end by themselves meanwhile are told; the others stay running in the study."""
        from src.nanollama.launcher.outcome import RESTARTABLE

        self.runner.stop()
        while (ended := self.runner.poll(30.0)) is not None:
            if ended[1].status not in RESTARTABLE:
                self._book(*ended)
