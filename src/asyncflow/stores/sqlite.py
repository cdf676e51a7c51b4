"""Runs in one SQLite file, written by one thread and read by as many as like.

The file is in WAL mode, so that readers are never blocked by the writer. The parts: `_database`
(the file and its connections), `_schema`, `_writer` (the queue and the thread), `_queries`, `_jobs`
(what else is written), `_ownership` (who lives).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from asyncflow._journal import Cursor, EventRow
from asyncflow._rows import CachedRow, ItemRow, LogRow, RunRow, TransactionRow
from asyncflow.abc import LogQuery, Reaped, Recordable, ResultStore, RunQuery, RunStore, Ticket
from asyncflow.exceptions import ForkedRuntimeError, HomeError, RuntimeClosedError, StoreError
from asyncflow.settings import Settings
from asyncflow.stores import _jobs as jobs
from asyncflow.stores import _journal_pages as journal
from asyncflow.stores import _queries as queries
from asyncflow.stores._bells import Bell
from asyncflow.stores._database import LOCKS, Database
from asyncflow.stores._ownership import Ownership, Process
from asyncflow.stores._sqlite_deployments import SQLiteDeployments
from asyncflow.stores._sqlite_exchange import SQLiteExchange
from asyncflow.stores._writer import Writer

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SQLiteStore"]

_MOST_BUSY_SECONDS = 2.0

_open: WeakSet[SQLiteStore] = WeakSet()

T = TypeVar("T")


class SQLiteStore(SQLiteDeployments, SQLiteExchange, RunStore):
    """The store in the folder `home`, as `asyncflow.db`; opening makes both if need be.

    Raises `HomeError`, `UnsupportedSchemaError` or `StoreBusyError` when it cannot be opened.
    """

    def __init__(self, home: Path, settings: Settings, results: ResultStore) -> None:
        self._pid = os.getpid()
        # Shorter than a run waits for its record, so that the run's error can say who is in the way.
        busy = min(_MOST_BUSY_SECONDS, settings.durability_seconds / 2)
        super().__init__(Database(home, synchronous=settings.synchronous, busy_seconds=busy))
        self._results = results
        self._looked_for_unknown = False
        with self._database.mapped("locking", HomeError):
            self._ownership = Ownership(self._database.home / LOCKS)
        self._process = self._ownership.process()
        try:
            self._writer = Writer(self._database, results)
            try:
                self.owner = self._writer.owner = self._register()
            except BaseException:
                self._writer.close(0)
                raise
        except BaseException:
            self._ownership.release(remove=True)
            raise
        self._process = self._process._replace(id=self.owner)
        self._bell = Bell(self._database.home, self.owner)
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

    def put_event(self, row: EventRow) -> None:
        if self._refusal is not None:
            raise self._refusal()
        self._writer.put_event(row)

    def put_item(self, row: ItemRow) -> None:
        if self._refusal is not None:
            raise self._refusal()
        self._writer.put_item(row)

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
    def dropped_events(self) -> int:
        return self._writer.dropped_events

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self._writer.watchers.add(wake)

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

    def read_children(self, run_id: bytes) -> list[RunRow]:
        return [
            RunRow._make(row) for row in self._read("reading a run's children", queries.READ_CHILDREN, [run_id] * 2)
        ]

    def read_logs(self, query: LogQuery) -> list[LogRow]:
        return [LogRow._make(row) for row in self._read("reading logs", *queries.logs(query))]

    def read_items(self, run_id: bytes, after: int, limit: int) -> list[ItemRow]:
        return [ItemRow._make(row) for row in self._read("reading items", queries.READ_ITEMS, [run_id, after, limit])]

    def read_journal(self, after: Cursor | None, limit: int) -> list[EventRow]:
        return self._ask("reading events", lambda reader: journal.read_page(reader, after, limit))

    def newest_cursor(self) -> Cursor:
        return self._ask("looking for the newest event", journal.newest_cursor)

    def cursor_since(self, at: int) -> Cursor:
        return self._ask("looking for an event", lambda reader: journal.cursor_since(reader, at))

    def read_interrupted(self) -> list[RunRow]:
        return [RunRow._make(row) for row in self._read("reading interrupted runs", queries.READ_INTERRUPTED, [])]

    def read_cached(self, key: str) -> CachedRow | None:
        rows = self._read("reading a cached value", queries.READ_CACHED, [key])
        return CachedRow._make(rows[0]) if rows else None

    def read_transactions(
        self, *, key: str | None = None, state: int | None = None, limit: int = 200
    ) -> list[TransactionRow]:
        rows = self._read("reading transactions", *queries.transactions(key, state, limit))
        return [TransactionRow._make(row) for row in rows]

    def read_oldest(self, limit: int, before: int | None = None) -> list[bytes]:
        return [row[0] for row in self._read("looking for the oldest runs", *queries.oldest(limit, before))]

    def count_outermost(self) -> int:
        return self._number(queries.COUNT_OUTERMOST)

    def size(self) -> int:
        used = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return used * self._number("PRAGMA page_size")

    def _number(self, sql: str) -> int:
        ((number,),) = self._read("measuring the database", sql, [])
        return int(number)

    # --- taking over, keeping, deleting: done by the writer's thread ---------------------------

    def _register(self) -> int:
        opened = time.time_ns() // 1000
        return self._writer.call("opening", lambda connection: jobs.register(connection, self._process, opened))

    def reap(self, now: int) -> Reaped:
        known = self._processes()
        with self._database.mapped("locking"):
            self._ownership.keep()
        self._bell.keep()
        if all(process.id != self.owner for process in known):  # we were taken for dead: what we write now counts
            self._register()
        others = [process for process in known if process.id != self.owner]
        done = [self._reap(process, now) for process in others if self._ownership.is_dead(process)]
        if done or not self._looked_for_unknown:
            # Only now: nobody else leaves open runs without a row of their own.
            done.append(self._reap_unknown(now))
            self._looked_for_unknown = True
            known = self._processes()
            self._ownership.sweep(known)
            self._bell.sweep(process.id for process in known)
        if any(each.crashed or each.interrupted or each.requeued for each in done):
            self.ring()  # some of them may have held places that others wait for, or wait to be started again
        return Reaped(
            crashed=sum(each.crashed for each in done),
            interrupted=sum(each.interrupted for each in done),
            requeued=sum(each.requeued for each in done),
            transactions=tuple(row for each in done for row in each.transactions),
        )

    def living(self) -> list[Process]:
        """The other processes (or runtimes of this one) that have this home open. Blocks."""
        return [each for each in self._processes() if each.id != self.owner and not self._ownership.is_dead(each)]

    def _processes(self) -> list[Process]:
        return [Process._make(row) for row in self._read("looking for dead processes", queries.PROCESSES, [])]

    def _reap(self, process: Process, now: int) -> Reaped:
        is_dead = self._ownership.is_dead
        done = self._call(
            "ending the runs of a dead process",
            lambda connection: jobs.reap_process(connection, process, is_dead, self.owner, now),
        )
        self._ownership.remove(process)
        self._bell.remove(process.id)
        return done

    def _reap_unknown(self, now: int) -> Reaped:
        owners = {row[0] for row in self._read("looking for runs of unknown processes", queries.OWNERS, [])}
        if owners <= {process.id for process in self._processes()}:
            return Reaped()
        return self._call(
            "ending the runs of unknown processes", lambda connection: jobs.reap_unknown(connection, self.owner, now)
        )

    def claim(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        return self._call("claiming a run", lambda connection: jobs.claim(connection, run_id, seq, self.owner, now))

    def write_cached(self, row: CachedRow) -> None:
        write_file = self._results.write_cached
        self._call("keeping a cached value", lambda connection: jobs.write_cached(connection, row, write_file))

    def write_transaction(self, row: TransactionRow, members: Sequence[bytes] = ()) -> None:
        self._call("recording a transaction", lambda connection: jobs.write_transaction(connection, row, list(members)))

    def delete_runs(self, root_ids: Sequence[bytes]) -> list[bytes]:
        def delete(connection: sqlite3.Connection) -> list[bytes]:
            deleted = jobs.delete_runs(connection, root_ids)
            self._writer.forget(deleted)
            return deleted

        return self._call("deleting runs", delete)

    def delete_cached(
        self, expired_at: int | None = None, keys: Sequence[str] = (), *, made_before: int | None = None
    ) -> list[CachedRow]:
        def delete_files(rows: Sequence[CachedRow]) -> None:
            self._results.delete((), rows)

        return self._call(
            "deleting cached values",
            lambda connection: jobs.delete_cached(connection, expired_at, keys, made_before, delete_files),
        )

    def delete_journal(self, before: int | None) -> int:
        return self._call("deleting old events", lambda connection: jobs.delete_journal(connection, before))

    def delete_transactions(self, ended_before: int) -> int:
        return self._call(
            "forgetting transactions", lambda connection: jobs.delete_transactions(connection, ended_before)
        )

    def give_back(self) -> int:
        return self._call("giving space back", jobs.give_back)

    # --- the end -----------------------------------------------------------------------------

    def close(self, timeout: float = 5.0) -> None:
        """As the port says; raises `StoreError` when something could not be written in time."""
        if self._refusal is not None:
            return
        self._refusal = self._closed
        _open.discard(self)
        # Behind all that waits: when some of it could not be written, others are to find what was left open.
        leaving = self._writer.ask("closing", lambda connection: jobs.leave(connection, self.owner), timeout)
        written = self._writer.close(timeout)
        self._writer.watchers.wake()  # for them it is over
        self._bell.close()
        self._ownership.release(remove=leaving.result is True)
        if written and leaving.error is not None:  # harmless: the next one to look removes what is left
            _report(f"the row of this process could not be deleted: {leaving.error}")
        self._close_readers()
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
        self._ownership.forget()
        self._bell.forget()


def _refuse_in_child() -> None:
    for store in list(_open):
        store.refuse_in_child()


def _report(message: str) -> None:
    import logging

    logging.getLogger("asyncflow").warning(message)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_refuse_in_child)
