"""Recorded runs as plain data for `--json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from asyncflow._rows import FLOW, RunRow, flow_run_of, task_run_of
from asyncflow.cli.tree import Node, build_tree
from asyncflow.events import Event
from asyncflow.runs import FlowRun, LogRecord, TaskRun
from asyncflow.states import State

__all__ = ["event_json", "log_json", "run_json", "show_json"]

_FLOW_FIELDS = (
    "flow_name",
    "flow_version",
    "parameters",
    "parent_flow_run_id",
    "parent_task_run_id",
    "deployment_id",
    "expected_start_time",
)
_WAIT_FIELDS = ("scheduled_time", "pause_key", "pause_timeout", "input_schema")
"""What is told of a state where it has it."""
_TASK_FIELDS = ("task_name", "task_key", "flow_run_id", "parent_task_run_id", "child_flow_run_id")


def run_json(run: FlowRun | TaskRun) -> dict[str, Any]:
    """A run, without its history."""
    is_flow = isinstance(run, FlowRun)
    fields = ("run_count", "tags", "created", "start_time", "end_time", *(_FLOW_FIELDS if is_flow else _TASK_FIELDS))
    took = run.duration
    return {
        "id": str(run.id),
        "kind": "flow" if is_flow else "task",
        "name": run.name,
        "state": state_json(run.state),
        **{name: _plain(getattr(run, name)) for name in fields},
        "duration_seconds": None if took is None else took.total_seconds(),
    }


def state_json(state: State[Any]) -> dict[str, Any]:
    """A state, without the runs that it refers to."""
    details = {name: _plain(getattr(state.state_details, name)) for name in _WAIT_FIELDS}
    return {
        "type": state.type.value,
        "name": state.name,
        "message": state.message,
        "timestamp": state.timestamp.isoformat(),
        **{name: value for name, value in details.items() if value is not None},
    }


def show_json(rows: Sequence[RunRow], states: Sequence[State[Any]]) -> dict[str, Any]:
    """The first of `rows` with its states, its result or error, and everything below it as `children`."""
    row = rows[0]
    top = build_tree(rows) or Node(row)
    return {
        **_row_json(row),
        "states": [state_json(state) for state in states],
        "result": None if row.result is None else json.loads(row.result),
        "result_file": None if row.result_file is None else json.loads(row.result_file),
        "error": None if row.error is None else json.loads(row.error),
        "children": _children(top),
    }


def log_json(record: LogRecord) -> dict[str, Any]:
    """A log record."""
    fields = ("timestamp", "level", "name", "message", "flow_run_id", "task_run_id", "extra")
    return {name: _plain(getattr(record, name)) for name in fields}


def event_json(event: Event) -> dict[str, Any]:
    """An event; of a state's its type and message, too."""
    fields = ("id", "name", "occurred", "resource", "payload", "flow_run_id", "task_run_id")
    told = {name: _plain(getattr(event, name)) for name in fields}
    return told if event.state is None else {**told, "state": state_json(event.state)}


def _row_json(row: RunRow) -> dict[str, Any]:
    return run_json(flow_run_of(row) if row.kind == FLOW else task_run_of(row))


def _children(top: Node) -> list[dict[str, Any]]:
    """What `top` called, each with what it called; by a work list, because runs nest deeper than Python does."""
    told: list[dict[str, Any]] = []
    left = [(top, told)]
    while left:
        node, children = left.pop()
        for child in node.children:
            data: dict[str, Any] = {**_row_json(child.row), "children": []}
            children.append(data)
            left.append((child, data["children"]))
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value
