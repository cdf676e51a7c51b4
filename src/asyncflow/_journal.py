"""What happened, in the order in which it was committed: the rows of the journal, and what a reader sees of them.

A commit that changes states adds one row to the journal, which names each run that it wrote and
which of the run's states are new: some 18 bytes a run. What those states are, the run's own row
tells, so nothing is kept twice, and a reader expands the one with the other. The database
serialises commits, so their numbers are an order that all processes agree on.

Within a commit the order is that of time; at the same moment (on a clock that stands still) what
ends a run comes after all else, so that a reader never sees a flow end before its tasks.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from asyncflow._rows import FIRST_FINAL, RunRow, history_of

__all__ = [
    "EMITTED",
    "Change",
    "Cursor",
    "EventRow",
    "cursor_text",
    "decoded",
    "encoded",
    "events_of_commit",
    "parse_cursor",
]


class Cursor(NamedTuple):
    """A place in the journal: cursors are in the order in which things were committed."""

    journal: int
    """The number of the commit."""
    at: int
    """When it happened, in microseconds since 1970 UTC."""
    place: int
    """Among what happened at that moment in that commit."""


def cursor_text(cursor: Cursor) -> str:
    """A cursor as people carry it about."""
    return "-".join(map(str, cursor))


def parse_cursor(text: str) -> Cursor:
    """What `cursor_text` made a text of; `ValueError` when it is none."""
    if not re.fullmatch(r"\d+-\d+-\d+", text, re.ASCII):
        raise ValueError(f"not a cursor: {text!r}")
    return Cursor(*map(int, text.split("-")))


class EventRow(NamedTuple):
    """Something that happened: a run came to a state, or somebody emitted an event."""

    at: int
    """Microseconds since 1970 UTC."""
    name: str | None
    """Of an emitted event; None for a state."""
    resource: str | None = None
    """What an emitted event is about."""
    payload: str | None = None
    """JSON of what an emitted event tells."""
    flow_run_id: bytes | None = None
    task_run_id: bytes | None = None
    run: RunRow | None = None
    """Of a state: the run as it is now, without its parameters, value and error."""
    sequence: int = 0
    """Of a state: which one of the run's, counted from 0."""
    entry: Sequence[Any] = ()
    """Of a state: what the run's history has of it."""
    cursor: Cursor = Cursor(0, 0, 0)
    """Given by the store."""


EMITTED = EventRow._fields[:6]
"""The columns that are kept of an emitted event."""


class Change(NamedTuple):
    """New states of a run: it had `since` of them, and has `until`."""

    run_id: bytes
    since: int
    until: int


_CREATED = itemgetter(RunRow._fields.index("created"))
_ID = 16
_LARGE = 255
"""Instead of the first number: both follow in four bytes each."""
_EMITTED, _FINAL = 1 << 40, 2 << 40
"""Added to a place: emitted events come after the states of that moment, but before those that end a run."""


def encoded(changes: Iterable[tuple[bytes, int, int]]) -> bytes:
    """What a row of the journal holds of changes."""
    return b"".join([run_id + _numbers(since, until) for run_id, since, until in changes])


@lru_cache(maxsize=256)
def _numbers(since: int, until: int) -> bytes:
    return bytes((since, until)) if max(since, until) < _LARGE else struct.pack(">BII", _LARGE, since, until)


def decoded(column: bytes) -> list[Change]:
    """The changes that `encoded` took."""
    changes: list[Change] = []
    at = 0
    while at < len(column):
        run_id, since = column[at : at + _ID], column[at + _ID]
        at += _ID + 2
        if since < _LARGE:
            changes.append(Change(run_id, since, column[at - 1]))
        else:
            since, until = struct.unpack_from(">II", column, at - 1)
            changes.append(Change(run_id, since, until))
            at += 7
    return changes


def time_of_commit(rows: Sequence[RunRow], events: Sequence[EventRow]) -> int:
    """About when it happened, in microseconds since 1970 UTC: not before any of its runs was created."""
    times = [event.at for event in events]
    if rows:
        newest = rows[-1]
        times += [max(map(_CREATED, rows)), newest.ended or newest.started or newest.created]
    return max(times)


def events_of_commit(
    number: int, changes: Sequence[Change], runs: Mapping[bytes, RunRow], emitted: Iterable[tuple[int, EventRow]]
) -> list[EventRow]:
    """All that one commit tells, in order. A run that is not among `runs` was deleted.

    A place counts all that the commit ever told, so it stays the same when a run is deleted; `emitted`
    comes with numbers.
    """
    found: list[EventRow] = []
    # The ids of runs grow with time: of those that end at the same moment the one that was called last ends first.
    endings = {run_id: _FINAL + n for n, run_id in enumerate(sorted((each.run_id for each in changes), reverse=True))}
    place = 0
    for change in changes:
        row = runs.get(change.run_id)
        if row is not None:
            found += _states(number, row, change, place, endings[row.id])
        place += change.until - change.since
    for n, event in emitted:
        found.append(event._replace(cursor=Cursor(number, event.at, _EMITTED + n)))
    found.sort(key=lambda event: event.cursor)
    return found


def _states(number: int, row: RunRow, change: Change, place: int, ending: int) -> Iterable[EventRow]:
    _, since, until = change
    history = history_of(row)
    # A record made from less than all states (its stand-in's, once) has its newest ones.
    missing = max(row.seq - len(history), 0)
    for n in range(max(since - missing, 0), min(until - missing, len(history))):
        code, at = history[n][0], history[n][3]
        order = ending if code >= FIRST_FINAL else place + n + missing - since
        yield EventRow(at=at, name=None, run=row, sequence=n, entry=history[n], cursor=Cursor(number, at, order))
