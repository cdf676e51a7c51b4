"""What is written about deployments: functions of the writer's connection, each one transaction, as in `_jobs`.

What is decided is in `_waiting`, and is decided by what is read under the lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from asyncflow._deployment_rows import DeploymentRow, Fired, RuleRow
from asyncflow._journal import Change, encoded, time_of_commit
from asyncflow._rows import RunRow, storable
from asyncflow.stores import _deployment_queries as queries
from asyncflow.stores._database import transaction
from asyncflow.stores._jobs import take_over
from asyncflow.stores._orphans import enqueued_again, is_enqueued, waits
from asyncflow.stores._sql import chunks, fetch, find_run, find_runs, marks, move
from asyncflow.stores._statements import insert_run, statements
from asyncflow.stores._turn import journal
from asyncflow.stores._waiting import (
    BATCH,
    DELETED,
    Queue,
    admitted,
    brought_up_to_date,
    cancelled,
    chosen,
    claimed,
    kept_rule,
    late,
    may_fire,
    prefix_of,
    turned_away,
)

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "cancel_waiting", "claim_due", "delete_deployment", "enqueue", "fire", "mark_late", "pause_deployment", "requeue",
    "write_deployment",
]  # fmt: skip

_MOST_PARTS = 400
"""Deployments that are looked at in one statement: SQLite takes 500 parts of one."""


# --- what is served ------------------------------------------------------------------------


def write_deployment(
    connection: sqlite3.Connection, row: DeploymentRow, rules: Sequence[RuleRow], *, keep_paused: bool
) -> DeploymentRow:
    """As the port says."""
    with transaction(connection):
        known = _deployment(connection, row.id)
        kept = brought_up_to_date(known, DeploymentRow._make(map(storable, row)), keep_paused=keep_paused)
        _insert(connection, "deployment", kept)
        former = {each.id: each for each in _rules(connection, row.id)}
        wanted = [RuleRow._make(map(storable, each)) for each in rules]
        for each in wanted:
            _insert(connection, "rule", kept_rule(former.get(each.id), each))
        for gone in former.keys() - {each.id for each in wanted}:
            connection.execute("DELETE FROM rule WHERE id = ?", [gone])
        return kept


def pause_deployment(
    connection: sqlite3.Connection, deployment_id: bytes, paused: bool, states: Mapping[bytes, str]
) -> bool:
    """As the port says."""
    with transaction(connection):
        sql = "UPDATE deployment SET paused = ? WHERE id = ?"
        if not connection.execute(sql, [int(paused), deployment_id]).rowcount:
            return False
        for rule_id, state in states.items():
            sql = "UPDATE rule SET state = ? WHERE id = ? AND deployment_id = ?"
            connection.execute(sql, [storable(state), rule_id, deployment_id])
        return True


def delete_deployment(connection: sqlite3.Connection, deployment_id: bytes, owner: int, now: int) -> bool:
    """As the port says."""
    with transaction(connection):
        if not connection.execute("DELETE FROM deployment WHERE id = ?", [deployment_id]).rowcount:
            return False
        connection.execute("DELETE FROM rule WHERE deployment_id = ?", [deployment_id])
        waiting = map(RunRow._make, fetch(connection, queries.READ_WAITING, [deployment_id]))
        move(connection, [cancelled(row, now, owner, DELETED) for row in waiting], now, owner)
        return True


# --- runs that wait ------------------------------------------------------------------------


def enqueue(connection: sqlite3.Connection, rows: Sequence[RunRow], owner: int) -> list[RunRow]:
    """As the port says."""
    with transaction(connection):
        return _admit(connection, rows, owner)


def fire(
    connection: sqlite3.Connection, rule_id: bytes, states: tuple[str, str], rows: Sequence[RunRow], owner: int,
    *, unless_running: bool,
) -> Fired:  # fmt: skip
    """As the port says."""
    before, after = map(storable, states)
    with transaction(connection):
        found = fetch(connection, f"SELECT {queries.RULE} FROM rule WHERE id = ?", [rule_id])
        rule = RuleRow._make(found[0]) if found else None
        deployment = None if rule is None else _deployment(connection, rule.deployment_id)
        if rule is None or not may_fire(rule, deployment, before):
            return Fired(done=False, runs=[])
        connection.execute("UPDATE rule SET state = ? WHERE id = ?", [after, rule_id])
        if unless_running and fetch(connection, *queries.is_running(rule.deployment_id, prefix_of(rule))):
            return Fired(done=True, runs=[])
        return Fired(done=True, runs=_admit(connection, rows, owner))


def _admit(connection: sqlite3.Connection, rows: Iterable[RunRow], owner: int) -> list[RunRow]:
    wanted = [RunRow._make(map(storable, row)) for row in rows]
    known = find_runs(connection, [row.id for row in wanted])
    keys: dict[bytes, list[str]] = {}
    for row in wanted:
        if row.deployment_id is not None and row.idempotency_key is not None:
            keys.setdefault(row.deployment_id, []).append(row.idempotency_key)
    for deployment_id, all_keys in keys.items():
        for some in chunks(all_keys):
            known += map(RunRow._make, fetch(connection, *queries.of_keys(deployment_id, some)))
    ids = {row.deployment_id for row in wanted}
    there = {row[0] for some in chunks(ids) for row in fetch(connection, _THERE.format(marks(some)), some)}
    new, given = admitted(wanted, known, there, owner)
    for statement in statements(insert_run, new):
        connection.execute(*statement)
    for some in chunks(new):
        changes = encoded(Change(row.id, 0, row.seq) for row in some)
        journal(connection, changes, time_of_commit(some, ()), owner)
    return given


_THERE = "SELECT id FROM deployment WHERE id IN ({})"


def claim_due(
    connection: sqlite3.Connection, deployment_ids: Sequence[bytes], now: int, limit: int, owner: int
) -> list[RunRow]:
    """As the port says."""
    with transaction(connection):
        for some in _parts(deployment_ids):
            connection.execute(*queries.set_forward(some, now))
        queues = [each for some in _parts(deployment_ids) for each in _queues(connection, some, now, limit)]
        away = [run_id for queue in queues for run_id in queue.turned_away]
        limits = {each.deployment.id: each.deployment.concurrency_limit for each in queues}
        taken = [claimed(row, now, owner) for row in find_runs(connection, chosen(queues, limit))]
        moved = [*taken, *(turned_away(row, now, owner, limits) for row in find_runs(connection, away))]
        for row in taken:
            if row.run_count:
                moved += take_over(connection, row.id, owner, now)
        move(connection, moved, now, owner)
        return taken


def _queues(connection: sqlite3.Connection, deployment_ids: Sequence[bytes], now: int, limit: int) -> list[Queue]:
    queues = {
        row[0]: Queue(DeploymentRow._make(row[:-1]), row[-1])
        for row in fetch(connection, *queries.places(deployment_ids))
    }
    wanted = [(each, queue.most(limit)) for each, queue in queues.items() if queue.most(limit)]
    found: dict[bytes, list[tuple[int, bytes]]] = {}
    if wanted:
        for deployment_id, scheduled, run_id in fetch(connection, *queries.due(wanted, now)):
            found.setdefault(deployment_id, []).append((scheduled, run_id))
    return [queue._replace(due=found.get(each, ())) for each, queue in queues.items()]


def _parts(ids: Iterable[bytes]) -> Iterable[list[bytes]]:
    each = list(dict.fromkeys(ids))
    return (each[start : start + _MOST_PARTS] for start in range(0, len(each), _MOST_PARTS))


def requeue(connection: sqlite3.Connection, run_id: bytes, seq: int, owner: int, now: int) -> RunRow | None:
    """As the port says."""
    with transaction(connection):
        row = find_run(connection, run_id)
        if row is None or row.seq != seq or not waits(row) or row.deployment_id is None:
            return None
        if _deployment(connection, row.deployment_id) is None:
            return None
        waiting = enqueued_again(row, now, now)
        move(connection, [waiting], now, owner)
        connection.execute("UPDATE run SET scheduled = ? WHERE id = ?", [now, run_id])
        return waiting


def cancel_waiting(
    connection: sqlite3.Connection, run_id: bytes, seq: int, owner: int, now: int, message: str
) -> RunRow | None:
    """As the port says."""
    with transaction(connection):
        row = find_run(connection, run_id)
        if row is None or row.seq != seq or not is_enqueued(row):
            return None
        ended = cancelled(row, now, owner, str(storable(message)))
        move(connection, [ended], now, owner)
        return ended


def mark_late(connection: sqlite3.Connection, before: int, owner: int, now: int) -> int:
    """As the port says."""
    with transaction(connection):
        found = fetch(connection, queries.READ_NOT_LATE, [before, BATCH])
        move(connection, [late(RunRow._make(row), now) for row in found], now, owner)
        return len(found)


# --- SQL -----------------------------------------------------------------------------------


def _deployment(connection: sqlite3.Connection, deployment_id: bytes) -> DeploymentRow | None:
    found = fetch(connection, *queries.read_deployments([deployment_id], None, None))
    return DeploymentRow._make(found[0]) if found else None


def _rules(connection: sqlite3.Connection, deployment_id: bytes) -> list[RuleRow]:
    return [RuleRow._make(row) for row in fetch(connection, *queries.read_rules([deployment_id]))]


def _insert(connection: sqlite3.Connection, table: str, row: DeploymentRow | RuleRow) -> None:
    connection.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(row._fields)}) VALUES ({marks(row)})", row)
