"""Records of runs: what a reader of the store or a hook sees. Frozen, and built when somebody looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from asyncflow.states import State

__all__ = ["FlowRun", "LogRecord", "TaskRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    id: UUID
    name: str
    state: State[Any]
    run_count: int
    """Attempts begun so far: 0 before the first."""
    tags: tuple[str, ...] = ()
    created: datetime
    start_time: datetime | None = None
    """When the first attempt began; aware UTC."""
    end_time: datetime | None = None
    """When the final state was reached; aware UTC."""

    @property
    def duration(self) -> timedelta | None:
        """From the first attempt to the end, waits between attempts included; None while it lasts."""
        if self.start_time is None or self.end_time is None:
            return None
        return self.end_time - self.start_time


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRun(_Run):
    """One call of a flow."""

    flow_name: str
    flow_version: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    """By name. In a record read from the store: their JSON, with previews where a value is not JSON."""
    parent_flow_run_id: UUID | None = None
    """The flow run this one is nested in."""
    parent_task_run_id: UUID | None = None
    """The task run that stands for this one in its parent."""
    deployment_id: UUID | None = None
    """The deployment that it is a run of."""
    expected_start_time: datetime | None = None
    """When a run of a deployment was to begin; aware UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun(_Run):
    """One call of a task, or the task run that stands for a nested flow."""

    task_name: str
    task_key: str
    flow_run_id: UUID | None = None
    """The flow run it belongs to; None when it was called outside of any."""
    parent_task_run_id: UUID | None = None
    """The task run whose body called it, if a task did."""
    child_flow_run_id: UUID | None = None
    """On the task run that stands for a nested flow, or for a run of a deployment: that flow's run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One line logged by a run."""

    timestamp: datetime
    level: int
    name: str
    message: str
    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """The `extra=` it was logged with, as JSON, with previews where a value is not JSON."""
