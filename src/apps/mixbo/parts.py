"""The parts of one sweep, whatever it searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from .controller import Limits
from .progress import Live
from .protocol import A, Done, T, T_contra
from .runners import Runner
from .study import Study


class Watching(Protocol[T_contra]):
    """Told of every change of a study. ``answers``: what ``best.json`` says."""

    answers: dict[str, Any]

    def __call__(self, records: Sequence[T_contra]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Parts(Generic[A, T]):
    """Who is asked, where trials are kept, who carries them out, within which limits, and who is told."""

    ask: Callable[[Sequence[T]], A | Done | None]
    study: Study[A, T]
    runner: Runner[T]
    limits: Limits
    watch: Watching[T]
    progress: Live
