"""What a sweep searches, as its store, its controller and its runners see it: mixtures of data, or shapes of a growing model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Status = Literal["running", "ok", "failed"]


class Asked(Protocol):
    """A trial that a strategy asks for."""

    @property
    def flops(self) -> float: ...


class Trial(Protocol):
    """A trial of a study. ``parent``: the trial that it continues."""

    @property
    def number(self) -> int: ...
    @property
    def status(self) -> Status: ...
    @property
    def flops(self) -> float: ...
    @property
    def parent(self) -> int | None: ...


@dataclass(frozen=True)
class Done:
    """Nothing is left to ask for, and why."""

    reason: str


A = TypeVar("A", bound=Asked)
T = TypeVar("T", bound=Trial)
A_contra = TypeVar("A_contra", bound=Asked, contravariant=True)
T_co = TypeVar("T_co", bound=Trial, covariant=True)
T_contra = TypeVar("T_contra", bound=Trial, contravariant=True)


class Search(Protocol[A_contra, T_co]):
    """How the trials of one kind of search are stored."""

    @property
    def maximise(self) -> bool:
        """Direction of the objective."""
        ...

    def parameters(self, asked: A_contra) -> dict[str, tuple[Any, BaseDistribution]]:
        """What was chosen, as parameters of an Optuna trial."""
        ...

    def attributes(self, asked: A_contra) -> dict[str, Any]:
        """Everything else about it, as user attributes."""
        ...

    def record(self, number: int, status: Status, parameters: Mapping[str, Any], attributes: Mapping[str, Any]) -> T_co:
        """The trial as strategies know it."""
        ...

    def value(self, values: tuple[float, ...]) -> float:
        """The objective in its own units, of one observation's outputs."""
        ...
