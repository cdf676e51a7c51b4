"""Following events as they happen."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from asyncflow._alarm import Alarm
from asyncflow._backend.base import Host
from asyncflow._event_pages import EventReader
from asyncflow._event_rows import cursor_of, event_of
from asyncflow._journal import EventRow
from asyncflow._services import Services
from asyncflow.events import Event, EventFilter
from asyncflow.exceptions import RuntimeClosedError

__all__ = ["Subscription"]

_LOOK_SECONDS = 0.1
"""How often to look for what other processes have committed; what this one commits wakes us."""

_IN_A_ROW = 50
"""Events given before the loop's other tasks have a turn: a few milliseconds."""


class Subscription:
    """The events that a filter wants, one after another: an async iterator, and a context manager around it.

    An iterator and not a generator: leaving the loop leaves nothing suspended behind.
    """

    def __init__(
        self,
        open_services: Callable[[], Awaitable[Services]],
        host_here: Callable[[], Host],
        wanted: EventFilter | None,
        after: Event | str | None,
    ) -> None:
        self._stop_watching: Callable[[], None] | None = None
        self._page: deque[EventRow] = deque()
        self._open_services = open_services
        self._host_here = host_here
        self._wanted = wanted or EventFilter()
        self._after = cursor_of(after)
        self._services: Services | None = None
        self._reader: EventReader | None = None
        self._alarm = Alarm()
        self._is_over = False
        self._given = 0

    def __repr__(self) -> str:
        return f"<Subscription to {self._wanted!r}{' (ended)' if self._is_over else ''}>"

    async def __aenter__(self) -> Self:
        if self._services is None:
            await self._begin(self._host_here())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._page and self._given % _IN_A_ROW == 0:
            await self._host_here().sleep(0)
        while not self._page:
            if self._is_over:
                raise StopAsyncIteration
            await self._look(self._host_here())
        self._given += 1
        return event_of(self._page.popleft())

    async def aclose(self) -> None:
        """Give no more events."""
        self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._page.clear()
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None

    async def _begin(self, host: Host) -> None:
        """Find out where to begin, once."""
        services = await self._open_services()
        after = self._after
        if after is None:
            after = await services.ask(host, services.store.newest_cursor)
        # Only now: whatever ended this before has left nothing behind.
        if self._services is None and not self._is_over:
            self._services, self._after = services, after
            self._reader = EventReader(services.store, self._wanted)
            self._stop_watching = services.store.watch(self._alarm.wake)

    async def _look(self, host: Host) -> None:
        """Read the next page; where there is none, wait until there may be."""
        if self._services is None:
            await self._begin(host)
        services, reader, after = self._services, self._reader, self._after
        if services is None or reader is None:  # ended meanwhile
            return
        signal = self._alarm.renew(host)
        try:
            if services.store.is_instant:
                await host.sleep(0)  # where nothing is waited for, others have their turn all the same
            rows, self._after, has_more = await services.ask(host, lambda: reader.page(after))
        except RuntimeClosedError:
            self._end()
            return
        self._page.extend(rows)
        if not (rows or has_more):
            await host.wait_for(signal, _LOOK_SECONDS)
