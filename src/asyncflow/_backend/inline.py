"""The inline host: a thread without a loop, which drives the engine itself.

Its coroutines never suspend (a generator's engine does so only to hand over an item), so a call
costs about a microsecond where a portal to a loop would cost 150, and a sync body runs on its
caller's own thread: thread-locals, `sqlite3` connections, signals and debuggers behave.

Where the engine waits, the thread blocks, and other threads must be able to end that: a scope's
`cancel` sets its flag and then wakes what the thread is blocked on; the thread says what it is
about to block on and then looks at the flags. Whichever comes first, no wake-up is lost. A thread
may be woken for nothing: each wait looks again at what it waits for.
"""

from __future__ import annotations

import _thread
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from asyncflow._backend.base import Host, RunScope, Signal, open_no_link
from asyncflow._backend.portal import PortalCall
from asyncflow._backend.threads import Job, ThreadPool, waiting
from asyncflow.abc import Clock

__all__ = ["InlineCancelled", "InlineHost", "drive", "never_suspends"]

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
    return never_suspends(coroutine)


def never_suspends(coroutine: Coroutine[Any, Any, Any]) -> NoReturn:
    """Raise: this coroutine did."""
    coroutine.close()
    raise AssertionError("a coroutine of the inline host was suspended")


class _Sleeper:
    """One thread, as those see it who may have to wake it."""

    __slots__ = ("_blocked_on", "_ident")

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        self._blocked_on: threading.Event | None = None

    def block(self, event: threading.Event, wait: Callable[[threading.Event], object]) -> None:
        """Call `wait(event)`, which blocks until the event is set, and clear the event."""
        before = self._blocked_on
        self._blocked_on = event
        try:
            wait(event)
        finally:
            self._blocked_on = before
            if before is not None:  # a signal handler's wait within a wait, which may have missed a wake-up
                before.set()
        event.clear()

    def wake(self) -> None:
        """End what this thread is blocked on, for it to look around; from any thread."""
        event = self._blocked_on
        if event is not None:
            self.set(event)

    def set(self, event: threading.Event) -> None:
        """Set an event that this thread may be blocked on; from any thread."""
        if self._blocked_on is event and threading.get_ident() == self._ident:
            # A signal handler or a finalizer in the middle of the wait, which may hold the event's own lock.
            _thread.start_new_thread(event.set, ())
        else:
            event.set()


class _Here(threading.local):
    def __init__(self) -> None:
        self.sleeper = _Sleeper()


_here = _Here()


class _Signal(Signal):
    __slots__ = ("_event", "_host")

    def __init__(self, host: InlineHost) -> None:
        super().__init__()
        self._host = host
        self._event = threading.Event()

    def set(self) -> None:
        self.is_set = True
        self._host.sleeper.set(self._event)

    async def wait(self) -> None:
        if not self.is_set:
            self._host.wait(self._event, lambda: self.is_set)

    def wait_until(self, deadline: float) -> None:
        """Like `wait`, but at most until `deadline` by the host's clock."""
        monotonic = self._host.clock.monotonic
        self._host.wait(self._event, lambda: self.is_set or monotonic() >= deadline, deadline)

    def block(self, seconds: float) -> None:
        """Block at most that long, whatever else goes on; it may be less."""
        host = self._host
        host.sleeper.block(self._event, lambda event: self.is_set or host.wait_by_clock(event, seconds))


_innermost: ContextVar[_Scope | None] = ContextVar("asyncflow_inline_scope", default=None)
"""A context variable and not a list of the thread's: a stream that waits for its consumer is still
in its scopes, and its consumer is not."""


