"""What a store does besides recording runs: functions of the writer's connection, each one transaction.

Each holds the database's write lock from its first look to its commit: what it saw is still so
when it writes, and a lock that could not be had means that nothing was done. One statement does
for any number of rows: `sqlite3` gives up the GIL at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from asyncflow._journal import Change, encoded
from asyncflow._rows import (
    ACTIVE,
    FIRST_FINAL,
    INTERRUPTED,
    STAND_IN,
    CachedRow,
    RunRow,
    TransactionRow,
    storable,
    word_for,
)
from asyncflow.abc import Reaped
from asyncflow.stores import _queries as queries
from asyncflow.stores._database import transaction
from asyncflow.stores._orphans import PAUSED, UNKNOWN_PROCESS, ended, left_behind, resuming, stand_in_resuming
from asyncflow.stores._ownership import Process
from asyncflow.stores._statements import CHUNK, seize, statements
from asyncflow.stores._turn import journal

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "claim", "delete_cached", "delete_journal", "delete_runs", "delete_transactions", "give_back", "leave",
    "reap_process", "reap_unknown", "register", "write_cached", "write_transaction",
]  # fmt: skip

VACUUM_PAGES = 128
"""Pages given back to the disk at a time: a millisecond, but each waits for the GIL."""
BATCH = 1000
_NEVER = 2**62

_OPEN = f"run.state < {FIRST_FINAL} AND NOT ({queries.WAITS})"
_BELOW = """
WITH RECURSIVE below (id) AS (
    SELECT id FROM run WHERE id IN ({ids})
    UNION
    SELECT run.id FROM below JOIN run ON run.parent_id = below.id
)"""


_OF_RUNS = (
    ("log", "flow_run_id"), ("log", "task_run_id"), ("event", "flow_run_id"), ("event", "task_run_id"),
    ("item", "run_id"), ("run", "id"),
)  # fmt: skip
"""What is deleted with runs, by which column; the runs last."""


# --- owners --------------------------------------------------------------------------------


def register(connection: sqlite3.Connection, process: Process, opened: int) -> int:
    """Make the row of a store; gives its number, unless it has one: then that row is made again."""
    with transaction(connection):
        sql = "INSERT OR IGNORE INTO process (id, lock, pid, host, boot, born, opened) VALUES (?, ?, ?, ?, ?, ?, ?)"
        cursor = connection.execute(sql, [process.id or None, *process[1:], opened])
        return process.id or int(cursor.lastrowid or 0)


def leave(connection: sqlite3.Connection, owner: int) -> bool:
    """Delete the row of a store that closes; false when something of it is open, which the next reap is to find."""
    with transaction(connection):
        sql = (
            f"DELETE FROM process WHERE id = ? "
            f"AND NOT EXISTS (SELECT 1 FROM run WHERE owner = ? AND {_OPEN}) "
            f"AND NOT EXISTS (SELECT 1 FROM txn WHERE owner = ? AND state = {ACTIVE})"
        )
        return connection.execute(sql, [owner] * 3).rowcount > 0


def reap_process(
    connection: sqlite3.Connection, process: Process, is_dead: Callable[[Process], bool], owner: int, now: int
) -> Reaped:
    """End what a dead process has left open, unless another one has just done it."""
    with transaction(connection):
        if not is_dead(process) or not _rows(connection, "SELECT 1 FROM process WHERE id = ?", [process.id]):
            return Reaped()
        done = _reap(connection, f"owner = {process.id:d}", owner, now, f"its process died ({process})")
        connection.execute("DELETE FROM process WHERE id = ?", [process.id])
        return done


def reap_unknown(connection: sqlite3.Connection, owner: int, now: int) -> Reaped:
    """End what belongs to no process there is a row of."""
    with transaction(connection):
        return _reap(connection, "owner NOT IN (SELECT id FROM process)", owner, now, UNKNOWN_PROCESS)


def _reap(connection: sqlite3.Connection, whose: str, owner: int, now: int, why: str) -> Reaped:
    found = _rows(connection, f"SELECT {queries.RUN} FROM run WHERE {_OPEN} AND {whose} ORDER BY id")
    rows = [ended(RunRow._make(row), now, owner, why) for row in found]
    _move(connection, rows, now, owner)
    found = _rows(connection, f"SELECT {queries.TRANSACTION} FROM txn WHERE state = {ACTIVE} AND {whose}")
    left = [TransactionRow._make(row)._replace(state=INTERRUPTED, ended=now, owner=owner) for row in found]
    for row in left:
        _put_transaction(connection, row)
    interrupted = sum(row.state == PAUSED for row in rows)
    return Reaped(crashed=len(rows) - interrupted, interrupted=interrupted, transactions=tuple(left))


def claim(connection: sqlite3.Connection, run_id: bytes, seq: int, owner: int, now: int) -> RunRow | None:
    """As the port says."""
    with transaction(connection):
        row = _run(connection, run_id)
        if row is None or row.seq != seq or (row.state < FIRST_FINAL and row.state != PAUSED):
            return None
        # All below it as well: whichever of them runs again is written by this store.
        sql = f"{_below(1)} UPDATE run SET owner = ? WHERE id IN (SELECT id FROM below) AND owner <> ?"
        connection.execute(sql, [run_id, owner, owner])
        taken = resuming(row, now, owner)
        rows = [taken]
        stand_in = None if row.parent_id is None else _run(connection, row.parent_id)
        if stand_in is not None and stand_in.kind == STAND_IN:
            rows.append(stand_in_resuming(stand_in, taken, now))
        rows += [left_behind(each, now, owner) for each in _waiting_below(connection, run_id)]
        _move(connection, rows, now, owner)
        return taken


def _waiting_below(connection: sqlite3.Connection, run_id: bytes) -> list[RunRow]:
    found = f"SELECT {queries.RUN} FROM below JOIN run ON run.id = below.id"
    sql = f"{_below(1)} {found} WHERE {queries.WAITS} AND run.id <> ?"
    return [RunRow._make(row) for row in _rows(connection, sql, [run_id, run_id])]


def _move(connection: sqlite3.Connection, rows: Sequence[RunRow], now: int, owner: int) -> None:
    """Record runs, each in one more state than it is in on record."""
    for statement in statements(seize, rows):
        connection.execute(*statement)
    for chunk in _chunks(rows):
        journal(connection, encoded(Change(row.id, row.seq - 1, row.seq) for row in chunk), now, owner)


# --- cached values, transactions -------------------------------------------------------------


def write_cached(connection: sqlite3.Connection, row: CachedRow, write_file: Callable[[CachedRow], CachedRow]) -> None:
    """Keep a value. Its file is written under the lock: else a deleting process could take it for the older one's."""
    with transaction(connection):
        values = list(map(storable, write_file(row)))
        connection.execute(f"INSERT OR REPLACE INTO cache ({queries.CACHED}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def delete_cached(
    connection: sqlite3.Connection,
    expired_at: int | None,
    keys: Sequence[str],
    made_before: int | None,
    delete_files: Callable[[Sequence[CachedRow]], None],
) -> list[CachedRow]:
    """As the port says."""
    with transaction(connection):
        found: dict[str, CachedRow] = {}
        for condition, moment in (("expires <= ?", expired_at), ("expires IS NULL AND created < ?", made_before)):
            if moment is not None:
                for row in _rows(connection, f"SELECT {queries.CACHED} FROM cache WHERE {condition}", [moment]):
                    found[row[0]] = CachedRow._make(row)
                connection.execute(f"DELETE FROM cache WHERE {condition}", [moment])
        for chunk in _chunks([storable(key) for key in keys]):
            marks = _marks(chunk)
            for row in _rows(connection, f"SELECT {queries.CACHED} FROM cache WHERE key IN ({marks})", chunk):
                found[row[0]] = CachedRow._make(row)
            connection.execute(f"DELETE FROM cache WHERE key IN ({marks})", chunk)
        deleted = [found[key] for key in sorted(found)]
        if deleted:
            delete_files(deleted)
        return deleted


