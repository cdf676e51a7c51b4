"""Suspension points: counting where the tasks of a call suspend, and acting at one of them.

What `asyncflow.testing` needs from a loop. A point is one `yield` to the loop of the caller's task
or of any task that came to life during the call, counted over all of them together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from asyncflow._backend.frames import file_of, innermost_of_user, is_ours, suspended_frames

__all__ = ["Act", "Make", "Outcome", "Points", "StepLoop", "Way"]

Make = Callable[[], Awaitable[Any]]
Act = Callable[[], Awaitable[None]]
Way = Literal["scope", "native", "wait_for"]


class Points:
    """Counts suspensions while it is open, and acts once: at number `target` (from 1; 0 is never)."""

    def __init__(self, target: int) -> None:
        self.target: int = target
        self.count: int = 0
        self.where: str | None = None
        """Where the task of that point was, once it has been reached."""
        self.failure: BaseException | None = None
        """What acting raised."""
        self._act: Callable[[], object] | None = None

    @property
    def hit(self) -> bool:
        """Whether the target was reached."""
        return self.where is not None

    def open(self, act: Callable[[], object]) -> None:
        """Count from now on; `act` is called at the target, before the loop sees that suspension or right after."""
        self._act = act

    def close(self) -> None:
        """Count no more."""
        self._act = None

    def suspended(self, task: str, coroutine: Any) -> None:
        """A task has suspended."""
        if self._act is None:
            return
        self.count += 1
        if self.count == self.target:
            self.where = f"{suspended_at(coroutine)}, in task {task!r}"
            try:
                self._act()
            except BaseException as error:  # noqa: BLE001  # it must not hit the task that happened to suspend
                self.failure = error


@dataclass
class Outcome:
    """What a caller saw of its call."""

    value: Any = None
    error: BaseException | None = None
    """What came out of the call, other than the cancellation that was asked for."""
    cancelled: bool = False
    """The cancellation that was asked for came out."""
    ended: bool = False
    left: int = 0
    """asyncio's count of cancel requests of the task, beyond what the way of cancelling leaves itself."""
    stray: BaseException | None = None
    """What the caller's next awaits raised."""


class StepLoop(ABC):
    """A running loop whose tasks can be watched as they suspend."""

    @abstractmethod
    def tasks(self) -> set[Any]:
        """The tasks that are alive on the loop, the calling one included."""

    @abstractmethod
    def describe(self, task: Any) -> str:
        """A task for a reader: its name and where it waits."""

    @abstractmethod
    def watch(self, points: Points) -> AbstractContextManager[list[str]]:
        """Inside, the suspensions of new tasks count, and what the loop's exception handler gets is in the list."""

    @abstractmethod
    async def call(self, make: Make, how: Way | Act, points: Points, seconds: float) -> Outcome:
        """Call `make` inside `watch`, to be cancelled at `points.target` or after `seconds`.

        A function as `how` is called at the point instead, in a task of its own.
        """

    @abstractmethod
    async def turn(self) -> None:
        """Give every other task one turn."""


# --- where a coroutine is -------------------------------------------------------------------


def suspended_at(coroutine: Any) -> str:
    """Where a suspended coroutine waits: the innermost line of the user's own code, and what that line awaits."""
    frames = list(suspended_frames(coroutine))
    if not frames:
        return "an unknown place"
    # Where no code of the user's takes part, ours says more than the loop's.
    frame = innermost_of_user(frames) or ([each for each in frames if is_ours(each)] or frames)[-1]
    inner = "" if frame is frames[-1] else f" (awaiting {frames[-1].f_code.co_qualname})"
    return f"{file_of(frame)}:{frame.f_lineno} in {frame.f_code.co_qualname}{inner}"
