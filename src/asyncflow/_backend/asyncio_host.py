"""The host on asyncio: plain, with eager tasks, and on uvloop.

No anyio scope lies around user code here. Through `gather`, `wait_for` or `await task` such a
scope hit each child thousands of times in 50 ms at 100 % CPU. A run's scope is one native cancel,
accounted for with `cancelling()` and `uncancel()`, and held back while the body is inside an anyio
shield. anyio serves for our own waiting, and for what users reach from worker threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio

from asyncflow._backend.base import BREATH_INTERVAL, RunScope, Signal, breathe, open_no_link
from asyncflow._backend.loop_host import LoopHost
from asyncflow._backend.thread_context import worker_context

__all__ = ["AsyncioHost"]

_MOST_INTERRUPTS = 2
_LEAVES_COUNTS = sys.version_info < (3, 13)
"""Whether a failed `asyncio.TaskGroup` leaves its parent's `cancelling()` at 1."""
_FIRST_HOLD = 0.01
_LONGEST_HOLD = 0.5


def _in_shield(scope: Any, around: Any = None) -> bool:
    """Whether an anyio scope, or one of those around it up to `around`, is shielded."""
    while scope is not None and scope is not around:
        if scope.shield:
            return True
        scope = getattr(scope, "_parent_scope", None)
    return False


