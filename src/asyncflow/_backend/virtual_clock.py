"""The clock of a test: time stands still while anything works, and jumps when everything waits."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from asyncflow._backend.virtual_time import VirtualTime
from asyncflow.exceptions import OptionError

if TYPE_CHECKING:
    from trio.abc import Clock as TrioClock
else:  # only a test on trio pays for its import
    TrioClock = object

__all__ = ["VirtualClock"]


class VirtualClock(TrioClock):
    """Time for tests: a delay of thirty days takes as long as a delay of none.

        with VirtualClock() as clock:
            asyncio.run(main())

    Inside the block every asyncio loop that runs or starts, every trio run that starts, and every
    wait of a flow on a thread without a loop is on this time, whoever waits: `asyncio.sleep`, a
    timeout, a retry's delay, a rate limit. Runtimes follow it when it is given to them:
    `Runtime(clock=clock)`. (The `virtual_clock` fixture does both.)

    Time stands still while a task or a thread works, and jumps to the nearest moment that somebody
    waits for when all of them wait. It does not jump while a call in a thread goes on that a loop
    waits for (of asyncflow, `asyncio.to_thread`, `run_in_executor`, `anyio.to_thread`,
    `trio.to_thread`), nor while a store writes to disk. For sockets, pipes and subprocesses nobody
    can know whether anything will come: while a loop waits for one, each jump is put off for
    `io_seconds` of real time. Where that is too short, turn `autojump` off.

    Args:
        start: What `now()` says at first: a moment (aware) or seconds since 1970 UTC. The real one if not given.
        autojump: Whether time jumps by itself; else it only goes on with `advance`.
        io_seconds: Real seconds that a jump is put off while something outside of the process is waited for.

    Where it is used with a loop that keeps a time of its own (uvloop, a trio run that began before
    it), it raises `VirtualClockError`, which says what to do.
    """

    def __init__(
        self, start: datetime | float | None = None, *, autojump: bool = True, io_seconds: float = 0.05
    ) -> None:
        self._time = VirtualTime(time.monotonic())
        self._time.autojump = autojump
        self._io_seconds = io_seconds
        self._offset = _seconds_of(start) - self._time.seconds
        self._trio: Any = None
        self._stops: list[Callable[[], None]] = []

    # --- the port that a runtime's clock is

    def now(self) -> float:
        """Seconds since 1970 UTC."""
        self._check()
        return self._time.seconds + self._offset

    def monotonic(self) -> float:
        """Seconds since some moment, the same as the loop's time says; never goes back."""
        self._check()
        return self._time.seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block this thread, which has no loop, until `event` is set or the time has passed; whether it was set."""
        return self._time.wait(event, seconds)

    # --- for tests

    @property
    def autojump(self) -> bool:
        """Whether time jumps when everything waits."""
        return self._time.autojump

    @autojump.setter
    def autojump(self, value: bool) -> None:
        self._time.autojump = value

    def advance(self, seconds: float) -> None:
        """Let time pass, at once, whoever works: what is due by then finds that out together.

        To let things come one after the other, wait: `await anyio.sleep(seconds)`.
        """
        if not 0 <= seconds < math.inf:
            raise OptionError("seconds", seconds, "a number from 0: time does not go back")
        self._time.advance(seconds)

    def call_later(self, seconds: float, fn: Callable[[], object]) -> None:
        """Have `fn`, which must neither block nor raise, called in some thread when the time has passed."""
        self._time.call_later(seconds, fn)

    def __enter__(self) -> Self:
        from asyncflow._backend.virtual_asyncio import start_attaching

        self._stops.append(start_attaching(self._time, self._io_seconds))
        if "trio" in sys.modules:
            from asyncflow._backend.virtual_trio import count_as_clock, start_giving

            count_as_clock(type(self))
            self._stops.append(start_giving(self))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        while self._stops:
            self._stops.pop()()
        self._leave_loops()

    def _leave_loops(self) -> None:
        if "asyncio" in sys.modules:
            from asyncflow._backend.virtual_asyncio import detach

            detach(self._time)

    def __repr__(self) -> str:
        return f"<asyncflow.testing.VirtualClock at {self._time.seconds + self._offset:.3f}>"

    # --- what trio asks its clock

    def start_clock(self) -> None:
        """Called by trio, when a run begins."""
        from asyncflow._backend.virtual_trio import TrioParts

        if self._trio is None:
            self._trio = TrioParts(self._time, self._io_seconds)
        self._trio.start()

    def current_time(self) -> float:
        """Called by trio."""
        return self._time.seconds

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Called by trio, when it has nothing to do."""
        seconds: float = self._trio.sleep_time(deadline)
        return seconds

    def _check(self) -> None:
        """Have the loop that runs here on this time, or raise `VirtualClockError`."""
        trio, asyncio = sys.modules.get("trio"), sys.modules.get("asyncio")
        if trio is not None and trio.lowlevel.in_trio_run():
            from asyncflow._backend.virtual_trio import check_running

            check_running(self)
        elif asyncio is not None and asyncio._get_running_loop() is not None:
            from asyncflow._backend.virtual_asyncio import attach_running

            attach_running(self._time, self._io_seconds)


def _seconds_of(start: datetime | float | None) -> float:
    if start is None:
        return time.time()
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise OptionError("start", start, "a moment with a time zone, such as datetime(2030, 1, 1, tzinfo=UTC)")
        return start.timestamp()
    return float(start)
