"""What the writer brings to disk at a time, and how: all of it in one transaction, or none.

Guarantees:

- The journal's row of a turn is in the same commit as the states it tells of, and tells exactly
  those that this commit recorded. A live run knows how many of its states were journalled; where the
  database recorded less than that would say (another process has taken the run over, the same state was
  put twice), the turn is begun anew and what is new is found by looking at the rows before they change.
- A turn whose commit was reported as failed and is there all the same is not written twice: the
  number of its journal row, together with the store's, says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from asyncflow._journal import EMITTED, Change, EventRow, encoded, time_of_commit
from asyncflow._rows import ItemRow, LogRow, RunRow, storable
from asyncflow.abc import Recordable, Ticket
from asyncflow.exceptions import StoreError
from asyncflow.ids import new_id
from asyncflow.stores._database import transaction
from asyncflow.stores._job import Job
from asyncflow.stores._statements import (
    CHUNK,
    characters,
    insert_event,
    insert_item,
    insert_log,
    plain_values,
    put_values,
    rare_values,
    statements,
    upsert,
    upsert_plain,
)

if TYPE_CHECKING:
    import sqlite3

__all__ = ["EVENT", "OTHERS", "Entry", "Turn", "journal"]


_ID, _SEQ = (itemgetter(RunRow._fields.index(name)) for name in ("id", "seq"))


class _Event:
    """In the queue, in the place of an event that waits beside it: those are counted, and may be dropped."""


EVENT = _Event()
OTHERS = (Ticket, Job, ItemRow, _Event)
"""What waits in the queue besides runs."""
Entry = Recordable | Ticket | Job | ItemRow | _Event


class _NotAllRecordedError(Exception):
    """The database knew some of the rows as well, or better."""


class Turn:
    """What one turn writes."""

    __slots__ = (
        "events", "items", "jobs", "logs", "number", "rare", "rows", "runs", "since", "tickets", "unreadable",
    )  # fmt: skip

    def __init__(self) -> None:
        self.runs: list[tuple[bytes, RunRow]] = []
        self.since: list[int] = []
        """For each of the runs, how many of its states were recorded before."""
        self.logs: list[tuple[Any, ...]] = []
        self.events: list[EventRow] = []
        self.items: list[ItemRow] = []
        self.tickets: list[Ticket] = []
        self.jobs: list[Job] = []
        self.unreadable: StoreError | None = None
        """Why a run could not be recorded at all: a fault of ours that its tickets must tell."""
        self.rows: list[RunRow] | None = None
        """The rows to commit, once their results are written: a repeated turn writes no result twice."""
        self.rare: list[RunRow] = []
        """Those of the rows that fill the rarer columns."""
        self.number: int | None = None
        """Of the journal's row that was written last, whether or not that could be committed."""

    def take_run(self, run: Recordable) -> None:
        """Take a run's rows as of now."""
        run.queued = False  # before its rows are read: a change from now on queues it again
        root, since = run.root_id, run.journalled
        for row in run.rows():
            if row.seq > since:
                self.runs.append((root, row))
                self.since.append(since)
                # Already: a turn is tried until it works, and the run may come again in the same one.
                run.journalled = row.seq

    def take_other(self, entry: Ticket | Job | ItemRow | _Event, events: deque[EventRow]) -> None:
        """Take what is not a run; the place of an event stands for the next one that waits."""
        if isinstance(entry, Ticket):
            self.tickets.append(entry)
        elif isinstance(entry, Job):
            self.jobs.append(entry)
        elif isinstance(entry, ItemRow):
            self.items.append(entry)
        else:
            self.events.append(events.popleft())

    def take_logs(self, lines: Iterable[LogRow]) -> None:
        """Take log lines; each gets its id."""
        self.logs = [(*line[:-1], new_id()) for line in lines]

    def make_storable(self) -> None:
        """Replace what SQLite cannot take: some text or number, and which one is not worth finding out."""
        self.rows = [RunRow._make(map(storable, row)) for row in self.rows or ()]
        self.logs = [tuple(map(storable, row)) for row in self.logs]
        self.items = [ItemRow._make(map(storable, row)) for row in self.items]
        self.events = [
            event._replace(**dict(zip(EMITTED, map(storable, event), strict=False))) for event in self.events
        ]

    def commit(self, connection: sqlite3.Connection, owner: int) -> None:
        """Write all of it; nothing when it was written already."""
        if connection.in_transaction:  # a rollback of the last try failed
            connection.execute("ROLLBACK")
        if self._is_written(connection, owner):
            return
        try:
            self._commit(connection, owner, is_new=True)
        except _NotAllRecordedError:
            self._commit(connection, owner, is_new=False)

    def _is_written(self, connection: sqlite3.Connection, owner: int) -> bool:
        if self.number is None:
            return False
        found = connection.execute("SELECT 1 FROM journal WHERE id = ? AND owner = ?", [self.number, owner])
        return bool(found.fetchall())

    def _commit(self, connection: sqlite3.Connection, owner: int, *, is_new: bool) -> None:
        """Write all of it; `is_new` is that of all rows every state after `since` is to be recorded by this."""
        rows = self.rows or []
        if not (rows or self.events):
            return self._append(connection)
        with transaction(connection):
            # In C, for there are many: as `Change`s they cost more than writing them.
            told = zip(map(_ID, rows), self.since, map(_SEQ, rows), strict=True)
            changes = encoded(told if is_new else _new_changes(connection, rows))
            if self._record(connection, rows) < len(rows) and is_new:
                raise _NotAllRecordedError
            if changes or self.events:
                self.number = journal(connection, changes, time_of_commit(rows, self.events), owner)
            for statement in statements(insert_event, _event_columns(self.number, self.events)):
                connection.execute(*statement)
            self._append(connection)
        return None

    def _record(self, connection: sqlite3.Connection, rows: Sequence[RunRow]) -> int:
        """Write the rows of runs; gives how many of them the database took."""
        plain: list[tuple[Any, ...]] = []
        self.rare = []
        for row in rows:
            if any(rare_values(row)):
                self.rare.append(row)
            else:
                plain.append(plain_values(row))
        batch = chain(statements(upsert_plain, plain), statements(upsert, list(map(put_values, self.rare))))
        return sum(connection.execute(*statement).rowcount for statement in batch)

    def _append(self, connection: sqlite3.Connection) -> None:
        batch = [*statements(insert_log, self.logs), *statements(insert_item, self.items)]
        if len(batch) == 1 or connection.in_transaction:  # one statement is a transaction by itself
            for statement in batch:
                connection.execute(*statement)
        elif batch:
            with transaction(connection):
                for statement in batch:
                    connection.execute(*statement)

    @property
    def size(self) -> int:
        """How many rows it has."""
        return len(self.runs) + len(self.logs) + len(self.events) + len(self.items)

    @property
    def characters(self) -> int:
        """About how much text it has."""
        return characters(self.rows or [], self.rare, chain(self.logs, self.events, self.items))


