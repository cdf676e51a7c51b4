"""The host on trio. Its cancellation is a level and its scopes are trio's own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import trio

from asyncflow._backend.base import BREATH_INTERVAL, RunScope, Signal, breathe, open_no_link
from asyncflow._backend.loop_host import LoopHost
from asyncflow._backend.thread_context import worker_context

__all__ = ["TrioHost"]

_MOST_INTERRUPTS = 2


class _Signal(Signal):
    __slots__ = ("_event", "_host")

    def __init__(self, host: TrioHost) -> None:
        super().__init__()
        self._host = host
        self._event = trio.Event()

    def set(self) -> None:
        self.is_set = True
        if self._host.current_task() is not None and self._host.here():
            self._event.set()
        else:
            self._host.post(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


class _Scope(RunScope):
    __slots__ = ("_scope", "_seconds", "_until", "caught")

    def __init__(self, seconds: float | None) -> None:
        self._scope = trio.CancelScope()
        self._seconds = seconds
        self._until = math.inf
        self.caught = False

    @property
    def expired(self) -> bool:
        try:
            return self._scope.deadline <= trio.current_time()
        except RuntimeError:  # asked on a worker thread, which knows no trio
            return time.monotonic() >= self._until

    def cancel(self, *, again: bool = False) -> None:
        self._scope.cancel()  # a level: it needs no second time

    # Protected: a Ctrl-C between the two scopes' enters, or exits, would leave trio's own stack of scopes torn.
    @trio.lowlevel.enable_ki_protection
    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._scope.deadline = trio.current_time() + self._seconds
            self._until = time.monotonic() + self._seconds
        self._scope.__enter__()
        return self

    @trio.lowlevel.enable_ki_protection
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        suppressed = bool(self._scope.__exit__(exc_type, exc, tb))
        self.caught = self._scope.cancelled_caught
        return suppressed


class TrioHost(LoopHost):
    """The host of the trio run that goes on, on the thread it is made on."""

    def __init__(self) -> None:
        super().__init__()
        self._root = trio.lowlevel.current_root_task()
        self._token = trio.lowlevel.current_trio_token()

    def here(self) -> bool:
        try:
            return trio.lowlevel.current_root_task() is self._root
        except RuntimeError:  # no trio run on this thread
            return False

    def is_dead(self) -> bool:
        try:
            self._token.run_sync_soon(_nothing)
        except trio.RunFinishedError:
            return True
        return False

    def current_task(self) -> object:
        try:
            return trio.lowlevel.current_task()
        except RuntimeError:  # between two steps: in a signal handler, in a callback
            return None

    def is_cancellation(self, exc: BaseException) -> bool:
        # A nursery wraps what its children raise: a group of nothing but cancellations is one.
        return self.without_cancellations(exc) is None

    def without_cancellations(self, exc: BaseException) -> BaseException | None:
        if isinstance(exc, BaseExceptionGroup):
            return cast("BaseExceptionGroup[BaseException]", exc).split(trio.Cancelled)[1]
        return None if isinstance(exc, trio.Cancelled) else exc

    def post(self, fn: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(fn)
        except trio.RunFinishedError:  # nobody waits there any more
            return

    def call_later(self, seconds: float, fn: Callable[[], object]) -> Callable[[], None]:
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(seconds)
                fn()

        trio.lowlevel.spawn_system_task(wait, context=Context())
        return partial(self._cancel_timer, scope)

    def _cancel_timer(self, scope: trio.CancelScope) -> None:
        if self.here():
            scope.cancel()
        else:
            self.post(scope.cancel)

    def signal(self) -> Signal:
        return _Signal(self)

    async def read_file(self, path: Path) -> bytes:
        async with await trio.open_file(path, "rb", opener=open_no_link) as file:
            return await file.read()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def wait_for(self, signal: Signal, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await signal.wait()
        return signal.is_set

    @trio.lowlevel.enable_ki_protection
    async def settle(self, signal: Signal, seconds: float, *, breathing: bool = False) -> BaseException | None:
        deadline = trio.current_time() + seconds
        held_back: BaseException | None = None
        interrupts = 0
        with trio.CancelScope(shield=True):
            while not signal.is_set and (left := deadline - trio.current_time()) > 0:
                step = min(left, BREATH_INTERVAL) if breathing else left
                try:
                    with trio.move_on_after(step):
                        await signal.wait()
                except KeyboardInterrupt as exc:
                    interrupts += 1
                    if interrupts > _MOST_INTERRUPTS:
                        raise
                    held_back = exc
                if breathing and not signal.is_set:
                    breathe()
        return held_back

    def scope(self, seconds: float | None) -> RunScope:
        return _Scope(seconds)

    def needs_scope(self, parent_task: object, task: object) -> bool:
        # Nothing else could cancel a run that a nursery outside of its parent's body hosts.
        return parent_task is not task

    async def protect(self, fn: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> BaseException | None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            await fn()
        return None

    def spawn(
        self, fn: Callable[[], Coroutine[Any, Any, None]], context: Context, lost: Callable[[], object] | None = None
    ) -> None:
        trio.lowlevel.spawn_system_task(fn, context=context)

    def _enter_thread(self) -> Callable[[], Any]:
        return worker_context()


def _nothing() -> None:
    """Asked for only to see whether the run takes it."""