def delete_transactions(connection: sqlite3.Connection, ended_before: int) -> int:
    """As the port says."""
    with transaction(connection):
        old = f"SELECT id FROM txn WHERE state <> {ACTIVE} AND ended < ? ORDER BY id LIMIT {BATCH}"
        return connection.execute(f"DELETE FROM txn WHERE id IN ({old})", [ended_before]).rowcount


def write_transaction(connection: sqlite3.Connection, row: TransactionRow, members: Sequence[bytes]) -> None:
    """As the port says."""
    with transaction(connection):
        _put_transaction(connection, row, "WHERE excluded.owner = txn.owner")
        for chunk in _chunks(members):
            connection.execute(
                f"UPDATE run SET details = json_set(coalesce(details, '{{}}'), '$.{word_for(row)}', json('true')) "
                f"WHERE id IN ({_marks(chunk)})",
                chunk,
            )


def _put_transaction(connection: sqlite3.Connection, row: TransactionRow, where: str = "") -> None:
    changes = ", ".join(f"{name} = excluded.{name}" for name in TransactionRow._fields if name != "id")
    sql = (
        f"INSERT INTO txn ({queries.TRANSACTION}) VALUES ({_marks(row)}) "
        f"ON CONFLICT (id) DO UPDATE SET {changes} {where}"
    )
    connection.execute(sql, list(map(storable, row)))