def journal(connection: sqlite3.Connection, changes: bytes, at: int, owner: int) -> int:
    """Add a row of `encoded` changes to the journal, inside the transaction that is open; gives its number.

    Its time is never before that of the one before: what is older than some moment is its first part.
    """
    newest = "SELECT at FROM journal ORDER BY id DESC LIMIT 1"
    sql = f"INSERT INTO journal (at, owner, changes) VALUES (max(?, ifnull(({newest}), 0)), ?, ?)"
    return int(connection.execute(sql, [at, owner, changes]).lastrowid or 0)


def _new_changes(connection: sqlite3.Connection, rows: Sequence[RunRow]) -> list[Change]:
    """What recording `rows` will change, seen before it is done."""
    known: dict[bytes, tuple[int, int]] = {}
    ids = [row.id for row in rows]
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        found = connection.execute(f"SELECT id, seq, owner FROM run WHERE id IN ({', '.join('?' * len(chunk))})", chunk)
        known.update((run_id, (seq, owner)) for run_id, seq, owner in found.fetchall())
    changes: list[Change] = []
    for row in rows:
        seq, owner = known.get(row.id, (0, row.owner))
        if row.seq > seq and row.owner == owner:
            changes.append(Change(row.id, seq, row.seq))
            known[row.id] = row.seq, owner
    return changes


def _event_columns(number: int | None, events: Sequence[EventRow]) -> list[tuple[Any, ...]]:
    return [(number, n, *event[: len(EMITTED)]) for n, event in enumerate(events)]
