"""Queries as SQL, written so that each finds its rows by an index.

Newest first is by id: ids grow with time, and every index ends with the id. Values are bound;
only codes that are whole numbers of ours are written into the text, so that the query planner can
see that a partial index applies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncflow._deployment_rows import NOBODY
from asyncflow._rows import (
    ACTIVE,
    FIRST_FINAL,
    FLOW,
    STAND_IN,
    STATE_CODES,
    CachedRow,
    ItemRow,
    LogRow,
    RunRow,
    TransactionRow,
)
from asyncflow._rules import INTERRUPTED, RESTING
from asyncflow.abc import LogQuery, RunQuery
from asyncflow.stores._orphans import PAUSED, SCHEDULED

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "CACHED", "COUNT_OUTERMOST", "ENQUEUED", "OWNERS", "PROCESSES", "READ_CACHED", "READ_CHILDREN", "READ_INTERRUPTED",
    "READ_ITEMS", "READ_RUN", "READ_TREE", "RUN", "TRANSACTION", "WAITS", "logs", "number", "oldest", "runs",
    "transactions",
]  # fmt: skip

Query = tuple[str, list[Any]]

RUN = ", ".join(f"run.{name}" for name in RunRow._fields)
CACHED = ", ".join(CachedRow._fields)
TRANSACTION = ", ".join(TransactionRow._fields)
_LOG = ", ".join(LogRow._fields)

READ_ITEMS = f"SELECT {', '.join(ItemRow._fields)} FROM item WHERE run_id = ? AND n > ? ORDER BY n LIMIT ?"

# A row without a name has its kind's default one (`default_task_run_name`).
_NAME = "ifnull(name, function || '-' || lower(substr(hex(id), -3))) = ?"

PROCESSES = "SELECT id, lock, pid, host, boot, born FROM process"
ENQUEUED = f"run.owner = {NOBODY} AND run.state = {SCHEDULED} AND run.deployment_id IS NOT NULL"
"""`_orphans.is_enqueued`."""
OWNERS = f"""
SELECT DISTINCT owner FROM run WHERE state < {FIRST_FINAL} AND NOT ({ENQUEUED})
UNION
SELECT owner FROM txn WHERE state = {ACTIVE}"""

READ_RUN = f"SELECT {RUN} FROM run WHERE id = ?"

READ_CHILDREN = f"""
SELECT {RUN} FROM run WHERE parent_id = ? AND kind <> {STAND_IN}
UNION ALL
SELECT {RUN} FROM run AS stand JOIN run ON run.parent_id = stand.id
WHERE stand.parent_id = ? AND stand.kind = {STAND_IN}
ORDER BY id"""

_RESTING = ", ".join(f"'{name}'" for name in sorted(RESTING))
WAITS = f"run.state = {PAUSED} AND ifnull(run.state_name, '') IN ({_RESTING})"
"""`_orphans.waits`, as a condition that is never null."""

READ_INTERRUPTED = f"""
SELECT {RUN} FROM run
WHERE state < {FIRST_FINAL} AND state = {PAUSED} AND state_name = '{INTERRUPTED}'
    AND kind = {FLOW} AND parent_id IS NULL
