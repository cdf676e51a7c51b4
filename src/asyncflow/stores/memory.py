"""Runs in memory: for tests on virtual time, and for whoever needs no record beyond the process.

No thread and no waiting: what is put is recorded when `put` returns. It is the reference the
SQLite store is compared with, so it is written to be obviously right.
"""

from __future__ import annotations

import os
from threading import RLock

import orjson

from asyncflow._rows import STATE_CODES, LogRow, RunRow, default_task_run_name, storable
from asyncflow.abc import LogQuery, Recordable, RunQuery, RunStore, Ticket
from asyncflow.exceptions import ForkedRuntimeError, RuntimeClosedError

__all__ = ["MemoryStore"]


class MemoryStore(RunStore):
    """A store that lasts as long as its process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._rows: dict[bytes, RunRow] = {}
        self._logs: list[LogRow] = []
        # Re-entrant: a finalizer may put a run while this thread is putting another.
        self._lock = RLock()

    def put(self, item: Recordable) -> None:
        self._check()
        with self._lock:
            item.queued = False
            for row in item.rows():
                known = self._rows.get(row.id)
                if known is None or row.seq > known.seq:
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

    def read_logs(self, query: LogQuery) -> list[LogRow]:
        self._check()
        with self._lock:
            lines = sorted(self._logs, key=lambda line: line.timestamp)  # stable: equal times stay in order
        return [line for line in lines if _line_fits(line, query)][: query.limit]

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
