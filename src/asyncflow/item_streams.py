"""Following the recorded items of a generator's run, from any process and after any of them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from asyncflow._backend.base import Host, Signal
from asyncflow._backend.detect import host_here
from asyncflow._engine.items import Recorder, attempt_of, first_number
from asyncflow._live_tree import live_runs
from asyncflow._rows import FIRST_FINAL, RunRow, details_of, state_of
from asyncflow._services import Services
from asyncflow.clock import SystemClock
from asyncflow.exceptions import MissingResultError, OptionError, RunNotFoundError
from asyncflow.serializers import decode
from asyncflow.states import State, exception_for

__all__ = ["ItemStream", "StreamItem", "is_stream", "items_of_result", "position_of"]

_PAGE = 200
"""Items read at once: what a reader holds at most, however slow it is."""
_POLL_SECONDS = 0.1
"""How often to look for what another process has recorded; of this one's commits the store tells at once."""
_SOON_SECONDS = 0.005
_LAST = 2**63 - 1
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One recorded item of a generator's run."""

    number: int
    """Where it stands: `client.stream(run_id, after=number)` goes on behind it.

    1, 2, 3 and so on in the first attempt; each later one begins at a higher number of its own.
    """
    attempt: int
    """Which attempt of the run yielded it, from 1. A run that was resumed or tried again begins at its start."""
    value: Any
    """The item, as plain JSON data."""


class ItemStream(AsyncIterator[StreamItem]):
    """The items of a run, those recorded so far and then each when it is on disk; made by `client.stream`.

    Closing it, or leaving it, changes nothing for the run. It ends when the run has completed; of a run
    that ended otherwise it raises `FailedRunError`, `RunCancelledError` or `CrashedRunError` after the last
    item. A run that was interrupted has not ended: the stream waits until it is resumed.
    """

    def __init__(self, services: Callable[[], Awaitable[Services]], run_id: bytes, after: int) -> None:
        self._open = services
        self._services: Services | None = None
        self._run_id = run_id
        self._after = after
        self._page: deque[tuple[int, str]] = deque()
        self._row: RunRow | None = None
        self._is_over = self._is_busy = False
        self.began_in: int | None = attempt_of(after) if after else None
        """The attempt of the item that it began after; None from the start."""
        self.leaves_with_runtime = False
        """Whether it ends as soon as its runtime begins to stop, for one whose consumer will come back."""
        self.has_left = False
        """Whether it has ended so."""

    @property
    def state(self) -> State[Any] | None:
        """The run's state when it was last looked at; None before that."""
        return None if self._row is None else state_of(self._row)

    @property
    def position(self) -> int:
        """The number of the last item that was taken: where another stream would go on."""
        return self._after

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        if not self._page:
            if self._is_over:
                raise StopAsyncIteration
            if self._is_busy:
                raise RuntimeError("this stream is already waiting for its next item in another task")
            self._is_busy = True
            try:
                await self._next_page()
            finally:
                self._is_busy = False
        if not self._page:
            self._is_over = True
            if self.has_left:
                raise StopAsyncIteration
            assert self._row is not None
            state = state_of(self._row)
            if state.is_completed():
                raise StopAsyncIteration
            raise exception_for(state)
        number, text = self._page.popleft()
        self._after = number
        return StreamItem(number, attempt_of(number), decode(text))

    async def _next_page(self) -> None:
        """Wait until there is another item, or none will come."""
        host = host_here(_CLOCK)
        services = self._services
        if services is None:
            services = await self._open()
            await self._check(host, services)
            self._services = services  # last: a wait that is cancelled meanwhile is begun again
        while not self._is_to_leave(services):
            committed = host.signal()
            # A thousand streams of which one has a new item are not all to be woken by its commit.
            recorder: Recorder | None = services.recorders.get(self._run_id)
            has_news = _always if recorder is None else partial(recorder.has_news, self._after)
            end_watch = services.store.watch(partial(_ring, committed, has_news))
            try:
                if services.store.is_instant:
                    await host.sleep(0)  # where nothing is waited for, others have their turn all the same
                await services.ask(host, lambda: self._look(services))
                if self._page or (self._row is not None and self._row.state >= FIRST_FINAL):
                    return
                while not (await host.wait_for(committed, _POLL_SECONDS) or has_news() or self._is_to_leave(services)):
                    pass  # the run goes on in this process, so there is nothing to look for elsewhere
            finally:
                end_watch()

    def _is_to_leave(self, services: Services) -> bool:
        self.has_left = self.leaves_with_runtime and not services.intake.is_open
        return self.has_left

    def _look(self, services: Services) -> None:
        # The run first: what it yielded was recorded before it ended.
        self._row = services.store.read_run(self._run_id)
        if self._row is None:
            raise RunNotFoundError(UUID(bytes=self._run_id))  # deleted meanwhile
        self._page.extend(_read_page(services, self._run_id, self._after))

    async def _check(self, host: Host, services: Services) -> None:
        """Refuse a run that is unknown, or whose items are not recorded."""
        while True:
            # Looked at first: it may end, and be on record, meanwhile.
            goes_on_here = any(run.id == self._run_id for run in live_runs(services))
            row = await services.ask(host, lambda: services.store.read_run(self._run_id))
            if row is not None:
                break
            if not goes_on_here:
                raise RunNotFoundError(UUID(bytes=self._run_id))
            await host.sleep(_SOON_SECONDS)  # it was submitted a moment ago, and is on its way to the store
        if not is_stream(row):
            reason = f"the items of {row.function!r} are not recorded: declare it with persist_result=True"
            raise MissingResultError(UUID(bytes=self._run_id), reason)

    async def aclose(self) -> None:
        """End the iteration; the run goes on."""
        self._is_over = True
        self._page.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


def _always() -> bool:
    return True


def _ring(signal: Signal, has_news: Callable[[], bool]) -> None:
    if has_news():
        signal.set()


def is_stream(row: RunRow) -> bool:
    """Whether the items that a run yields are recorded."""
    return details_of(row).get("items") is True


def items_of_result(services: Services, row: RunRow) -> list[Any]:
    """The items of the attempt with which a run completed. Blocks."""
    items: list[Any] = []
    after = first_number(row.run_count) - 1
    while page := _read_page(services, row.id, after):
        items.extend(decode(text) for _, text in page)
        after = page[-1][0]
    return items


def _read_page(services: Services, run_id: bytes, after: int) -> list[tuple[int, str]]:
    rows = services.store.read_items(run_id, after, _PAGE)
    results = services.results
    if results is None:
        return [(row.n, row.data) for row in rows]
    what = f"items of run {UUID(bytes=run_id)}"
    return [(row.n, results.unseal(row.data, what)) for row in rows]


def position_of(after: int | str | None) -> int:
    """The number that `after` says, also as the text of a `Last-Event-ID` header; 0 where it says nothing.

    Raises `OptionError` for anything else.
    """
    if after is None or after == "":
        return 0
    if isinstance(after, str) and after.isascii() and after.isdigit() and len(after) <= len(str(_LAST)):
        after = int(after)
    if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after <= _LAST:
        raise OptionError("after", after, "the number of an item, or the Last-Event-ID that holds it")
    return after