# --- retention -----------------------------------------------------------------------------


def delete_runs(connection: sqlite3.Connection, root_ids: Iterable[bytes]) -> list[bytes]:
    """As the port says."""
    deleted: list[bytes] = []
    with transaction(connection):
        for chunk in _chunks(dict.fromkeys(root_ids)):
            roots = _deletable(connection, chunk)
            deleted += roots
            below = _below(len(roots))
            for table, column in _OF_RUNS:
                connection.execute(f"{below} DELETE FROM {table} WHERE {column} IN (SELECT id FROM below)", roots)
    return deleted


def _deletable(connection: sqlite3.Connection, ids: Sequence[bytes]) -> list[bytes]:
    """Those of `ids` that are outermost runs which do not go on, and nothing below them does."""
    sql = f"""
    WITH RECURSIVE below (root, id, is_open) AS (
        SELECT id, id, {_OPEN} FROM run WHERE id IN ({_marks(ids)}) AND parent_id IS NULL
        UNION
        SELECT below.root, run.id, {_OPEN} FROM below JOIN run ON run.parent_id = below.id
    )
    SELECT root FROM below GROUP BY root HAVING max(is_open) = 0"""
    ended_roots = {row[0] for row in _rows(connection, sql, ids)}
    return [each for each in ids if each in ended_roots]


def delete_journal(connection: sqlite3.Connection, before: int | None) -> int:
    """As the port says."""
    with transaction(connection):
        if before is None:
            oldest = "SELECT created FROM run WHERE parent_id IS NULL ORDER BY id LIMIT 1"
            found = _rows(connection, oldest)
            before = found[0][0] if found else _NEVER
        # The times of the journal do not go back, so this is its first part.
        old = f"SELECT id FROM (SELECT id, at FROM journal ORDER BY id LIMIT {BATCH}) WHERE at < ?"
        found = _rows(connection, f"SELECT max(id), count(*) FROM ({old})", [before])
        ((newest, number),) = found
        if number:
            connection.execute("DELETE FROM event WHERE journal <= ?", [newest])
            connection.execute("DELETE FROM journal WHERE id <= ?", [newest])
        return int(number)


def give_back(connection: sqlite3.Connection) -> int:
    """As the port says."""
    # A transaction by itself. It gives a row without columns for each page and goes on only when
    # asked for the next one; of sqlite3's methods this one does so.
    connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
    return queries.number(connection, "PRAGMA freelist_count") * queries.number(connection, "PRAGMA page_size")


# --- SQL -----------------------------------------------------------------------------------


def _rows(connection: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    return connection.execute(sql, values).fetchall()


def _run(connection: sqlite3.Connection, run_id: bytes) -> RunRow | None:
    found = _rows(connection, queries.READ_RUN, [run_id])
    return RunRow._make(found[0]) if found else None


def _below(roots: int) -> str:
    return _BELOW.format(ids=", ".join("?" * roots))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _chunks(values: Iterable[Any]) -> Iterable[list[Any]]:
    each = list(values)
    return (each[start : start + CHUNK] for start in range(0, len(each), CHUNK))
