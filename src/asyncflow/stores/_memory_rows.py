"""The runs that the store in memory has, and its journal: what its parts share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from threading import RLock

from asyncflow._journal import Change, EventRow, time_of_commit
from asyncflow._rows import RunRow
from asyncflow.exceptions import ForkedRuntimeError, RuntimeClosedError
from asyncflow.stores._conditions import Below
from asyncflow.stores._memory_journal import MemoryJournal
from asyncflow.stores._orphans import left_behind, waits
from asyncflow.stores._watchers import Watchers

__all__ = ["MemoryRows"]


class MemoryRows:
    """Rows by id, changed with the lock."""

    owner: int = 1

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._rows: dict[bytes, RunRow] = {}
        self._journal = MemoryJournal()
        self._watchers = Watchers()
        # Re-entrant: a finalizer may put a run while this thread is putting another.
        self._lock = RLock()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkedRuntimeError(self._pid, os.getpid())
        if self._closed:
            raise RuntimeClosedError("memory")

    def _newest_first(self) -> list[RunRow]:
        with self._lock:
            return sorted(self._rows.values(), key=lambda row: row.id, reverse=True)

    def _tree(self, run_id: bytes) -> list[RunRow]:
        return [self._rows[each] for each in sorted(Below(self._newest_first()).ids(run_id))]

    def _tell(self, changes: Sequence[Change], events: Sequence[EventRow] = (), at: int | None = None) -> None:
        """Add to the journal, and wake who watches it. With the lock: the next commit comes after this."""
        if changes or events:
            rows = [self._rows[change.run_id] for change in changes]
            self._journal.add(changes, events, time_of_commit(rows, events) if at is None else at)
            self._watchers.wake()

    def _move(self, rows: Sequence[RunRow], now: int) -> None:
        """Record runs, each in one more state than it is in on record."""
        self._keep(rows)
        self._tell([Change(row.id, row.seq - 1, row.seq) for row in rows], at=now)

    def _keep(self, rows: Iterable[RunRow]) -> None:
        self._rows.update((row.id, row) for row in rows)

    def _take_over(self, run_id: bytes, now: int) -> list[RunRow]:
        """Own all below a run that is run again; gives what waited below it, in the next state of each."""
        tree = self._tree(run_id)
        self._keep(each._replace(owner=self.owner) for each in tree)
        return [left_behind(each, now, self.owner) for each in tree if waits(each) and each.id != run_id]
