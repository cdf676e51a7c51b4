"""The runs between a `map_stream`'s source and its consumer: at most so many, whatever the source holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from asyncflow._backend.base import Host, Signal
from asyncflow._cancellation import cancel
from asyncflow._causes import Cause
from asyncflow._outcomes import blocked
from asyncflow._run import Run, Waiter
from asyncflow._services import Services
from asyncflow._unseen import keep_if_failed
from asyncflow.futures import RunFuture

__all__ = ["Submit", "Window"]

Submit = Callable[[Any], RunFuture[Any]]
"""Submits the run of one item."""


class Window:
    """The runs that were submitted and whose results were not taken yet: at most `limit`.

    One consumer takes, one feeder or the consumer itself submits; runs end on any thread. Where two
    threads could miss each other, each says what it did before it looks at what the other did.
    """

    def __init__(self, submit: Submit, limit: int, ordered: bool) -> None:
        self._submit = submit
        self._limit = limit
        self._ordered = ordered
        # In order: all of them, as they were submitted. Else those that have ended, as they ended.
        self._queue: deque[RunFuture[Any]] = deque()
        self._open: set[RunFuture[Any]] = set()
        self._signals: set[Signal] = set()
        self.room: Signal | None = None
        """What the feeder waits for when there is no room."""
        self.closed: bool = False
        self._why = ""

    @property
    def is_full(self) -> bool:
        return self._count() >= self._limit

    @property
    def is_empty(self) -> bool:
        return not self._count()

    @property
    def has_open(self) -> bool:
        """Whether any of the runs has not ended."""
        return bool(self._open)

    @property
    def has_ready(self) -> bool:
        queue = self._queue
        return bool(queue) and (not self._ordered or queue[0].done())

    def _count(self) -> int:
        return len(self._queue) + (0 if self._ordered else len(self._open))

    def submit(self, item: Any) -> None:
        """Submit the run of an item; there is room for it."""
        future = self._submit(item)
        future.run.look()  # a million failures that are taken as states are not to be kept until the end
        self._open.add(future)
        if self._ordered:
            self._queue.append(future)
        future.run.attend(Waiter(partial(self._arrive, future)))
        if self.closed:
            cancel(future.run, Cause(self._why))

    def _arrive(self, future: RunFuture[Any]) -> None:
        if not self._ordered:
            self._queue.append(future)
        self._open.discard(future)
        if not self._ordered or self.closed or self._is_first(future):
            self.notify()

    def _is_first(self, future: RunFuture[Any]) -> bool:
        try:
            return self._queue[0] is future
        except IndexError:  # a consumer in another thread has taken it
            return False

    def take(self) -> RunFuture[Any] | None:
        """The next one that has ended, if it is there; makes room for another."""
        if not self.has_ready:
            return None
        future = self._queue.popleft()
        room = self.room
        if room is not None:
            room.set()
        return future

    def close(self, why: str) -> None:
        """Cancel what is in flight; take and submit no more. From any thread."""
        self.closed, self._why = True, why
        for future in list(self._open):
            cancel(future.run, Cause(why))
        queue, self._queue = self._queue, deque()
        for future in list(queue):
            if future.done():
                future.run.looked_at = False
                keep_if_failed(future.run)
        self.notify()

    def notify(self) -> None:
        """Have everybody who waits here look again. From any thread."""
        for signal in list(self._signals):
            signal.set()

    async def until(self, is_so: Callable[[], bool], host: Host, waiting: Run | None) -> None:
        """Wait in the body of `waiting`, which has no place meanwhile."""
        while not is_so():
            with _Enrolled(self._signals, host) as signal:
                if not is_so():  # once more: what comes from here on sets the signal
                    await blocked(host, waiting, signal)

    async def settle(self, is_so: Callable[[], bool], host: Host, services: Services) -> BaseException | None:
        """Wait at most the grace time, whatever happens meanwhile; gives what was held back."""
        held_back: BaseException | None = None
        monotonic = services.clock.monotonic
        until = monotonic() + services.settings.grace_seconds
        while not is_so() and (left := until - monotonic()) > 0:
            with _Enrolled(self._signals, host) as signal:
                if not is_so():
                    held_back = await host.settle(signal, left) or held_back
        return held_back


class _Enrolled:
    """A signal of its own, for as long as somebody waits."""

    def __init__(self, signals: set[Signal], host: Host) -> None:
        self._signals = signals
        self._signal = host.signal()

    def __enter__(self) -> Signal:
        self._signals.add(self._signal)
        return self._signal

    def __exit__(self, *_: object) -> None:
        self._signals.discard(self._signal)
