"""The contract of a host, and what all hosts share.

Everything the engine awaits goes through its host. On asyncio and trio the host suspends; the
inline host, on a thread without a loop, never does, so the calling thread itself drives the one
engine coroutine to its end.
"""

from __future__ import annotations

import os
import select
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from asyncflow._backend.elsewhere import no_longer_awaited, waiting_for_disk
from asyncflow._backend.threads import Job, ThreadPool
from asyncflow.abc import RunStore, Ticket

__all__ = ["BREATH_INTERVAL", "Host", "RunScope", "Signal", "breathe", "open_no_link"]

T = TypeVar("T")

BREATH_INTERVAL = 0.005
"""Seconds between two breaths, and between two yields to the loop: CPython's switch interval."""
_BREATH = 0.0001
_POLL = 0.002


def breathe() -> None:
    """Block this thread for 0.1 ms, so that the store's thread gets the GIL.

    A loop that always has something ready starves every other thread: the GIL is handed over by
    force only after 5 ms without release, and each `select(0)` of the loop restarts that count.
    Records then took 5 to 30 s to reach the disk. (`select` and not `time.sleep`: tools that look
    for blocking calls on the loop would report every flow of theirs for these 0.1 ms.)
    """
    if sys.platform == "win32":
        time.sleep(_BREATH)  # `select` takes no empty lists there
    else:
        select.select((), (), (), _BREATH)


def open_no_link(path: str, flags: int) -> int:
    """An opener for files of ours: one that was replaced by a link leads elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))


class Signal(ABC):
    """Something that happens once: set from any thread, waited for on its host by one waiter."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set: bool = False

    @abstractmethod
    def set(self) -> None:
        """Say that it has happened; a second time changes nothing."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait for it; a cancellation ends the wait."""


class RunScope(ABC):
    """What can be cancelled: one attempt's body. A context manager around it, on its own task."""

    __slots__ = ()

    caught: bool
    """After the end: the body stopped because of this scope, and of nothing outside it."""

    @property
    @abstractmethod
    def expired(self) -> bool:
        """Whether its deadline has passed."""

    @abstractmethod
    def cancel(self, *, again: bool = False) -> None:
        """Deliver a cancellation, once, or once more where it was ignored; after the end it does nothing.

        On the scope's host only.
        """

    def check(self) -> None:
        """Raise the cancellation here if the body is to stop and nothing else can tell it; a loop can."""
        return

    @abstractmethod
    def __enter__(self) -> Self: ...
    @abstractmethod
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool: ...


class _SignalTicket(Ticket):
    __slots__ = ("signal",)

    def __init__(self, wake: Callable[[list[Ticket]], None], signal: Signal) -> None:
        super().__init__(wake)
        self.signal = signal


