"""Runs in memory: for tests on virtual time, and for whoever needs no record beyond the process.

No thread and no waiting: what is put is recorded when `put` returns. It is the reference the
SQLite store is compared with, so it is written to be obviously right.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Any

import orjson

from asyncflow._rows import (
    ACTIVE,
    FIRST_FINAL,
    FLOW,
    INTERRUPTED,
    STAND_IN,
    STATE_CODES,
    CachedRow,
    LogRow,
    RunRow,
    TransactionRow,
    default_task_run_name,
    storable,
    word_for,
)
from asyncflow.abc import LogQuery, Reaped, Recordable, RunQuery, RunStore, Ticket
from asyncflow.exceptions import ForkedRuntimeError, RuntimeClosedError
from asyncflow.stores._orphans import PAUSED, UNKNOWN_PROCESS, ended, is_orphan, resuming, stand_in_resuming, waits

__all__ = ["MemoryStore"]


class MemoryStore(RunStore):
    """A store that lasts as long as its process."""

    is_instant = True

    owner = 1

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._rows: dict[bytes, RunRow] = {}
        self._logs: list[LogRow] = []
        self._cached: dict[str, CachedRow] = {}
        self._transactions: dict[bytes, TransactionRow] = {}
        # Re-entrant: a finalizer may put a run while this thread is putting another.
        self._lock = RLock()

    def put(self, item: Recordable) -> None:
        self._check()
        with self._lock:
            item.queued = False
            for row in item.rows():
                known = self._rows.get(row.id)
                if known is None or (row.seq > known.seq and row.owner == known.owner):
                    self._rows[row.id] = RunRow._make(map(storable, row))

    def put_log(self, row: LogRow) -> None:
        self._check()
        with self._lock:
            self._logs.append(LogRow._make(map(storable, row)))

    def confirm(self, ticket: Ticket) -> None:
        self._check()
        ticket.done = True
        ticket.wake([ticket])

    @property
    def backlog(self) -> int:
        return 0

    @property
    def dropped_logs(self) -> int:
        return 0

    def read_run(self, run_id: bytes) -> RunRow | None:
        self._check()
        return self._rows.get(run_id)

    def read_runs(self, query: RunQuery) -> list[RunRow]:
        self._check()
        found = [row for row in self._newest_first() if _fits(row, query)]
        return found[query.offset :][: query.limit]

    def read_tree(self, run_id: bytes) -> list[RunRow]:
        self._check()
        children: dict[bytes | None, list[bytes]] = {}
        for row in self._newest_first():
            children.setdefault(row.parent_id, []).append(row.id)
        found: set[bytes] = set()
        left = [run_id] if run_id in self._rows else []
        while left:
            each = left.pop()
            if each not in found:
                found.add(each)
                left += children.get(each, ())
        return [self._rows[each] for each in sorted(found)]

    def read_children(self, run_id: bytes) -> list[RunRow]:
        self._check()
        rows = self._newest_first()
        stand_ins = {row.id for row in rows if row.parent_id == run_id and row.kind == STAND_IN}
        return [row for row in reversed(rows) if row.parent_id in {run_id, *stand_ins} and row.id not in stand_ins]

    def read_logs(self, query: LogQuery) -> list[LogRow]:
        self._check()
        with self._lock:
            lines = sorted(self._logs, key=lambda line: line.timestamp)  # stable: equal times stay in order
        return [line for line in lines if _line_fits(line, query)][: query.limit]

    # --- taking over -------------------------------------------------------------------------

    def reap(self, now: int) -> Reaped:
        """As the port says: what was written with another number than ours is left from somewhere else."""
        self._check()
        with self._lock:
            left = [row for row in self._rows.values() if row.owner != self.owner and is_orphan(row)]
            changed = [ended(row, now, self.owner, UNKNOWN_PROCESS) for row in left]
            self._keep(changed)
            open_ones = [row for row in self._transactions.values() if row.owner != self.owner and row.state == ACTIVE]
            interrupted = [row._replace(state=INTERRUPTED, ended=now, owner=self.owner) for row in open_ones]
            self._transactions.update((row.id, row) for row in interrupted)
        waiting = sum(map(waits, changed))
        return Reaped(crashed=len(changed) - waiting, interrupted=waiting, transactions=tuple(interrupted))

    def read_interrupted(self) -> list[RunRow]:
        self._check()
        oldest_first = reversed(self._newest_first())
        return [row for row in oldest_first if waits(row) and row.kind == FLOW and row.parent_id is None]

    def claim(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        self._check()
        with self._lock:
            row = self._rows.get(run_id)
            if row is None or row.seq != seq or (row.state < FIRST_FINAL and row.state != PAUSED):
                return None
            self._keep(below._replace(owner=self.owner) for below in self.read_tree(run_id))
            taken = resuming(row, now, self.owner)
            self._keep([taken])
            stand_in = None if row.parent_id is None else self._rows.get(row.parent_id)
            if stand_in is not None and stand_in.kind == STAND_IN:
                self._keep([stand_in_resuming(stand_in, taken, now)])
            return taken

    def _keep(self, rows: Iterable[RunRow]) -> None:
        self._rows.update((row.id, row) for row in rows)

    # --- cached values, transactions ---------------------------------------------------------

    def read_cached(self, key: str) -> CachedRow | None:
        self._check()
        return self._cached.get(storable(key))

    def write_cached(self, row: CachedRow) -> None:
        self._check()
        with self._lock:
            kept = CachedRow._make(map(storable, row))
            self._cached[kept.key] = kept

    def delete_cached(
        self, expired_at: int | None = None, keys: Sequence[str] = (), *, made_before: int | None = None
    ) -> list[CachedRow]:
        self._check()
        with self._lock:
            doomed = {storable(key) for key in keys}
            if expired_at is not None:
                kept = self._cached.values()
                doomed |= {row.key for row in kept if row.expires is not None and row.expires <= expired_at}
            if made_before is not None:
                kept = self._cached.values()
                doomed |= {row.key for row in kept if row.expires is None and row.created < made_before}
            return [self._cached.pop(key) for key in sorted(doomed & self._cached.keys())]

    def delete_transactions(self, ended_before: int) -> int:
        self._check()
        with self._lock:
            known = self._transactions
            old = [
                row.id for row in known.values() if row.state != ACTIVE and (row.ended or ended_before) < ended_before
            ]
            for each in old:
                del known[each]
            return len(old)

    def write_transaction(self, row: TransactionRow, members: Sequence[bytes] = ()) -> None:
        self._check()
        with self._lock:
            known = self._transactions.get(row.id)
            if known is None or known.owner == row.owner:
                self._transactions[row.id] = TransactionRow._make(map(storable, row))
            for run in [self._rows[run_id] for run_id in members if run_id in self._rows]:
                details: dict[str, Any] = orjson.loads(run.details or "{}")
                self._keep([run._replace(details=orjson.dumps({**details, word_for(row): True}).decode())])

    def read_transactions(
        self, *, key: str | None = None, state: int | None = None, limit: int = 200
    ) -> list[TransactionRow]:
        self._check()
        with self._lock:
            newest_first = sorted(self._transactions.values(), reverse=True, key=lambda row: row.id)
        return [row for row in newest_first if key in (None, row.key) and state in (None, row.state)][:limit]

    # --- retention ---------------------------------------------------------------------------

    def size(self) -> int:
        """About how many bytes its texts have."""
        self._check()
        with self._lock:
            rows = [*self._rows.values(), *self._logs, *self._cached.values(), *self._transactions.values()]
        return sum(len(column) for row in rows for column in row if isinstance(column, str | bytes))

    def count_outermost(self) -> int:
        self._check()
        return sum(row.parent_id is None for row in self._newest_first())

    def read_oldest(self, limit: int, before: int | None = None) -> list[bytes]:
        self._check()
        oldest_first = (row for row in reversed(self._newest_first()) if row.parent_id is None)
        return [
            row.id
            for row in oldest_first
            if row.state >= FIRST_FINAL and (before is None or (row.ended or row.created) < before)
        ][:limit]

    def delete_runs(self, root_ids: Sequence[bytes]) -> list[bytes]:
        self._check()
        deleted: list[bytes] = []
        with self._lock:
            for root_id in dict.fromkeys(root_ids):
                tree = self.read_tree(root_id)
                if tree and self._rows[root_id].parent_id is None and all(row.state >= FIRST_FINAL for row in tree):
                    gone = {row.id for row in tree}
                    for each in gone:
                        del self._rows[each]
                    self._logs = [line for line in self._logs if not gone & {line.flow_run_id, line.task_run_id}]
                    deleted.append(root_id)
        return deleted

    def give_back(self) -> int:
        """Nothing: what is deleted is given back at once."""
        self._check()
        return 0

    def close(self, timeout: float = 5.0) -> None:
        """Refuse everything from now on; nothing waits to be written."""
        self._closed = True

    def _newest_first(self) -> list[RunRow]:
        with self._lock:
            return sorted(self._rows.values(), key=lambda row: row.id, reverse=True)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkedRuntimeError(self._pid, os.getpid())
        if self._closed:
            raise RuntimeClosedError("memory")


def _fits(row: RunRow, query: RunQuery) -> bool:
    return (
        row.kind in query.kinds
        and (query.states is None or row.state in {STATE_CODES[state] for state in query.states})
        and query.name in (None, row.name or default_task_run_name(row.function, row.id))
        and query.function in (None, row.function)
        and query.flow_run_id in (None, row.flow_run_id)
        and query.parent_id in (None, row.parent_id)
        and (query.since is None or row.created >= query.since)
        and (query.until is None or row.created < query.until)
        and (query.tags is None or query.tags <= set(orjson.loads(row.tags or "[]")))
    )


def _line_fits(line: LogRow, query: LogQuery) -> bool:
    return (
        query.run_id in (line.flow_run_id, line.task_run_id)
        and (query.level is None or line.level >= query.level)
        and (query.after is None or line.timestamp > query.after)
    )
