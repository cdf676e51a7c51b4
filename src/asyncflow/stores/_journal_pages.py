"""Reading the journal: a page of commits, and what the runs they name tell of them, all in one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncflow._journal import EMITTED, Change, Cursor, EventRow, cursor_text, decoded, events_of_commit
from asyncflow._rows import RunRow
from asyncflow.exceptions import EventsGoneError
from asyncflow.stores._queries import number
from asyncflow.stores._statements import CHUNK

if TYPE_CHECKING:
    import sqlite3

__all__ = ["cursor_since", "newest_cursor", "read_page"]

_COMMITS = 128
"""Rows of the journal that are read at a time."""
_BESIDE = {"tags", "parameters", "result", "result_file", "error", "digest"}
"""Columns of a run that tell nothing of its states, and may be long."""
_RUN = ", ".join("NULL" if name in _BESIDE else name for name in RunRow._fields)
_NEWEST = "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'journal'), 0)"


def newest_cursor(connection: sqlite3.Connection) -> Cursor:
    """Before the next commit."""
    return Cursor(number(connection, _NEWEST) + 1, 0, 0)


def cursor_since(connection: sqlite3.Connection, at: int) -> Cursor:
    """Before the first commit whose time is not before `at`: their times do not go back, so it is found by halving."""
    low, high = number(connection, "SELECT ifnull(min(id), 1) FROM journal"), number(connection, _NEWEST) + 1
    while low < high:
        middle = (low + high) // 2
        found = connection.execute("SELECT at >= ? FROM journal WHERE id = ?", [at, middle]).fetchall()
        if found == [(0,)] or not found:  # deleted meanwhile: those were the oldest
            low = middle + 1
        else:
            high = middle
    return Cursor(low, 0, 0)


def read_page(connection: sqlite3.Connection, after: Cursor | None, limit: int) -> list[EventRow]:
    """As the port says of `read_journal`."""
    connection.execute("BEGIN")
    try:
        return _read_page(connection, after, limit)
    finally:
        connection.execute("COMMIT")


def _read_page(connection: sqlite3.Connection, after: Cursor | None, limit: int) -> list[EventRow]:
    found: list[EventRow] = []
    since = Cursor(0, 0, 0) if after is None else after
    first = since.journal
    while len(found) < limit:
        commits = _commits(connection, first, limit - len(found))
        if first == since.journal:
            _check(connection, since, commits)
        if not commits:
            break
        found += [event for event in _events(connection, commits) if event.cursor > since]
        first = commits[-1][0] + 1
    return found[:limit]


def _commits(connection: sqlite3.Connection, first: int, enough: int) -> list[tuple[int, list[Change]]]:
    """Commits from a number on, until they tell of enough states."""
    sql = f"SELECT id, changes FROM journal WHERE id >= ? ORDER BY id LIMIT {_COMMITS}"
    commits: list[tuple[int, list[Change]]] = []
    for each, column in connection.execute(sql, [first]).fetchall():
        commits.append((each, decoded(column)))
        enough -= sum(until - since for _, since, until in commits[-1][1])
        if enough < 0:
            break
    return commits


def _check(connection: sqlite3.Connection, after: Cursor, commits: list[tuple[int, list[Change]]]) -> None:
    """Raise when there were commits after the cursor that are not kept any more."""
    oldest = commits[0][0] if commits else number(connection, _NEWEST) + 1
    if oldest > after.journal > 0:
        raise EventsGoneError(
            cursor_text(after), oldest=cursor_text(Cursor(oldest, 0, 0)), commits=oldest - after.journal
        )


def _events(connection: sqlite3.Connection, commits: list[tuple[int, list[Change]]]) -> list[EventRow]:
    ids = list(dict.fromkeys(change.run_id for _, changes in commits for change in changes))
    runs: dict[bytes, RunRow] = {}
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        marks = ", ".join("?" * len(chunk))
        for row in connection.execute(f"SELECT {_RUN} FROM run WHERE id IN ({marks})", chunk).fetchall():
            runs[row[0]] = RunRow._make(row)
    emitted: dict[int, list[tuple[int, EventRow]]] = {}
    sql = f"SELECT journal, n, {', '.join(EMITTED)} FROM event WHERE journal BETWEEN ? AND ? ORDER BY journal, n"
    bounds: list[Any] = [commits[0][0], commits[-1][0]]
    for each, n, *columns in connection.execute(sql, bounds).fetchall():
        emitted.setdefault(each, []).append((n, EventRow(*columns)))
    return [
        event for each, changes in commits for event in events_of_commit(each, changes, runs, emitted.get(each, ()))
    ]
