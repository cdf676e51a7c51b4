"""Frozen records of live runs, made when somebody is to look at one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from asyncflow._rows import FLOW, TASK, maybe_moment, maybe_uuid, moment
from asyncflow._run import Run
from asyncflow.runs import FlowRun, TaskRun

__all__ = ["record_of"]


def record_of(run: Run) -> FlowRun | TaskRun:
    """`run` as a frozen record, as of now: what hooks and conditions get."""
    common: dict[str, Any] = {
        "id": UUID(bytes=run.id),
        "name": run.display_name,
        "state": run.state(),
        "run_count": run.run_count,
        "tags": tuple(sorted(run.tags)),
        "created": moment(run.created),
        "start_time": maybe_moment(run.started),
        "end_time": maybe_moment(run.ended),
    }
    if run.kind == FLOW:
        return FlowRun(
            **common,
            flow_name=run.spec.name,
            flow_version=run.spec.options.version,
            parameters=dict(run.arguments),
            parent_flow_run_id=maybe_uuid(run.flow_run_id),
            parent_task_run_id=maybe_uuid(run.stand_in_id),
        )
    parent = run.parent
    return TaskRun(
        **common,
        task_name=run.spec.name,
        task_key=run.spec.key,
        flow_run_id=maybe_uuid(run.flow_run_id),
        parent_task_run_id=UUID(bytes=parent.id) if parent is not None and parent.kind == TASK else None,
    )
