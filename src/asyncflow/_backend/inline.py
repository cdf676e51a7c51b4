"""The inline host: a thread without a loop, which drives the engine itself.

Its coroutines never suspend (a generator's engine does so only to hand over an item), so a call
costs about a microsecond where a portal to a loop would cost 150, and a sync body runs on its
caller's own thread: thread-locals, `sqlite3` connections, signals and debuggers behave.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from asyncflow._backend.base import Host, RunScope, Signal, open_no_link
from asyncflow._backend.portal import run_on_portal
from asyncflow._backend.threads import Job, ThreadPool
from asyncflow.abc import Clock

__all__ = ["InlineCancelled", "InlineHost", "drive"]

T = TypeVar("T")
_MOST_INTERRUPTS = 2


class InlineCancelled(BaseException):
    """The inline host's cancellation: raised in a sync body at a checkpoint.

    Not an `Exception`, like the backends' own.
    """


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends to its end, on this thread."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a coroutine of the inline host was suspended")


class _Signal(Signal):
    __slots__ = ("_event",)

    def __init__(self) -> None:
        super().__init__()
        self._event = threading.Event()

    def set(self) -> None:
        self.is_set = True
        self._event.set()

    async def wait(self) -> None:
        self._event.wait()

    def block(self, seconds: float) -> None:
        self._event.wait(seconds)


class _Scope(RunScope):
    """A flag and a deadline: they act when the body asks, calls something of ours, or ends."""

    __slots__ = ("_cancelled", "_clock", "_deadline", "_expired", "_seconds", "caught")

    def __init__(self, clock: Clock, seconds: float | None) -> None:
        self._clock = clock
        self._seconds = seconds
        self._deadline: float | None = None
        self._cancelled = False
        self.caught = False
        self._expired = False

    @property
    def expired(self) -> bool:
        return self._expired

    def cancel(self) -> None:
        self._cancelled = True

    def check(self) -> None:
        """Raise `InlineCancelled` when the body is to stop."""
        if self._must_stop():
            raise InlineCancelled

    def _must_stop(self) -> bool:
        if self._deadline is not None and self._clock.monotonic() >= self._deadline:
            self._expired = True
        return self._expired or self._cancelled

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._deadline = self._clock.monotonic() + self._seconds
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        if exc is None or isinstance(exc, InlineCancelled):
            self.caught = self._must_stop()
        return self.caught


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=open_no_link) as file:  # Path.open takes no opener
        return file.read()


class InlineHost(Host):
    """The host of one thread that has no loop."""

    is_inline: ClassVar[bool] = True

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self._thread = threading.get_ident()

    def here(self) -> bool:
        return threading.get_ident() == self._thread

    def current_task(self) -> object:
        return self

    def is_cancellation(self, exc: BaseException) -> bool:
        return isinstance(exc, InlineCancelled)

    def post(self, fn: Callable[[], object]) -> None:
        # This thread is busy in a body: what is posted only sets flags and events, from any thread.
        fn()

    def signal(self) -> Signal:
        return _Signal()

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.clock.sleep(seconds)

    async def settle(self, signal: Signal, seconds: float, *, breathing: bool = False) -> BaseException | None:
        assert isinstance(signal, _Signal)
        deadline = self.clock.monotonic() + seconds
        held_back: BaseException | None = None
        interrupts = 0
        while not signal.is_set and (left := deadline - self.clock.monotonic()) > 0:
            try:
                signal.block(left)
            except KeyboardInterrupt as exc:
                interrupts += 1
                if interrupts > _MOST_INTERRUPTS:
                    raise
                held_back = exc
        return held_back

    async def read_file(self, path: Path) -> bytes:
        return _read(path)

    async def run_blocking(self, fn: Callable[[], T]) -> T:
        return fn()

    def scope(self, seconds: float | None) -> RunScope:
        return _Scope(self.clock, seconds)

    async def call_sync(
        self,
        fn: Callable[[], Any],
        pool: ThreadPool,
        grace: float,
        on_cancel: Callable[[], None],
        context: Context | None = None,
    ) -> Job:
        raise AssertionError("the inline host runs sync bodies on its own thread")

    async def run_async(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        return run_on_portal(fn)

    async def protect(self, fn: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> BaseException | None:
        # There is nobody to cancel this thread, and a Ctrl-C is the person's last word.
        await fn()
        return None

    def spawn(self, fn: Callable[[], Coroutine[Any, Any, None]], context: Context) -> None:
        raise AssertionError("the inline host has no tasks")
