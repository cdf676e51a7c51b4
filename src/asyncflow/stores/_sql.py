"""What the writer's jobs have in common: reading rows under its lock, and giving runs their next state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from asyncflow._journal import Change, encoded
from asyncflow._rows import RunRow
from asyncflow.stores import _queries as queries
from asyncflow.stores._statements import CHUNK, put_values, seize, statements
from asyncflow.stores._turn import journal

if TYPE_CHECKING:
    import sqlite3

__all__ = ["below", "chunks", "fetch", "find_run", "find_runs", "marks", "move"]

_BELOW = """
WITH RECURSIVE below (id) AS (
    SELECT id FROM run WHERE id IN ({ids})
    UNION
    SELECT run.id FROM below JOIN run ON run.parent_id = below.id
)"""


def fetch(connection: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    return connection.execute(sql, values).fetchall()


def find_run(connection: sqlite3.Connection, run_id: bytes) -> RunRow | None:
    """The run with an id."""
    found = fetch(connection, queries.READ_RUN, [run_id])
    return RunRow._make(found[0]) if found else None


def find_runs(connection: sqlite3.Connection, ids: Sequence[bytes]) -> list[RunRow]:
    """The runs that there are of some ids, in their order."""
    found: dict[bytes, RunRow] = {}
    for chunk in chunks(ids):
        for row in fetch(connection, f"SELECT {queries.RUN} FROM run WHERE id IN ({marks(chunk)})", chunk):
            found[row[0]] = RunRow._make(row)
    return [found[each] for each in ids if each in found]


def move(connection: sqlite3.Connection, rows: Sequence[RunRow], now: int, owner: int) -> None:
    """Record runs, each in one more state than it is in on record."""
    for statement in statements(seize, list(map(put_values, rows))):
        connection.execute(*statement)
    for chunk in chunks(rows):
        journal(connection, encoded(Change(row.id, row.seq - 1, row.seq) for row in chunk), now, owner)


def below(roots: int) -> str:
    """SQL for the ids of so many runs and of all below them, as a table."""
    return _BELOW.format(ids=", ".join("?" * roots))


def marks(values: Sequence[Any]) -> str:
    """A placeholder for each value."""
    return ", ".join("?" * len(values))


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """The values, as many at a time as a statement takes."""
    each = list(values)
    return (each[start : start + CHUNK] for start in range(0, len(each), CHUNK))
