"""Reading events by pages: those that a filter wants, from a place in the journal on. Blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple
from uuid import UUID

from asyncflow._event_rows import flow_run_id_of, kind_of, name_of, resource_of
from asyncflow._journal import Cursor, EventRow
from asyncflow.abc import RunStore
from asyncflow.events import EventFilter

__all__ = ["PAGE", "EventReader", "read_events"]

PAGE = 2000
"""Events that are in memory at a time."""
_MOST_REMEMBERED = 10_000

Condition = Callable[[EventRow], bool]


class Page(NamedTuple):
    """What was found from a place in the journal on."""

    rows: list[EventRow]
    """The events that are wanted."""
    after: Cursor
    """Where to go on."""
    has_more: bool
    """Whether there may be more at once."""


class EventReader:
    """Finds the events that a filter wants. Used by one thread at a time."""

    def __init__(self, store: RunStore, wanted: EventFilter) -> None:
        self._store = store
        self._conditions = list(_conditions(wanted, store))

    def page(self, after: Cursor | None) -> Page:
        """The next ones after a cursor; None = since the journal begins."""
        newest = self._store.newest_cursor()
        rows = self._store.read_journal(after, PAGE)
        found = [row for row in rows if all(condition(row) for condition in self._conditions)]
        if len(rows) == PAGE:
            return Page(found, rows[-1].cursor, has_more=True)
        # All that was committed by then was read: the place lasts, also when that is not kept any more.
        return Page(found, max(newest, rows[-1].cursor) if rows else max(newest, after or newest), has_more=False)


def read_events(store: RunStore, wanted: EventFilter, after: Cursor | None, limit: int) -> list[EventRow]:
    """The first `limit` events that are wanted after a cursor, oldest first."""
    reader = EventReader(store, wanted)
    if after is None and isinstance(wanted.flow_run_id, UUID):
        row = store.read_run(wanted.flow_run_id.bytes)
        after = None if row is None else store.cursor_since(row.created)
    found: list[EventRow] = []
    has_more = True
    while has_more and len(found) < limit:
        rows, after, has_more = reader.page(after)
        found += rows
    return found[:limit]


def _conditions(wanted: EventFilter, store: RunStore) -> Iterator[Condition]:
    kinds, names, resource, flow_run_id = wanted.kinds, wanted.names, wanted.resource, wanted.flow_run_id
    if kinds is not None:
        yield lambda row: kind_of(row) in kinds
    if names is not None:
        matches = _matcher(tuple(names))
        yield lambda row: matches(name_of(row))
    if resource is not None:
        of_resource = _matcher((resource,))
        yield lambda row: of_resource(resource_of(row) or "")
    if isinstance(flow_run_id, UUID):
        within = _Descent(store, flow_run_id.bytes)
        yield lambda row: within.holds(flow_run_id_of(row))


def _matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    exact = {each for each in patterns if not each.endswith("*")}
    beginnings = tuple(each[:-1] for each in patterns if each.endswith("*"))
    return lambda text: text in exact or text.startswith(beginnings)


class _Descent:
    """Which flow runs are below one, found by walking up from each and remembered while they are few."""

    def __init__(self, store: RunStore, top: bytes) -> None:
        self._store = store
        self._top = top
        self._known: dict[bytes, bool] = {}

    def holds(self, flow_run_id: bytes | None) -> bool:
        """Whether it is the one, or below it. One that was deleted is not."""
        way: list[bytes] = []
        answer: bool | None = None
        while answer is None:
            if flow_run_id is None or flow_run_id in way:
                answer = False
            elif flow_run_id == self._top:
                answer = True
            elif flow_run_id in self._known:
                answer = self._known[flow_run_id]
            else:
                way.append(flow_run_id)
                row = self._store.read_run(flow_run_id)
                flow_run_id = None if row is None else row.flow_run_id
        if len(self._known) > _MOST_REMEMBERED:
            self._known.clear()
        self._known.update(dict.fromkeys(way, answer))
        return answer
