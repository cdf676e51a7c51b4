"""Virtual time on trio, which takes a clock when it starts.

Not trio's own `MockClock`: that one jumps while a thread works, and knows nothing of other loops
and threads. This needs nothing but the `trio.abc.Clock` and `Instrument` that trio offers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from asyncflow._backend.virtual_time import LoopPart, VirtualTime
from asyncflow.exceptions import VirtualClockError

__all__ = ["TrioParts", "check_running", "count_as_clock", "start_giving"]

_HARDLY = 1e-6


class _Run(trio.abc.Instrument):
    """One trio run on virtual time."""

    def __init__(self, virtual: VirtualTime, io_seconds: float) -> None:
        self._virtual = virtual
        self._is_running = True
        self.part: LoopPart = LoopPart(virtual, lambda: self._is_running, io_seconds)
        self._has_polled = False
        virtual.join(self, self.part)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task goes on."""
        self._has_polled = False
        self.part.go_on()

    def after_run(self) -> None:
        """The run is over."""
        self._is_running = False
        self._virtual.leave(self)

    def sleep_time(self, deadline: float) -> float:
        """Seconds of real time that trio, which has nothing to do, waits for events before it asks again."""
        pause = 0.0
        if self._has_polled:
            pause = self.part.after_empty_poll(deadline, has_io=_has_io())
        if self._virtual.seconds >= deadline:
            return 0
        self._has_polled = True
        self.part.before_poll(trio.to_thread.current_default_thread_limiter().borrowed_tokens)
        return pause or _only_poll()


class TrioParts:
    """The trio runs on one virtual time, each found by the thread that asks."""

    def __init__(self, virtual: VirtualTime, io_seconds: float) -> None:
        self._virtual = virtual
        self._io_seconds = io_seconds
        self._runs: dict[int, _Run] = {}

    def start(self) -> None:
        """A run begins on this thread."""
        run = _Run(self._virtual, self._io_seconds)
        self._runs[threading.get_ident()] = run
        trio.lowlevel.add_instrument(run)

    def sleep_time(self, deadline: float) -> float:
        """As `trio.abc.Clock.deadline_to_sleep_time`."""
        return self._runs[threading.get_ident()].sleep_time(deadline)


def _has_io() -> bool:
    """Whether a task waits for a file descriptor; one is trio's own, by which other threads wake it."""
    numbers: Any = trio.lowlevel.current_statistics().io_statistics
    reading = getattr(numbers, "tasks_waiting_read", 0) + getattr(numbers, "tasks_waiting", 0)
    return bool(reading > 1 or getattr(numbers, "tasks_waiting_write", 0))


def _only_poll() -> float:
    """Seconds for which a poll does not wait.

    Above 0 where a task is in `trio.testing.wait_all_tasks_blocked`, which is woken only by a wait
    that has a length, and goes before a jump; but that takes a millisecond. Where trio's inside has
    changed, every poll does.
    """
    with suppress(ImportError, AttributeError):
        from trio._core import _run  # pyright: ignore[reportPrivateUsage]

        context: Any = _run.GLOBAL_RUN_CONTEXT
        return _HARDLY if context.runner.waiting_for_idle else 0.0
    return _HARDLY


def check_running(clock: object) -> None:
    """Raise `VirtualClockError` where a trio run goes on that keeps another time."""
    if trio.lowlevel.in_trio_run() and trio.lowlevel.current_clock() is not clock:
        how = (
            "start it with this one: trio.run(main, clock=virtual_clock), or anyio's ('trio', {'clock': virtual_clock})"
        )
        raise VirtualClockError(f"trio with {trio.lowlevel.current_clock()!r}", how)


def count_as_clock(kind: type) -> None:
    """Have `isinstance(each, trio.abc.Clock)` say yes: pytest-trio looks for clocks like that."""
    trio.abc.Clock.register(kind)


def start_giving(clock: Any) -> Callable[[], None]:
    """Have trio runs that start without a clock use this one; gives what ends that."""
    ends = [_give(module, name, clock) for module, name in ((trio, "run"), (trio.lowlevel, "start_guest_run"))]

    def stop() -> None:
        for end in ends:
            end()

    return stop


def _give(module: Any, name: str, clock: Any) -> Callable[[], None]:
    start = getattr(module, name)

    def start_with_clock(*args: Any, **options: Any) -> Any:
        if options.get("clock") is None:
            options["clock"] = clock
        return start(*args, **options)

    def stop() -> None:
        if getattr(module, name) is start_with_clock:
            setattr(module, name, start)

    setattr(module, name, start_with_clock)
    return stop
