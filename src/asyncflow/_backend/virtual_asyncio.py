"""Virtual time on asyncio's own loops, those that run already as well.

Test runners make their loops themselves, so nothing here needs a loop of a class of ours: the one
instance is changed, where it asks for the time and where it waits. uvloop does both in C, and so
cannot be on virtual time.
"""

from __future__ import annotations

import asyncio
import time
from asyncio.base_events import BaseEventLoop
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asyncflow._backend.standstill import anyio_calls
from asyncflow._backend.virtual_time import LoopPart, VirtualTime
from asyncflow.exceptions import VirtualClockError

__all__ = ["attach_running", "detach", "start_attaching"]

_OURS = "_asyncflow_virtual_time"
_RUN_FOREVER = "run_forever"


class _Attached:
    """One loop, as long as it is on virtual time."""

    def __init__(self, loop: BaseSelectorEventLoop, virtual: VirtualTime, io_seconds: float) -> None:
        self._loop = loop
        self.virtual: VirtualTime = virtual
        self._part = LoopPart(virtual, loop.is_running, io_seconds)
        self._selector: Any = vars(loop)["_selector"]
        self._select: Callable[[float | None], list[Any]] = self._selector.select
        self._calls = 0
        if loop.is_running() or vars(loop).get("_scheduled"):  # else nobody can know what time it was there
            virtual.catch_up(loop.time())
        self._changes: dict[str, Any] = {
            "time": lambda: virtual.seconds,
            "run_in_executor": self._counting(loop.run_in_executor),
            "shutdown_default_executor": self._counted(loop.shutdown_default_executor),
            _OURS: self,
        }
        vars(loop).update(self._changes)
        vars(self._selector)["select"] = self.select
        virtual.join(loop, self._part)

    def detach(self) -> None:
        """Let the loop's time be the real one again; it goes on from where it is, as a loop's time never goes back."""
        ahead = self.virtual.seconds - time.monotonic()
        self.virtual.leave(self._loop)
        for name in self._changes:
            vars(self._loop).pop(name, None)
        self._selector.__dict__.pop("select", None)
        if not self._loop.is_closed():
            vars(self._loop)["time"] = lambda: time.monotonic() + ahead

    # --- in place of the loop's own

    def select(self, timeout: float | None = None) -> list[Any]:
        """As the selector's: wait for something to be ready, at most so long by the loop's time."""
        part, virtual = self._part, self.virtual
        until = None if timeout is None else virtual.seconds + timeout
        if timeout is not None and timeout <= 0:
            part.go_on()
            virtual.creep()
            return self._select(0)
        while until is None or virtual.seconds < until:
            part.before_poll(self._calls + anyio_calls(self._loop))
            ready = self._select(0)
            if not ready:
                pause = part.after_empty_poll(float("inf") if until is None else until, has_io=self._has_io())
                ready = self._select(pause) if pause else []
            if ready:
                part.go_on()
                return ready
        part.go_on()
        return self._select(0)

    def _has_io(self) -> bool:
        """Whether it waits for a file descriptor of somebody's; one is its own, by which other threads wake it."""
        return len(self._selector.get_map() or ()) > 1

    def _counting(self, run_in_executor: Any) -> Any:
        def run(executor: Any, fn: Callable[..., Any], *args: Any) -> Any:
            future = run_in_executor(executor, fn, *args)
            self._calls += 1
            future.add_done_callback(self._ended)
            return future

        return run

    def _counted(self, shutdown: Any) -> Any:
        async def run(*args: Any, **options: Any) -> None:
            self._calls += 1
            try:
                await shutdown(*args, **options)
            finally:
                self._calls -= 1

        return run

    def _ended(self, _: object) -> None:
        self._calls -= 1


def _attached(loop: Any) -> _Attached | None:
    found: _Attached | None = vars(loop).get(_OURS) if isinstance(loop, BaseEventLoop) else None
    return found


def attach_running(virtual: VirtualTime, io_seconds: float) -> None:
    """Put the loop that runs on this thread on virtual time.

    Raises `VirtualClockError` for a loop that keeps its time to itself, or is on another's.
    """
    loop = asyncio._get_running_loop()
    if loop is None or ((attached := _attached(loop)) and attached.virtual is virtual):
        return
    if attached is not None:
        raise VirtualClockError(repr(loop), "it is on the time of another virtual clock: use one for all of a test")
    if not isinstance(loop, BaseSelectorEventLoop) or "_selector" not in vars(loop):
        how = "run the test on asyncio's own loop, without uvloop's event_loop_policy, loop_factory or use_uvloop"
        raise VirtualClockError(repr(loop), how)
    _Attached(loop, virtual, io_seconds)


def detach(virtual: VirtualTime) -> None:
    """Take the loops off virtual time that are on this one."""
    for loop in virtual.loops():
        attached = _attached(loop)
        if attached is not None and attached.virtual is virtual:
            attached.detach()


def start_attaching(virtual: VirtualTime, io_seconds: float) -> Callable[[], None]:
    """Have each loop that starts to run from now on be on virtual time; gives what ends this."""
    run_forever = BaseEventLoop.run_forever

    def run_on_virtual_time(self: BaseEventLoop) -> None:
        if _attached(self) is None and isinstance(self, BaseSelectorEventLoop) and not self.is_closed():
            _Attached(self, virtual, io_seconds)
        run_forever(self)

    def stop() -> None:
        if BaseEventLoop.run_forever is run_on_virtual_time:
            _set_run_forever(run_forever)

    _set_run_forever(run_on_virtual_time)
    with suppress(VirtualClockError):  # told where the clock is used
        attach_running(virtual, io_seconds)
    return stop


def _set_run_forever(method: Callable[[BaseEventLoop], None]) -> None:
    setattr(BaseEventLoop, _RUN_FOREVER, method)