ORDER BY id"""

# The plus: else the few that wait would be looked for among all outermost ones.
COUNT_OUTERMOST = f"""
SELECT (SELECT count(*) FROM run WHERE parent_id IS NULL)
    - (SELECT count(*) FROM run
        WHERE deployment_id IS NOT NULL AND state < {FIRST_FINAL} AND {ENQUEUED} AND +parent_id IS NULL)"""

READ_CACHED = f"SELECT {CACHED} FROM cache WHERE key = ?"

# UNION, not UNION ALL: a row that names itself or one below it as its parent ends the walk.
READ_TREE = f"""
WITH RECURSIVE below (id) AS (
    SELECT id FROM run WHERE id = ?
    UNION
    SELECT run.id FROM below JOIN run ON run.parent_id = below.id
)
SELECT {RUN} FROM below JOIN run ON run.id = below.id ORDER BY run.id"""


def runs(query: RunQuery) -> Query:
    """`query` as SQL, newest first."""
    conditions: list[str] = []
    values: list[Any] = []

    def add(condition: str, value: object) -> None:
        conditions.append(condition)
        values.append(value)

    conditions.append(_kinds(query.kinds))
    if query.states is not None:
        conditions.append(_states({STATE_CODES[state] for state in query.states}))
    for column, wanted in (
        ("flow_run_id = ?", query.flow_run_id),
        ("parent_id = ?", query.parent_id),
        ("deployment_id = ?", query.deployment_id),
        (_NAME, query.name),
        ("function = ?", query.function),
        ("created >= ?", query.since),
        ("created < ?", query.until),
    ):
        if wanted is not None:
            add(column, wanted)
    for tag in query.tags or ():
        add("EXISTS (SELECT 1 FROM json_each(run.tags) AS tag WHERE tag.value = ?)", tag)
    values += [query.limit, query.offset]
    return f"SELECT {RUN} FROM run WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ? OFFSET ?", values


def _kinds(kinds: frozenset[int]) -> str:
    return f"kind = {FLOW}" if kinds == frozenset({FLOW}) else f"kind IN ({_codes(kinds)})"


def _states(codes: set[int]) -> str:
    condition = f"state IN ({_codes(codes)})"
    # Redundant, and what lets the index of the runs that have not ended be used.
    return f"{condition} AND state < {FIRST_FINAL}" if all(code < FIRST_FINAL for code in codes) else condition


def _codes(codes: set[int] | frozenset[int]) -> str:
    return ", ".join(str(int(code)) for code in sorted(codes))


def logs(query: LogQuery) -> Query:
    """`query` as SQL, oldest first."""
    conditions = ""
    values: list[Any] = []
    for condition, wanted in (
        ("level >= ?", query.level),
        ("timestamp > ?", query.after),
        ("id > ?", query.after_id or None),
    ):
        if wanted is not None:
            conditions += f" AND {condition}"
            values.append(wanted)
    # Who follows a run wants the newest few lines of all: found by their ids, not among all lines of the run.
    by_id = "+" if query.after_id else ""
    # An id is a flow run's or a task run's, never both, so nothing comes twice.
    select = f"SELECT {_LOG} FROM log WHERE {by_id}"
    return (
        f"SELECT {_LOG} FROM ({select}flow_run_id = ?{conditions} UNION ALL {select}task_run_id = ?{conditions}) "
        f"ORDER BY {'timestamp, id' if query.after_id is None else 'id'} LIMIT ?",
        [query.run_id, *values, query.run_id, *values, query.limit],
    )


def oldest(limit: int, before: int | None) -> Query:
    """Ids of outermost runs that have ended, as SQL: by the index of parents, which ends with the id."""
    # The second condition is the one that counts; the first keeps the walk over the index short.
    if before is None:
        return f"SELECT id FROM run WHERE parent_id IS NULL AND state >= {FIRST_FINAL} ORDER BY id LIMIT ?", [limit]
    # An interrupted run has no end, and its times are in its history; nobody has resumed it for so long.
    rests = f"state >= {FIRST_FINAL} OR ({WAITS})"
    since = "coalesce(ended, json_extract(history, '$[#-1][3]'), started, created)"
    old = f"({rests}) AND created < ? AND {since} < ?"
    return f"SELECT id FROM run WHERE parent_id IS NULL AND {old} ORDER BY id LIMIT ?", [before, before, limit]


def transactions(key: str | None, state: int | None, limit: int) -> Query:
    """Transactions as SQL, newest first."""
    conditions, values = ["1"], list[Any]()
    for condition, wanted in (("key = ?", key), ("state = ?", state)):
        if wanted is not None:
            conditions.append(condition)
            values.append(wanted)
    where = " AND ".join(conditions)
    return f"SELECT {TRANSACTION} FROM txn WHERE {where} ORDER BY id DESC LIMIT ?", [*values, limit]


def number(connection: sqlite3.Connection, query: str) -> int:
    """The one number that a query gives."""
    row: tuple[Any, ...] = connection.execute(query).fetchone()
    return int(row[0])