class _Scope(RunScope):
    """A flag and a deadline: they act when the body asks, waits in or calls something of ours, or ends."""

    __slots__ = (
        "_cancelled",
        "_clock",
        "_deadline",
        "_expired",
        "_seconds",
        "_shields",
        "_token",
        "caught",
        "open",
        "outer",
        "sleeper",
    )

    def __init__(self, sleeper: _Sleeper, clock: Clock, seconds: float | None, *, shields: bool = False) -> None:
        self.sleeper = sleeper
        self._clock = clock
        self._seconds = seconds
        self._shields = shields
        self._deadline: float | None = None
        self._cancelled = False
        self._expired = False
        self._token: Token[_Scope | None] | None = None
        self.caught = False
        self.outer: _Scope | None = None
        """The scope around this one; for one that shields its body, none."""
        self.open: bool = False

    @property
    def expired(self) -> bool:
        return self._expired

    def cancel(self, *, again: bool = False) -> None:
        self._cancelled = True  # for good: the next wait, check or call raises it anyhow
        if self.open:
            self.sleeper.wake()

    def check(self) -> None:
        """Raise `InlineCancelled` when the body is to stop."""
        if self._must_stop():
            raise InlineCancelled

    def _must_stop(self) -> bool:
        if self._deadline is not None and self._clock.monotonic() >= self._deadline:
            self._expired = True
        return self._expired or self._cancelled

    def left(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self._deadline is None else self._deadline - self._clock.monotonic()

    def __enter__(self) -> Self:
        if not self._shields:
            self.outer = _innermost.get()
        self._token = _innermost.set(self)
        if self._seconds is not None:
            self._deadline = self._clock.monotonic() + self._seconds
        self.open = True  # after the last call, where a Ctrl-C could come: nobody would close it
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        self.open = False
        token, self._token = self._token, None
        if token is not None:
            try:  # noqa: SIM105  # `suppress` costs more than all else here
                _innermost.reset(token)
            except ValueError:  # a coroutine that is closed or collected may end in another context
                pass
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
        self.sleeper: _Sleeper = _here.sleeper
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
        return _Signal(self)

    def call_later(self, seconds: float, fn: Callable[[], object]) -> Callable[[], None]:
        # As with `post`, any thread will do; a timer waits by the system's clock, not by an injected one.
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), fn)
        timer.name = "asyncflow-timer"
        timer.daemon = True
        timer.start()
        return timer.cancel

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            deadline = self.clock.monotonic() + seconds
            self.wait(threading.Event(), lambda: self.clock.monotonic() >= deadline, deadline)

    async def wait_for(self, signal: Signal, seconds: float) -> bool:
        assert isinstance(signal, _Signal)
        if not signal.is_set and seconds > 0:
            signal.wait_until(self.clock.monotonic() + seconds)
        return signal.is_set

    def wait(self, event: threading.Event, is_over: Callable[[], bool], deadline: float = math.inf) -> None:
        """Block until `is_over()`, which is asked when `event` is set, at `deadline`, and when woken for nothing.

        Raises `InlineCancelled` as soon as a scope that this thread is in is cancelled or past its deadline.
        """

        def block(event: threading.Event) -> None:
            left = self._time_left()
            if not is_over():
                self.wait_by_clock(event, min(left, deadline - self.clock.monotonic()))

        with waiting(self._wait_for_turn):
            while not is_over():
                self.sleeper.block(event, block)

    def _wait_for_turn(self, turn: threading.Event) -> None:
        """The wait is over, and the thread waits for a slot of its pool: at most until it is cancelled."""
        self.sleeper.block(turn, lambda event: self.wait_by_clock(event, self._time_left()))
        self._time_left()

    def _time_left(self) -> float:
        """Seconds to the nearest deadline of the scopes that this thread is in; raises when one is to stop."""
        nearest = math.inf
        scope = _innermost.get()
        while scope is not None:
            # A thread that was given a copy of this context is in none of its scopes, nor does one that ended count.
            if scope.open and scope.sleeper is self.sleeper:
                scope.check()
                nearest = min(nearest, scope.left())
            scope = scope.outer
        return nearest

    def wait_by_clock(self, event: threading.Event, seconds: float) -> bool:
        """Block until the event is set or the time has passed, whatever else goes on; whether it is set."""
        return seconds > 0 and self.clock.wait(event, seconds)

    async def settle(self, signal: Signal, seconds: float, *, breathing: bool = False) -> BaseException | None:
        assert isinstance(signal, _Signal)
        if signal.is_set:
            return None
        deadline = self.clock.monotonic() + seconds
        with waiting(lambda turn: self.wait_by_clock(turn, deadline - self.clock.monotonic())):
            return self._hold_until(signal, deadline)

    def _hold_until(self, signal: _Signal, deadline: float) -> BaseException | None:
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
        return _Scope(self.sleeper, self.clock, seconds)

    def needs_scope(self, parent_task: object, task: object) -> bool:
        # Its parent is hosted elsewhere, on a loop or another thread: nothing else could end its waits from there.
        return parent_task is not task

    async def call_sync(
        self,
        fn: Callable[[], Any],
        pool: ThreadPool,
        grace: float,
        on_cancel: Callable[[], None],
        on_abandon: Callable[[], None],
        context: Context | None = None,
        *,
        at_once: bool = False,
    ) -> Job:
        raise AssertionError("the inline host runs sync bodies on its own thread")

    async def run_async(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        signal = self.signal()
        call = PortalCall(fn, signal.set)
        try:
            await signal.wait()
        except InlineCancelled:
            call.cancel()
            await self.settle(signal, math.inf)  # as on a loop: whoever is cancelled has its clean-up waited for
            if call.cancelled:
                raise
        except BaseException:  # a Ctrl-C: the person's last word
            call.cancel()
            raise
        return call.result()

    async def protect(self, fn: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> BaseException | None:
        # A Ctrl-C is the person's last word: it goes through.
        with _Scope(self.sleeper, self.clock, seconds, shields=True):
            await fn()
        return None

    def spawn(
        self, fn: Callable[[], Coroutine[Any, Any, None]], context: Context, lost: Callable[[], object] | None = None
    ) -> None:
        raise AssertionError("the inline host has no tasks")
