"""Queries as SQL, written so that each finds its rows by an index.

Newest first is by id: ids grow with time, and every index ends with the id. Values are bound;
only codes that are whole numbers of ours are written into the text, so that the query planner can
see that a partial index applies.
"""

from __future__ import annotations

from typing import Any

from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES, LogRow, RunRow
from asyncflow.abc import LogQuery, RunQuery

__all__ = ["READ_RUN", "READ_TREE", "logs", "runs"]

Query = tuple[str, list[Any]]

_RUN = ", ".join(f"run.{name}" for name in RunRow._fields)
_LOG = ", ".join(LogRow._fields)

# A row without a name has its kind's default one (`default_task_run_name`).
_NAME = "ifnull(name, function || '-' || lower(substr(hex(id), -3))) = ?"

READ_RUN = f"SELECT {_RUN} FROM run WHERE id = ?"

# UNION, not UNION ALL: a row that names itself or one below it as its parent ends the walk.
READ_TREE = f"""
WITH RECURSIVE below (id) AS (
    SELECT id FROM run WHERE id = ?
    UNION
    SELECT run.id FROM below JOIN run ON run.parent_id = below.id
)
SELECT {_RUN} FROM below JOIN run ON run.id = below.id ORDER BY run.id"""


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
    return f"SELECT {_RUN} FROM run WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ? OFFSET ?", values


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
    for condition, wanted in (("level >= ?", query.level), ("timestamp > ?", query.after)):
        if wanted is not None:
            conditions += f" AND {condition}"
            values.append(wanted)
    # An id is a flow run's or a task run's, never both, so nothing comes twice.
    select = f"SELECT {_LOG}, id FROM log WHERE "
    return (
        f"SELECT {_LOG} FROM ({select} flow_run_id = ?{conditions} UNION ALL {select} task_run_id = ?{conditions}) "
        f"ORDER BY timestamp, id LIMIT ?",
        [query.run_id, *values, query.run_id, *values, query.limit],
    )
