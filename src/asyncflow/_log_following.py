"""Following what a run logs, while it goes on and to its end.

Nothing is kept between two pages but where the last one ended, so a slow reader costs nothing, and one
that goes away leaves nothing behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._live_tree import live_runs
from asyncflow._rows import FIRST_FINAL, LogRow, RunRow, log_record_of
from asyncflow._services import Services
from asyncflow.abc import LogQuery, RunStore
from asyncflow.exceptions import RunNotFoundError, RuntimeClosedError
from asyncflow.runs import LogRecord

__all__ = ["LinesOfRun", "LogStream", "has_ended"]

_PAGE = 200
"""Lines that are read at once: what a reader has to itself before others of its loop have their turn."""
_LOOK_SECONDS = 0.1
"""How often to look for what other processes have written; what this one writes wakes us."""


def has_ended(row: RunRow | None) -> bool:
    """Whether nothing more is to come of a run. One that was deleted has ended."""
    return row is None or row.state >= FIRST_FINAL


class LinesOfRun:
    """The lines that `query` asks for, a page at a time, in the order they were written, until the run `is_over`.

    The query's limit does not count. `is_over` is asked where the store is read, and may block.
    """

    def __init__(self, query: LogQuery, is_over: Callable[[RunRow | None], bool] = has_ended) -> None:
        self._query = replace(query, after_id=query.after_id or b"", limit=_PAGE)
        self._is_over = is_over
        self._has_all = False

    async def page(self, services: Services, host: Host) -> list[LogRow]:
        """Wait for lines; none: there are no more, or the runtime is closed."""
        while not self._has_all:
            committed = host.signal()
            end_watch = services.store.watch(committed.set)  # before looking: what is written meanwhile sets it
            try:
                if services.store.is_instant:
                    await host.sleep(0)  # where nothing is waited for, others have their turn all the same
                lines = await services.ask(host, lambda: self._look(services.store))
                if lines:
                    self._query = replace(self._query, after_id=lines[-1].id)
                    return lines
                if not self._has_all:
                    await host.wait_for(committed, _LOOK_SECONDS)
            except RuntimeClosedError:
                self._has_all = True
            finally:
                end_watch()
        return []

    def _look(self, store: RunStore) -> list[LogRow]:
        # The run before its lines: those it logged before its end are written with its end, or earlier.
        is_over = self._is_over(store.read_run(self._query.run_id))
        lines = store.read_logs(self._query)
        self._has_all = is_over and len(lines) < _PAGE
        return lines


class LogStream(AsyncIterator[LogRecord]):
    """The log records of a run as they are written; made by `client.follow_logs`."""

    def __init__(self, services: Callable[[], Awaitable[Services]], host: Callable[[], Host], query: LogQuery) -> None:
        self._open = services
        self._host = host
        self._query = query
        self._services: Services | None = None
        self._lines = LinesOfRun(query)
        self._page: deque[LogRow] = deque()

    async def __anext__(self) -> LogRecord:
        if not self._page:
            await self._next_page()
        if not self._page:
            raise StopAsyncIteration
        return log_record_of(self._page.popleft())

    async def _next_page(self) -> None:
        host = self._host()
        services = self._services
        if services is None:
            services = await self._open()
            if not await _comes_to_be(services, host, self._query.run_id):
                raise RunNotFoundError(UUID(bytes=self._query.run_id))
            self._services = services  # last: a wait that is cancelled meanwhile is begun again
        self._page.extend(await self._lines.page(services, host))


async def _comes_to_be(services: Services, host: Host, run_id: bytes) -> bool:
    """Whether there is such a run, on record; one that was called a moment ago is waited for."""
    while True:
        committed = host.signal()
        end_watch = services.store.watch(committed.set)
        try:
            # Looked at first: it may end, and be on record, meanwhile.
            is_live = any(run.id == run_id for run in live_runs(services))
            if await services.ask(host, lambda: services.store.read_run(run_id)) is not None:
                return True
            if not is_live:
                break
            await host.wait_for(committed, _LOOK_SECONDS)
        finally:
            end_watch()
    await host.confirm(services.store, services.settings.durability_seconds)  # it may have ended just before
    return await services.ask(host, lambda: services.store.read_run(run_id)) is not None
