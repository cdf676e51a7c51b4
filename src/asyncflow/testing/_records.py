"""What the store must say after a call: each of its runs is final, by legal steps, and before its parent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from uuid import UUID

from asyncflow._rows import (
    FIRST_FINAL,
    FLOW,
    STAND_IN,
    STATE_CODES,
    STATE_TYPES,
    TASK,
    RunRow,
    flow_run_of,
    states_of,
    task_run_of,
)
from asyncflow._rules import RESUMING, TRANSITIONS
from asyncflow.abc import RunQuery, RunStore
from asyncflow.runs import FlowRun, TaskRun
from asyncflow.states import StateType

__all__ = ["crashed", "newest_id", "record_problems", "rows_after", "runs_of"]

_PAGE = 500
_ALL = frozenset({FLOW, TASK, STAND_IN})
_KINDS = {FLOW: "flow run", TASK: "task run", STAND_IN: "stand-in of the nested flow run"}
_CRASHED = STATE_CODES[StateType.CRASHED]


def newest_id(store: RunStore) -> bytes:
    """The id of the newest run. Blocks."""
    return next((row.id for row in store.read_runs(RunQuery(kinds=_ALL, limit=1))), b"")


def rows_after(store: RunStore, run_id: bytes) -> list[RunRow]:
    """The runs newer than one, newest first. Blocks."""
    found: list[RunRow] = []
    while True:
        page = store.read_runs(RunQuery(kinds=_ALL, limit=_PAGE, offset=len(found)))
        newer = [row for row in page if row.id > run_id]  # ids are in the order they were made
        found += newer
        if len(newer) < _PAGE:
            return found


def runs_of(rows: list[RunRow]) -> tuple[FlowRun | TaskRun, ...]:
    """The runs, oldest first."""
    return tuple(flow_run_of(row) if row.kind == FLOW else task_run_of(row) for row in reversed(rows))


def crashed(rows: list[RunRow]) -> set[str]:
    """The functions of the runs that are Crashed."""
    return {row.function for row in rows if row.state == _CRASHED}


def record_problems(rows: list[RunRow], may_crash: set[str]) -> list[str]:
    """What is wrong with the records of one call's runs."""
    known = {row.id: row for row in rows}
    return [f"{_name(row)} {problem}" for row in rows for problem in _problems(row, known, may_crash)]


def _name(row: RunRow) -> str:
    return f"{_KINDS[row.kind]} {row.name or row.function!r} ({UUID(bytes=row.id)})"


def _problems(row: RunRow, known: dict[bytes, RunRow], may_crash: set[str]) -> Iterator[str]:
    if row.state < FIRST_FINAL:
        yield f"is {STATE_TYPES[row.state]} for ever"
    elif row.ended is None:
        yield "is final without an end time"
    if row.state == _CRASHED and row.function not in may_crash:
        yield f"is Crashed: {row.message}"
    states = states_of(row)
    for before, after in pairwise(states):
        if after.type not in TRANSITIONS[before.type] and after.name != RESUMING:
            yield f"went from {before.type} to {after.type}"
    if states[0].type not in TRANSITIONS[None]:
        yield f"went from nothing to {states[0].type}"
    if any(later.timestamp < earlier.timestamp for earlier, later in pairwise(states)):
        yield "has states whose times go back"
    parent = known.get(row.parent_id) if row.parent_id is not None else None
    if row.parent_id is not None and parent is None:
        yield "has a parent that is not on record"
    if parent is not None and (row.ended or 0) > (parent.ended or row.ended or 0):
        yield f"ended after its parent, {_name(parent)}"