class Host(ABC):
    """One loop, or one thread without a loop, as the engine sees it."""

    is_inline: ClassVar[bool] = False

    def __init__(self) -> None:
        self._next_relax = 0.0

    # --- where and who

    @abstractmethod
    def here(self) -> bool:
        """Whether the calling code runs on this host."""

    @abstractmethod
    def current_task(self) -> object:
        """The backend's task that runs now; for the inline host, itself."""

    def is_dead(self) -> bool:
        """Whether its loop is closed, so that nothing on it will ever go on; from any thread."""
        return False

    def is_stopped(self) -> bool:
        """Whether its loop does not run, closed or not: nobody knows whether anything on it will go on."""
        return self.is_dead()

    def cancel_task(  # only asyncio has a way
        self, task: object, *, again: bool, is_ours: bool, is_over: Callable[[], bool]
    ) -> bool:
        """Cancel a backend's task that hosts a run; false where only a scope can do that.

        Held back while the task is in a shield, until `is_over` says that nobody wants it any more.
        `is_ours`: the library made the task.
        """
        return False

    @abstractmethod
    def is_cancellation(self, exc: BaseException) -> bool:
        """Whether `exc` is the backend's own cancellation."""

    def without_cancellations(self, exc: BaseException) -> BaseException | None:  # only a trio nursery mixes them
        """What is left of `exc` without the backend's own cancellations in it."""
        return None if self.is_cancellation(exc) else exc

    def cancels_asked(self) -> int:  # only asyncio's cancellations can be answered and forgotten
        """How many requests to cancel the running task are open; more than before: somebody outside wants it to end."""
        return 0

    @abstractmethod
    def post(self, fn: Callable[[], object]) -> None:
        """Run `fn` on this host soon; from any thread. A host whose loop is closed ignores it."""

    @abstractmethod
    def call_later(self, seconds: float, fn: Callable[[], object]) -> Callable[[], None]:
        """Run `fn` on this host in `seconds`; gives what cancels it. From this host only."""

    # --- waiting

    @abstractmethod
    def signal(self) -> Signal:
        """A new signal for one waiter on this host."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait; a cancellation ends the wait."""

    @abstractmethod
    async def wait_for(self, signal: Signal, seconds: float) -> bool:
        """Wait for `signal`, at most `seconds`; whether it is set. A cancellation ends the wait."""

    @abstractmethod
    async def settle(self, signal: Signal, seconds: float, *, breathing: bool = False) -> BaseException | None:
        """Wait for `signal`, at most `seconds`, whatever happens meanwhile.

        Cancellations and the first two Ctrl-C are held back; the last one is returned, for the
        caller to raise when its own work is done. With `breathing`, the store's thread is given
        the GIL every few milliseconds.
        """

    async def relax(self, store: RunStore, limit: int) -> None:
        """Give way before a run begins: to other tasks of the loop, to the store, and to a disk that is behind."""
        # Before it gives way: of 20,000 runs that begin in one turn of the loop one does so, not each of
        # them. But when the disk is behind, every run that begins is held back.
        is_behind = store.backlog > limit
        self._next_relax = 0.0 if is_behind else time.monotonic() + BREATH_INTERVAL
        if store.backlog:
            breathe()
        await self.sleep(0)
        while store.backlog > limit:
            await self.sleep(_POLL)
        if is_behind:
            self._next_relax = time.monotonic() + BREATH_INTERVAL

    def wants_to_relax(self) -> bool:
        """Whether `relax` is due: every 5 ms is enough, and in each run it would cost more than the run."""
        return time.monotonic() >= self._next_relax

    async def confirm(self, store: RunStore, seconds: float) -> tuple[bool, Exception | None, BaseException | None]:
        """Wait until everything put into the store so far is on disk.

        Gives whether it is, the store's error if it has one, and what was held back meanwhile.
        """
        ticket = _SignalTicket(self._wake, self.signal())
        held_back = None
        with waiting_for_disk(store, ticket):
            store.confirm(ticket)
            if not ticket.done:
                held_back = await self.settle(ticket.signal, seconds, breathing=True)
        return ticket.done and ticket.error is None, ticket.error, held_back

    def _wake(self, tickets: list[Ticket]) -> None:
        def wake() -> None:
            for ticket in tickets:
                assert isinstance(ticket, _SignalTicket)
                ticket.signal.set()

        self.post(wake)
        no_longer_awaited(tickets)  # after the post: virtual time must not jump in between

    # --- running

    @abstractmethod
    async def read_file(self, path: Path) -> bytes:
        """The content of a file; a symbolic link is not followed. Raises `OSError`."""

    @abstractmethod
    async def run_blocking(self, fn: Callable[[], T]) -> T:
        """Run a short blocking call of ours (opening or reading the store) where it blocks nobody."""

    @abstractmethod
    def scope(self, seconds: float | None) -> RunScope:
        """A scope for one attempt, with a deadline in `seconds` or without one."""

    def needs_scope(self, parent_task: object, task: object) -> bool:  # only trio has a use for it
        """Whether a run whose parent is hosted by another task needs a scope to be cancelled by."""
        return False

    @abstractmethod
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
        """Run a sync body where it blocks nobody, and give its job when it has ended.

        It runs in `context`, or in a copy of this one; `at_once` is as in `ThreadPool.start`.

        A cancellation meanwhile calls `on_cancel` and is raised when the body has ended, or after
        `grace` seconds; the job then goes on alone, and `on_abandon` was called.
        """

    @abstractmethod
    async def run_async(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        """Run an async hook: on this loop, or on the process's own when this thread has none."""

    @abstractmethod
    async def protect(self, fn: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> BaseException | None:
        """Run `fn` to its end, undisturbed by cancellations, at most `seconds`; gives what was held back."""

    @abstractmethod
    def spawn(
        self, fn: Callable[[], Coroutine[Any, Any, None]], context: Context, lost: Callable[[], object] | None = None
    ) -> None:
        """Run `fn`, which must not raise, in a task of its own; on this host only.

        `lost` is called when the task was cancelled before `fn` could begin (asyncio can do that,
        when it takes a loop down).
        """
