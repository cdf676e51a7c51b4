"""What `cancel_everywhere` gives: one record per attempt, a report of all, an error that tells the place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncflow.runs import FlowRun, TaskRun

__all__ = ["NOT_REACHED", "Attempt", "CancelReport", "CancelSafetyError", "told"]

NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call, cancelled at one suspension point."""

    point: int
    """Which suspension of the call was hit, from 1; 0 for the first call, which is not cancelled."""
    how: str
    where: str | None
    """The line of yours that was suspended there; None when the call ended before that point."""
    ending: str
    """What the caller saw: "cancelled", "completed", or the name of the exception's type."""
    value: Any = None
    """What the call gave, when it completed."""
    error: BaseException | None = None
    """What the call raised, other than the cancellation asked for."""
    runs: tuple[FlowRun | TaskRun, ...] = ()
    """The runs that the call left on record, in the order they began; none when it was cancelled before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReport:
    """What became of a call that was cancelled at each of its suspension points. Its text is one line."""

    how: str
    points: int
    """Suspension points of the call when nobody cancels it, over all its tasks."""
    endings: dict[str, int] = field(default_factory=dict[str, int])
    """How many attempts ended in which way (see `Attempt.ending`); attempts that ended before their point are
    under "not reached": where threads take part, no two calls suspend equally often."""

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {ending}" for ending, count in sorted(self.endings.items()))
        return f"{self.points} suspension points by {self.how}: {counts or 'no attempt'}"


class CancelSafetyError(AssertionError):
    """A call that was cancelled left something behind, or ended as it must not.

    `point`, `how` and `where` say which cancellation that was; `problems` what was found.
    """

    def __init__(self, point: int, how: str, where: str | None, problems: Sequence[str]) -> None:
        self.point: int = point
        self.how: str = how
        self.where: str | None = where
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__(point, how, where, self.problems)

    def __str__(self) -> str:
        return "\n  - ".join([f"the call {told(self.point, self.how, self.where)}:", *self.problems])


def told(point: int, how: str, where: str | None) -> str:
    """Which cancellation it was, for a sentence about the call."""
    if not point:
        return "that nobody cancelled"
    if where is None:
        return f"that was to be cancelled by {how} at point {point} and ended before"
    return f"cancelled by {how} at point {point}, {where}"