class _Delivery:
    """The native cancel of a whole task, held back while it is inside an anyio shield."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], is_over: Callable[[], bool]) -> None:
        self._loop = loop
        self._task = task
        self._is_over = is_over
        self._hold = _FIRST_HOLD

    def attempt(self) -> None:
        if self._task.done() or self._is_over():
            return
        if _in_shield(_anyio_scope(self._task)):
            self._loop.call_later(self._hold, self.attempt)
            self._hold = min(self._hold * 2, _LONGEST_HOLD)
        elif self._task is asyncio.current_task():
            # It cancels itself: only while it waits can that not outlive its body.
            self._loop.call_soon(self.attempt)
        else:
            self._task.cancel()


def _anyio_scope(task: asyncio.Task[Any]) -> Any:
    """The innermost anyio scope that `task` is in.

    anyio has no public way to ask this of another task; where its inside has changed, we say None,
    and a native cancel goes through shields, as every native cancel does.
    """
    try:
        from anyio._backends import _asyncio  # loaded once, with the first scope

        return vars(_asyncio)["_task_states"][task].cancel_scope
    except (ImportError, KeyError, AttributeError):
        return None


class _Signal(Signal):
    __slots__ = ("_future", "_host", "_others")

    def __init__(self, host: AsyncioHost) -> None:
        super().__init__()
        self._host = host
        self._future: asyncio.Future[None] | None = None
        self._others: list[asyncio.Future[None]] | None = None

    def set(self) -> None:
        self.is_set = True
        # In a task, or else through the selector: a signal handler on this very thread has to wake it.
        if self._host.here() and asyncio.current_task() is not None:
            self._resolve()
        else:
            self._host.post(self._resolve)

    def _resolve(self) -> None:
        for future in (self._future, *(self._others or ())):
            if future is not None and not future.done():
                future.set_result(None)

    def next_future(self) -> asyncio.Future[None]:
        # A new one for each wait: a cancelled future stays cancelled for good.
        if self._future is not None and not self._future.done():  # a second waiter: two tasks close one stream
            self._others = [self._future, *(each for each in self._others or () if not each.done())]
        self._future = self._host.loop.create_future()
        if self.is_set:
            self._future.set_result(None)
        return self._future

    async def wait(self) -> None:
        while not self.is_set:
            await self.next_future()


class _Scope(RunScope):
    """One polite native cancel of the task it was entered in."""

    __slots__ = (
        "_around",
        "_before",
        "_closed",
        "_delivered",
        "_expired",
        "_hold",
        "_host",
        "_seconds",
        "_task",
        "_timer",
        "caught",
    )

    def __init__(self, host: AsyncioHost, seconds: float | None) -> None:
        self._host = host
        self._seconds = seconds
        self._task: asyncio.Task[Any] | None = None
        self._before = 0
        self._timer: asyncio.TimerHandle | None = None
        self._hold = _FIRST_HOLD
        self._delivered = 0
        self._closed = False
        self.caught = self._expired = False

    @property
    def expired(self) -> bool:
        return self._expired

    def cancel(self, *, again: bool = False) -> None:
        task = self._task
        if self._closed or task is None or (self._delivered and not again):
            return
        if not again and _in_shield(_anyio_scope(task), self._around):  # one around this scope is not its body's
            self._timer = self._host.loop.call_later(self._hold, self.cancel)
            self._hold = min(self._hold * 2, _LONGEST_HOLD)
        elif task is asyncio.current_task():
            # A body cancels itself: only while it waits can that not outlive this scope.
            self._host.loop.call_soon(self.cancel)
        else:
            self._delivered += 1
            task.cancel()

    def _expire(self) -> None:
        if not self._delivered:
            self._expired = True
            self.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._before = self._task.cancelling()
        self._around = _anyio_scope(self._task)
        if self._seconds is not None:
            self._timer = self._host.loop.call_later(self._seconds, self._expire)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        if self._delivered and task is not None:
            others = [task.uncancel() for _ in range(self._delivered)][-1]
            # Somebody else cancelled the task too: theirs wins, and goes on untouched.
            self.caught = isinstance(exc, asyncio.CancelledError) and others <= self._before
        return self.caught


class AsyncioHost(LoopHost):
    """The host of the asyncio loop that runs on the thread it is made on."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], Callable[[], object] | None] = {}

    def here(self) -> bool:
        return asyncio._get_running_loop() is self.loop

    def current_task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    def is_dead(self) -> bool:
        return self.loop.is_closed()

    def is_stopped(self) -> bool:
        return not self.loop.is_running()

    def cancel_task(self, task: Any, *, again: bool, is_ours: bool, is_over: Callable[[], bool]) -> bool:
        hosting: asyncio.Task[Any] = task
        if not isinstance(task, asyncio.Task):
            return False
        if again:
            hosting.cancel()
        elif not hosting.cancelling() or (is_ours and _LEAVES_COUNTS):
            # One that somebody cancelled is cleaning up, and a second cancel would cut that short: the
            # children of a cancelled `gather`, which ends with the first of them. (Or it swallowed the
            # cancellation, or a TaskGroup left the count behind: so, later, again. Tasks of ours are
            # cancelled by hardly anybody else, so there a count is most likely a TaskGroup's.)
            _Delivery(self.loop, hosting, is_over).attempt()
        return True

    def cancels_asked(self) -> int:
        task = asyncio.current_task()
        return 0 if task is None else task.cancelling()

    def is_cancellation(self, exc: BaseException) -> bool:
        return isinstance(exc, asyncio.CancelledError)

    def post(self, fn: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            self.loop.call_soon_threadsafe(fn)

    def call_later(self, seconds: float, fn: Callable[[], object]) -> Callable[[], None]:
        return self.loop.call_later(seconds, fn).cancel

    def signal(self) -> Signal:
        return _Signal(self)

    async def read_file(self, path: Path) -> bytes:
        import aiofiles  # only for values that are too large for a row

        async with aiofiles.open(path, "rb", opener=open_no_link) as file:
            return await file.read()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def wait_for(self, signal: Signal, seconds: float) -> bool:
        assert isinstance(signal, _Signal)
        deadline = self.loop.time() + seconds
        while not signal.is_set and (left := deadline - self.loop.time()) > 0:
            future = signal.next_future()
            timer = self.loop.call_later(left, partial(_finish, future))
            try:
                await future
            finally:
                timer.cancel()
        return signal.is_set

    async def settle(self, signal: Signal, seconds: float, *, breathing: bool = False) -> BaseException | None:
        assert isinstance(signal, _Signal)
        deadline = self.loop.time() + seconds
        held_back: BaseException | None = None
        interrupts = 0
        # The shield keeps anyio's scopes, which repeat themselves, from waking this wait all the
        # time. A native cancel or a Ctrl-C goes through it and is caught here.
        with anyio.CancelScope(shield=True):
            while not signal.is_set and (left := deadline - self.loop.time()) > 0:
                future = signal.next_future()
                step = min(left, BREATH_INTERVAL) if breathing else left
                timer = self.loop.call_later(step, partial(_finish, future))
                try:
                    await future
                except asyncio.CancelledError as exc:
                    held_back = exc
                except KeyboardInterrupt as exc:
                    interrupts += 1
                    if interrupts > _MOST_INTERRUPTS:
                        raise
                    held_back = exc
                finally:
                    timer.cancel()
                if breathing and not signal.is_set:
                    breathe()
        return held_back

    def scope(self, seconds: float | None) -> RunScope:
        return _Scope(self, seconds)

    async def protect(self, fn: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> BaseException | None:
        held_back: BaseException | None = None  # for checkers: a scope may end a block early, this one does not
        with anyio.CancelScope(shield=True):  # before the task is made: an eager one begins at once
            held_back = await self._ended(self.loop.create_task(fn()), seconds)
        return held_back  # noqa: RET504

    async def _ended(self, task: asyncio.Task[None], seconds: float) -> BaseException | None:
        signal = self.signal()
        task.add_done_callback(lambda _: signal.set())
        held_back = await self.settle(signal, seconds)
        if task.done():
            task.result()  # what it raised is not for the loop's exception handler
        else:
            task.cancel()
        return held_back

    def spawn(
        self, fn: Callable[[], Coroutine[Any, Any, None]], context: Context, lost: Callable[[], object] | None = None
    ) -> None:
        task = self.loop.create_task(fn(), context=context)
        if not task.done():  # an eager one may be
            self._tasks[task] = lost  # the loop itself holds tasks weakly
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        lost = self._tasks.pop(task)
        if lost is not None and task.cancelled():
            lost()

    def _enter_thread(self) -> Callable[[], Any]:
        return worker_context()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
