"""What a store does besides recording runs: functions of the writer's connection, each one transaction.

Each holds the database's write lock from its first look to its commit: what it saw is still so
when it writes, and a lock that could not be had means that nothing was done. One statement does
for any number of rows: `sqlite3` gives up the GIL at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

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
from asyncflow.stores._orphans import (
    UNKNOWN_PROCESS,
    died,
    ended,
    is_enqueued,
    left_behind,
    rests,
    resuming,
    stand_in_resuming,
    waits,
)
from asyncflow.stores._ownership import Process
from asyncflow.stores._sql import below, chunks, fetch, find_run, marks, move

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "claim", "delete_cached", "delete_journal", "delete_runs", "delete_transactions", "give_back", "leave",
    "reap_process", "reap_unknown", "register", "take_over", "write_cached", "write_transaction",
]  # fmt: skip

VACUUM_PAGES = 128
"""Pages given back to the disk at a time: a millisecond, but each waits for the GIL."""
BATCH = 1000
_NEVER = 2**62

_OPEN = f"run.state < {FIRST_FINAL} AND NOT ({queries.WAITS})"
_UNANSWERED = "DELETE FROM request WHERE owner NOT IN (SELECT id FROM process)"
_UNREAD = "DELETE FROM request WHERE answer IS NOT NULL AND asker NOT IN (SELECT id FROM process)"
_OF_RUNS = (
    ("log", "flow_run_id"), ("log", "task_run_id"), ("event", "flow_run_id"), ("event", "task_run_id"),
    ("item", "run_id"), ("input", "run_id"), ("run", "id"),
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
        has_left = connection.execute(sql, [owner] * 3).rowcount > 0
        _forget_requests(connection)
        return has_left


def reap_process(
    connection: sqlite3.Connection, process: Process, is_dead: Callable[[Process], bool], owner: int, now: int
) -> Reaped:
    """End what a dead process has left open, unless another one has just done it."""
    with transaction(connection):
        if not is_dead(process) or not fetch(connection, "SELECT 1 FROM process WHERE id = ?", [process.id]):
            return Reaped()
        done = _reap(connection, f"owner = {process.id:d}", owner, now, died(process))
        connection.execute("DELETE FROM process WHERE id = ?", [process.id])
        _forget_requests(connection)
        return done


def reap_unknown(connection: sqlite3.Connection, owner: int, now: int) -> Reaped:
    """End what belongs to no process there is a row of."""
    with transaction(connection):
        return _reap(connection, "owner NOT IN (SELECT id FROM process)", owner, now, UNKNOWN_PROCESS)


def _forget_requests(connection: sqlite3.Connection) -> None:
    """Delete what nobody will answer, and the answers that nobody will read."""
    connection.execute(_UNANSWERED)
    connection.execute(_UNREAD)


def _reap(connection: sqlite3.Connection, whose: str, owner: int, now: int, why: str) -> Reaped:
    sql = f"SELECT {queries.RUN} FROM run WHERE {_OPEN} AND NOT ({queries.ENQUEUED}) AND {whose} ORDER BY id"
    found = fetch(connection, sql)
    deployments = {row[0] for row in fetch(connection, "SELECT id FROM deployment")} if found else set[bytes]()
    rows = [ended(RunRow._make(row), now, owner, why, deployments) for row in found]
    move(connection, rows, now, owner)
    found = fetch(connection, f"SELECT {queries.TRANSACTION} FROM txn WHERE state = {ACTIVE} AND {whose}")
    left = [TransactionRow._make(row)._replace(state=INTERRUPTED, ended=now, owner=owner) for row in found]
    for row in left:
        _put_transaction(connection, row)
    interrupted, requeued = sum(map(waits, rows)), sum(map(is_enqueued, rows))
    return Reaped(
        crashed=len(rows) - interrupted - requeued,
        interrupted=interrupted,
        requeued=requeued,
        transactions=tuple(left),
    )


def claim(connection: sqlite3.Connection, run_id: bytes, seq: int, owner: int, now: int) -> RunRow | None:
    """As the port says."""
    with transaction(connection):
        row = find_run(connection, run_id)
        if row is None or row.seq != seq or not rests(row):
            return None
        taken = resuming(row, now, owner)
        rows = [taken]
        stand_in = None if row.parent_id is None else find_run(connection, row.parent_id)
        if stand_in is not None and stand_in.kind == STAND_IN:
            rows.append(stand_in_resuming(stand_in, taken, now))
        rows += take_over(connection, run_id, owner, now)
        move(connection, rows, now, owner)
        return taken


def take_over(connection: sqlite3.Connection, run_id: bytes, owner: int, now: int) -> list[RunRow]:
    """Own all below a run that is run again, for whichever of it runs again is written by this store.

    Gives what waited below it, in the next state of each, which is not recorded yet.
    """
    sql = f"{below(1)} UPDATE run SET owner = ? WHERE id IN (SELECT id FROM below) AND owner <> ?"
    connection.execute(sql, [run_id, owner, owner])
    found = f"SELECT {queries.RUN} FROM below JOIN run ON run.id = below.id"
    sql = f"{below(1)} {found} WHERE {queries.WAITS} AND run.id <> ?"
    return [left_behind(RunRow._make(row), now, owner) for row in fetch(connection, sql, [run_id, run_id])]


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
                for row in fetch(connection, f"SELECT {queries.CACHED} FROM cache WHERE {condition}", [moment]):
                    found[row[0]] = CachedRow._make(row)
                connection.execute(f"DELETE FROM cache WHERE {condition}", [moment])
        for chunk in chunks([storable(key) for key in keys]):
            named = f"key IN ({marks(chunk)})"
            for row in fetch(connection, f"SELECT {queries.CACHED} FROM cache WHERE {named}", chunk):
                found[row[0]] = CachedRow._make(row)
            connection.execute(f"DELETE FROM cache WHERE {named}", chunk)
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
        for chunk in chunks(members):
            connection.execute(
                f"UPDATE run SET details = json_set(coalesce(details, '{{}}'), '$.{word_for(row)}', json('true')) "
                f"WHERE id IN ({marks(chunk)})",
                chunk,
            )


def _put_transaction(connection: sqlite3.Connection, row: TransactionRow, where: str = "") -> None:
    changes = ", ".join(f"{name} = excluded.{name}" for name in TransactionRow._fields if name != "id")
    sql = (
        f"INSERT INTO txn ({queries.TRANSACTION}) VALUES ({marks(row)}) "
        f"ON CONFLICT (id) DO UPDATE SET {changes} {where}"
    )
    connection.execute(sql, list(map(storable, row)))


# --- retention -----------------------------------------------------------------------------


def delete_runs(connection: sqlite3.Connection, root_ids: Iterable[bytes]) -> list[bytes]:
    """As the port says."""
    deleted: list[bytes] = []
    with transaction(connection):
        for chunk in chunks(dict.fromkeys(root_ids)):
            roots = _deletable(connection, chunk)
            deleted += roots
            doomed = below(len(roots))
            for table, column in _OF_RUNS:
                connection.execute(f"{doomed} DELETE FROM {table} WHERE {column} IN (SELECT id FROM below)", roots)
    return deleted


def _deletable(connection: sqlite3.Connection, ids: Sequence[bytes]) -> list[bytes]:
    """Those of `ids` that are outermost runs which do not go on, and nothing below them does."""
    sql = f"""
    WITH RECURSIVE below (root, id, is_open) AS (
        SELECT id, id, {_OPEN} FROM run WHERE id IN ({marks(ids)}) AND parent_id IS NULL
        UNION
        SELECT below.root, run.id, {_OPEN} FROM below JOIN run ON run.parent_id = below.id
    )
    SELECT root FROM below GROUP BY root HAVING max(is_open) = 0"""
    ended_roots = {row[0] for row in fetch(connection, sql, ids)}
    return [each for each in ids if each in ended_roots]


def delete_journal(connection: sqlite3.Connection, before: int | None) -> int:
    """As the port says."""
    with transaction(connection):
        if before is None:
            oldest = "SELECT created FROM run WHERE parent_id IS NULL ORDER BY id LIMIT 1"
            found = fetch(connection, oldest)
            before = found[0][0] if found else _NEVER
        # The times of the journal do not go back, so this is its first part.
        old = f"SELECT id FROM (SELECT id, at FROM journal ORDER BY id LIMIT {BATCH}) WHERE at < ?"
        found = fetch(connection, f"SELECT max(id), count(*) FROM ({old})", [before])
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
