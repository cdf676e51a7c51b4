"""Runs in one SQLite file, written by one thread and read by as many as like.

The file is in WAL mode, so that readers are never blocked by the writer. The parts: `_database`
(the file and its connections), `_schema`, `_writer` (the queue and the thread), `_queries`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from asyncflow._rows import LogRow, RunRow, storable
from asyncflow.abc import LogQuery, Recordable, ResultStore, RunQuery, RunStore, Ticket
from asyncflow.exceptions import ForkedRuntimeError, RuntimeClosedError, StoreError
from asyncflow.settings import Settings
from asyncflow.stores import _queries as queries
from asyncflow.stores._database import Database
from asyncflow.stores._writer import Writer

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SQLiteStore"]

_MOST_IDLE_READERS = 4
_MOST_BUSY_SECONDS = 2.0

_open: WeakSet[SQLiteStore] = WeakSet()


class SQLiteStore(RunStore):
    """The store in the folder `home`, as `asyncflow.db`; opening makes both if need be.

    Raises `HomeError`, `UnsupportedSchemaError` or `StoreBusyError` when it cannot be opened.
    """

    def __init__(self, home: Path, settings: Settings, results: ResultStore) -> None:
        self._pid = os.getpid()
        self._refusal: Callable[[], Exception] | None = None
        # Shorter than a run waits for its record, so that the run's error can say who is in the way.
        busy = min(_MOST_BUSY_SECONDS, settings.durability_seconds / 2)
        self._database = Database(home, synchronous=settings.synchronous, busy_seconds=busy)
        self._readers: list[sqlite3.Connection] = []
        self._writer = Writer(self._database, results)
        _open.add(self)

    def __repr__(self) -> str:
        state = "open" if self._refusal is None else "closed"
        return f"<SQLiteStore {str(self._database.path)!r} {state}, {self.backlog} waiting>"

    # --- writing -----------------------------------------------------------------------------

    def put(self, item: Recordable) -> None:
        if self._refusal is not None:
            raise self._refusal()
        self._writer.put(item)

    def put_log(self, row: LogRow) -> None:
        if self._refusal is not None:
            raise self._refusal()
        self._writer.put_log(row)

    def confirm(self, ticket: Ticket) -> None:
        if self._refusal is not None:
            raise self._refusal()
        self._writer.confirm(ticket)

    @property
    def backlog(self) -> int:
        return self._writer.backlog

    @property
    def dropped_logs(self) -> int:
        return self._writer.dropped_logs

    @property
    def last_error(self) -> StoreError | None:
        """Why what waits could not be written so far; None when nothing is in the way."""
        return self._writer.last_error

    # --- reading -----------------------------------------------------------------------------

    def read_run(self, run_id: bytes) -> RunRow | None:
        rows = self._read("reading a run", queries.READ_RUN, [run_id])
        return RunRow._make(rows[0]) if rows else None

    def read_runs(self, query: RunQuery) -> list[RunRow]:
        return [RunRow._make(row) for row in self._read("reading runs", *queries.runs(query))]

    def read_tree(self, run_id: bytes) -> list[RunRow]:
        return [RunRow._make(row) for row in self._read("reading a tree of runs", queries.READ_TREE, [run_id])]

    def read_logs(self, query: LogQuery) -> list[LogRow]:
        return [LogRow._make(row) for row in self._read("reading logs", *queries.logs(query))]

    def _read(self, operation: str, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
        if self._refusal is not None:
            raise self._refusal()
        with self._database.mapped(operation), self._reader() as reader:
            # All at once: a reader that stays open keeps the log from being cut back.
            return reader.execute(sql, [storable(value) for value in values]).fetchall()

    @contextmanager
    def _reader(self) -> Generator[sqlite3.Connection]:
        """A connection of this thread's alone for as long as it needs it."""
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._database.open_reader()
        try:
            yield reader
        except BaseException:
            reader.close()  # whatever happened, the next one gets a sound connection
            raise
        if self._refusal is None and len(self._readers) < _MOST_IDLE_READERS:
            self._readers.append(reader)
        else:
            reader.close()

    # --- the end -----------------------------------------------------------------------------

    def close(self, timeout: float = 5.0) -> None:
        """As the port says; raises `StoreError` when something could not be written in time."""
        if self._refusal is not None:
            return
        self._refusal = self._closed
        _open.discard(self)
        written = self._writer.close(timeout)
        while self._readers:
            with suppress(IndexError):
                self._readers.pop().close()
        if not written:
            reason = self.last_error or f"the disk did not answer within {timeout:g} seconds"
            raise StoreError("closing", self._database.path, f"not everything was written: {reason}")

    def _closed(self) -> Exception:
        return RuntimeClosedError(self._database.home)

    def _forked(self) -> Exception:
        return ForkedRuntimeError(self._pid, os.getpid())

    def refuse_in_child(self) -> None:
        """Refuse everything: a forked child has no writer thread, and its commits would be lost.

        The connections are left as they are: closing them would be using them.
        """
        self._refusal = self._forked


def _refuse_in_child() -> None:
    for store in list(_open):
        store.refuse_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_refuse_in_child)
