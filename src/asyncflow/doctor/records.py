"""The database as the examination reads it: never written to, and nothing in it taken for granted.

A damaged database may hold anything: text that is no UTF-8, an id of three bytes, a state that
does not exist. So rows are checked before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from asyncflow._rows import FIRST_FINAL, FLOW, STAND_IN, STATE_TYPES, TASK, CachedRow, RunRow
from asyncflow.exceptions import StoreError
from asyncflow.stores._database import Database
from asyncflow.stores._locks import can_be_locked

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Owner", "Records", "is_sound"]

_BUSY_SECONDS = 1.0
_RUN = ", ".join(f"run.{name}" for name in RunRow._fields)
_CACHED = ", ".join(CachedRow._fields)


class Owner(NamedTuple):
    """A store that was opened and not closed."""

    id: int
    lock: str
    pid: int
    host: str
    opened: int

    def is_dead(self, home: Path) -> bool:
        """Whether it is proven that it lives no more. Without its lock file it is not: `runs reap` looks closer."""
        with suppress(OSError, ValueError):  # a NUL in its name
            return can_be_locked(home / "locks" / Path(self.lock).name)
        return False


class Records:
    """A connection to the database in `home`, which there is. Raises `StoreError` whenever it cannot be read."""

    def __init__(self, home: Path) -> None:
        self._database = Database(home, synchronous="full", busy_seconds=_BUSY_SECONDS)
        self.path = self._database.path
        self._connection: sqlite3.Connection = self._database.open_reader()
        with self._database.mapped("opening the database"):
            self._connection.text_factory = _text
            self._connection.execute("PRAGMA trusted_schema = OFF")  # its views may be anybody's
            self._connection.execute("PRAGMA cell_size_check = ON")

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query. At once: a reader that stays open keeps the log from being cut back."""
        with self._database.mapped("reading the database"):
            try:
                return self._connection.execute(sql, values).fetchall()
            except UnicodeDecodeError as error:  # of an error's text, which quotes the damaged schema
                raise StoreError("reading the database", self.path, "the file is damaged") from error

    def value(self, sql: str, *values: Any) -> Any:
        """The first column of a query's first row."""
        return self.rows(sql, *values)[0][0]

    def owners(self) -> list[Owner]:
        """The stores that were opened and not closed, those of dead processes among them."""
        rows = self.rows("SELECT id, CAST(lock AS TEXT), pid, host, CAST(coalesce(opened, 0) AS INTEGER) FROM process")
        return [Owner._make(row) for row in rows]

    def tree(self, root_id: bytes) -> list[RunRow]:
        """The run and every run below it, in the order they were created."""
        query = (
            "WITH RECURSIVE below (id) AS ("
            "SELECT ? UNION SELECT run.id FROM below JOIN run ON run.parent_id = below.id) "
            f"SELECT {_RUN} FROM below JOIN run ON run.id = below.id ORDER BY run.id"
        )
        return [RunRow._make(row) for row in self.rows(query, root_id)]

    def roots(self) -> Iterator[tuple[Any, ...]]:
        """Of each outermost run its id, state, end and owner; in batches, so that runs may be recorded meanwhile."""
        last = b""
        while True:
            found = self.rows(
                "SELECT id, state, ended, owner FROM run WHERE parent_id IS NULL AND id > ? ORDER BY id LIMIT 1000",
                last,
            )
            yield from found
            if not found:
                return
            last = found[-1][0]

    def cached(self) -> list[CachedRow]:
        """The cached values, which all are in files."""
        return [CachedRow._make(row) for row in self.rows(f"SELECT {_CACHED} FROM cache")]

    def citing(self) -> list[tuple[Any, ...]]:
        """Of each run whose value is in a file, its id and what it cites."""
        return self.rows("SELECT id, result_file FROM run WHERE result_file IS NOT NULL")


def is_sound(row: RunRow) -> bool:
    """Whether `row` can have been written by asyncflow: what is not is not asked anything else."""
    columns: dict[str, Any] = row._asdict()
    return (
        _are(columns, bytes, "id")
        and len(row.id) == 16
        and _are(columns, int, "kind", "state", "created", "run_count", "seq", "owner")
        and row.kind in (FLOW, TASK, STAND_IN)
        and 0 <= row.state < len(STATE_TYPES)
        and (row.ended is None) == (row.state < FIRST_FINAL)
        and _are(columns, str, "function", "key")
        and _are(columns, (int, type(None)), "started", "ended")
        and _are(columns, (str, type(None)), "name", "state_name", "message")
        and _are(columns, (bytes, type(None)), "parent_id", "flow_run_id", "digest")
        and _is_json(row.result, object)
        and all(_is_json(columns[name], dict) for name in ("parameters", "result_file", "error", "details"))
        and all(_is_json(columns[name], list) for name in ("tags", "history"))
    )


def _are(columns: dict[str, Any], kind: Any, *names: str) -> bool:
    return all(isinstance(columns[name], kind) for name in names)


def _is_json(text: Any, kind: type) -> bool:
    if text is None:
        return True
    try:
        return isinstance(orjson.loads(text), kind)
    except (ValueError, TypeError):
        return False


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
