"""Runs in memory: for tests on virtual time, and for whoever needs no record beyond the process.

No thread and no waiting: what is put is recorded when `put` returns. It is the reference the
SQLite store is compared with, so it is written to be obviously right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from asyncflow._journal import EMITTED, Change, Cursor, EventRow
from asyncflow._rows import (
    ACTIVE,
    FIRST_FINAL,
    FLOW,
    INTERRUPTED,
    STAND_IN,
    CachedRow,
    ItemRow,
    LogRow,
    RunRow,
    TransactionRow,
    history_of,
    storable,
    word_for,
)
from asyncflow.abc import LogQuery, Reaped, Recordable, RunQuery, RunStore, Ticket
from asyncflow.ids import new_id
from asyncflow.stores._conditions import Below, fits, line_fits
from asyncflow.stores._memory_deployments import MemoryDeployments
from asyncflow.stores._memory_exchange import MemoryExchange
from asyncflow.stores._orphans import (
    UNKNOWN_PROCESS,
    ended,
    is_enqueued,
    is_interrupted,
    is_orphan,
    rests,
    resuming,
    stand_in_resuming,
    waits,
)

__all__ = ["MemoryStore"]


class MemoryStore(MemoryDeployments, MemoryExchange, RunStore):
    """A store that lasts as long as its process."""

    is_instant = True

    def __init__(self) -> None:
        super().__init__()
        self._logs: list[LogRow] = []
        self._cached: dict[str, CachedRow] = {}
        self._transactions: dict[bytes, TransactionRow] = {}
        self._items: dict[bytes, dict[int, ItemRow]] = {}

    def put(self, item: Recordable) -> None:
        self._check()
        with self._lock:
            item.queued = False
            changes: list[Change] = []
            for row in item.rows():
                known = self._rows.get(row.id)
                if known is None or (row.seq > known.seq and row.owner == known.owner):
                    kept = RunRow._make(map(storable, row))
                    self._rows[row.id] = kept._replace(**_origin(known))
                    changes.append(Change(row.id, 0 if known is None else known.seq, row.seq))
                    item.journalled = row.seq
            self._tell(changes)

    def put_log(self, row: LogRow) -> None:
        self._check()
        with self._lock:
            self._logs.append(LogRow._make(map(storable, row))._replace(id=new_id()))
        self._watchers.wake()

    def put_event(self, row: EventRow) -> None:
        self._check()
        with self._lock:
            self._tell([], [EventRow(*map(storable, row[: len(EMITTED)]))])

    def put_item(self, row: ItemRow) -> None:
        self._check()
        with self._lock:
            self._items.setdefault(row.run_id, {})[row.n] = ItemRow._make(map(storable, row))
        self._watchers.wake()

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

    @property
    def dropped_events(self) -> int:
        return 0

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self._watchers.add(wake)

    def read_run(self, run_id: bytes) -> RunRow | None:
        self._check()
        return self._rows.get(run_id)

    def read_runs(self, query: RunQuery) -> list[RunRow]:
        self._check()
        found = [row for row in self._newest_first() if fits(row, query)]
        return found[query.offset :][: query.limit]

    def read_tree(self, run_id: bytes) -> list[RunRow]:
        self._check()
        with self._lock:
            return self._tree(run_id)

    def read_children(self, run_id: bytes) -> list[RunRow]:
        self._check()
        rows = self._newest_first()
        stand_ins = {row.id for row in rows if row.parent_id == run_id and row.kind == STAND_IN}
        return [row for row in reversed(rows) if row.parent_id in {run_id, *stand_ins} and row.id not in stand_ins]

    def read_logs(self, query: LogQuery) -> list[LogRow]:
        self._check()
        with self._lock:
            lines = list(self._logs)  # in the order of their ids
        if query.after_id is None:
            lines.sort(key=lambda line: line.timestamp)  # stable: equal times stay in order
        return [line for line in lines if line_fits(line, query)][: query.limit]

    def read_items(self, run_id: bytes, after: int, limit: int) -> list[ItemRow]:
        self._check()
        with self._lock:
            items = self._items.get(run_id, {})
            return [items[n] for n in sorted(items) if n > after][:limit]

    # --- the journal -------------------------------------------------------------------------

    def read_journal(self, after: Cursor | None, limit: int) -> list[EventRow]:
        self._check()
        with self._lock:
            return self._journal.read(after, limit, self._rows)

    def newest_cursor(self) -> Cursor:
        self._check()
        with self._lock:
            return self._journal.newest()

    def cursor_since(self, at: int) -> Cursor:
        self._check()
        with self._lock:
            return self._journal.since(at)

    def delete_journal(self, before: int | None) -> int:
        self._check()
        with self._lock:
            if before is None:
                created = [row.created for row in reversed(self._newest_first()) if row.parent_id is None]
                before = created[0] if created else None
            return self._journal.forget(before)

    # --- taking over -------------------------------------------------------------------------

    def reap(self, now: int) -> Reaped:
        """As the port says: what was written with another number than ours is left from somewhere else."""
        self._check()
        with self._lock:
            left = [row for row in self._rows.values() if row.owner != self.owner and is_orphan(row)]
            left.sort(key=lambda row: row.id)
            changed = [ended(row, now, self.owner, UNKNOWN_PROCESS, self._deployments.keys()) for row in left]
            self._move(changed, now)
            open_ones = [row for row in self._transactions.values() if row.owner != self.owner and row.state == ACTIVE]
            interrupted = [row._replace(state=INTERRUPTED, ended=now, owner=self.owner) for row in open_ones]
            self._transactions.update((row.id, row) for row in interrupted)
            self._forget_requests()
        if changed:
            self.ring()
        waiting, requeued = sum(map(waits, changed)), sum(map(is_enqueued, changed))
        return Reaped(
            crashed=len(changed) - waiting - requeued,
            interrupted=waiting,
            requeued=requeued,
            transactions=tuple(interrupted),
        )

    def read_interrupted(self) -> list[RunRow]:
        self._check()
        oldest_first = reversed(self._newest_first())
        return [row for row in oldest_first if is_interrupted(row) and row.kind == FLOW and row.parent_id is None]

    def claim(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        self._check()
        with self._lock:
            row = self._rows.get(run_id)
            if row is None or row.seq != seq or not rests(row):
                return None
            taken = resuming(row, now, self.owner)
            moved = [taken]
            stand_in = None if row.parent_id is None else self._rows.get(row.parent_id)
            if stand_in is not None and stand_in.kind == STAND_IN:
                moved.append(stand_in_resuming(stand_in, taken, now))
            moved += self._take_over(run_id, now)
            self._move(moved, now)
            return taken

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
            items = [item for items in self._items.values() for item in items.values()]
            events = self._journal.events()
            kept = self._cached.values(), self._transactions.values()
            rows = [*self._rows.values(), *self._logs, *items, *events, *kept[0], *kept[1], *self._inputs_kept()]
        return sum(len(column) for row in rows for column in row if isinstance(column, str | bytes))

    def count_outermost(self) -> int:
        self._check()
        return sum(row.parent_id is None and not is_enqueued(row) for row in self._newest_first())

    def read_oldest(self, limit: int, before: int | None = None) -> list[bytes]:
        self._check()
        oldest_first = (row for row in reversed(self._newest_first()) if row.parent_id is None)
        return [
            row.id
            for row in oldest_first
            if (row.state >= FIRST_FINAL if before is None else rests(row) and history_of(row)[-1][3] < before)
        ][:limit]

    def delete_runs(self, root_ids: Sequence[bytes]) -> list[bytes]:
        self._check()
        deleted: list[bytes] = []
        gone: set[bytes] = set()
        with self._lock:
            below = Below(self._newest_first())
            for root_id in dict.fromkeys(root_ids):
                tree = below.ids(root_id)
                is_outermost = bool(tree) and self._rows[root_id].parent_id is None
                if is_outermost and all(rests(self._rows[each]) for each in tree):
                    gone |= tree
                    deleted.append(root_id)
            for each in gone:
                del self._rows[each]
                self._items.pop(each, None)
            self._forget_inputs(gone)
            self._logs = [line for line in self._logs if not gone & {line.flow_run_id, line.task_run_id}]
            self._journal.forget_runs(gone)
        return deleted

    def give_back(self) -> int:
        """Nothing: what is deleted is given back at once."""
        self._check()
        return 0

    def close(self, timeout: float = 5.0) -> None:
        """Refuse everything from now on; nothing waits to be written."""
        self._closed = True
        self._watchers.wake()  # for them it is over


def _origin(known: RunRow | None) -> dict[str, Any]:
    """What a run's own process does not write of it."""
    names = RunRow._fields[RunRow._fields.index("deployment_id") :]
    return {name: None if known is None else getattr(known, name) for name in names}
