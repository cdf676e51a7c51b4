"""What a query asks for, of rows in memory: what `_queries` says in SQL."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from asyncflow._rows import STATE_CODES, LogRow, RunRow, default_task_run_name
from asyncflow.abc import LogQuery, RunQuery

__all__ = ["Below", "fits", "line_fits"]


def fits(row: RunRow, query: RunQuery) -> bool:
    """Whether a run is among those that are asked for."""
    return (
        row.kind in query.kinds
        and (query.states is None or row.state in {STATE_CODES[state] for state in query.states})
        and query.name in (None, row.name or default_task_run_name(row.function, row.id))
        and query.function in (None, row.function)
        and query.flow_run_id in (None, row.flow_run_id)
        and query.parent_id in (None, row.parent_id)
        and query.deployment_id in (None, row.deployment_id)
        and (query.since is None or row.created >= query.since)
        and (query.until is None or row.created < query.until)
        and (query.tags is None or query.tags <= set(orjson.loads(row.tags or "[]")))
    )


def line_fits(line: LogRow, query: LogQuery) -> bool:
    """Whether a log line is among those that are asked for."""
    return (
        query.run_id in (line.flow_run_id, line.task_run_id)
        and (query.level is None or line.level >= query.level)
        and (query.after is None or line.timestamp > query.after)
        and (query.after_id is None or line.id > query.after_id)
    )


class Below:
    """Which runs are below which, among some rows."""

    def __init__(self, rows: Iterable[RunRow]) -> None:
        self._known: set[bytes] = set()
        self._children: dict[bytes | None, list[bytes]] = {}
        for row in rows:
            self._known.add(row.id)
            self._children.setdefault(row.parent_id, []).append(row.id)

    def ids(self, run_id: bytes) -> set[bytes]:
        """The run, if there is one, and all below it."""
        found: set[bytes] = set()
        left = [run_id] if run_id in self._known else []
        while left:
            each = left.pop()
            if each not in found:  # a row may name one below it as its parent
                found.add(each)
                left += self._children.get(each, ())
        return found
