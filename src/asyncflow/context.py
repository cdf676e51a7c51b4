"""What is current: the run whose body executes here, and the tags in force.

One context variable holds the current run, so copying a context costs one slot and it reaches
`gather` children, task groups, worker threads and generator bodies the way Python already does it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any
from uuid import UUID

from asyncflow._rows import FLOW, TASK, maybe_moment, moment
from asyncflow._run import Run, current_transaction, detached_from

__all__ = ["FlowRunContext", "TaskRunContext", "current_run", "current_tags", "detached", "tags"]

current_run: ContextVar[Run | None] = ContextVar("asyncflow_current_run", default=None)
current_tags: ContextVar[frozenset[str]] = ContextVar("asyncflow_tags", default=frozenset())


@contextmanager
def tags(*names: str) -> Generator[frozenset[str]]:
    """Give every run that begins inside these tags too. Nested ones add up; yields all in force."""
    everything = current_tags.get() | frozenset(names)
    token = current_tags.set(everything)
    try:
        yield everything
    finally:
        current_tags.reset(token)


@contextmanager
def detached() -> Generator[None]:
    """The next calls inside start outermost runs of their own: nothing waits for them, cancels or undoes them."""
    origin = detached_from.set(current_run.get() or detached_from.get())
    token, transaction = current_run.set(None), current_transaction.set(None)
    try:
        yield
    finally:
        detached_from.reset(origin)
        current_transaction.reset(transaction)
        current_run.reset(token)


class _Context:
    """Attributes of the current run, read at the moment they are asked for."""

    def _run(self) -> Run | None:
        raise NotImplementedError

    @property
    def id(self) -> UUID | None:
        """The run's id."""
        run = self._run()
        return None if run is None else UUID(bytes=run.id)

    @property
    def name(self) -> str | None:
        """The run's name."""
        run = self._run()
        return None if run is None else run.display_name

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments by name, as the body got them."""
        run = self._run()
        return {} if run is None else dict(run.arguments)

    @property
    def tags(self) -> list[str]:
        """The tags, sorted."""
        run = self._run()
        return [] if run is None else sorted(run.tags)

    @property
    def run_count(self) -> int:
        """The number of this attempt: 1 at the first."""
        run = self._run()
        return 0 if run is None else run.run_count

    @property
    def start_time(self) -> datetime | None:
        """When the first attempt began; aware UTC."""
        run = self._run()
        return None if run is None else maybe_moment(run.started)

    @property
    def scheduled_start_time(self) -> datetime | None:
        """When the run was to begin: for a run that was called, the moment of the call; aware UTC."""
        run = self._run()
        if run is None:
            return None
        due = None if run.origin is None else run.origin[1]
        return moment(run.created if due is None else due)

    def __repr__(self) -> str:
        run = self._run()
        return f"<{type(self).__name__} {'of no run' if run is None else repr(run.display_name)}>"


class FlowRunContext(_Context):
    """About the flow run that the executing code belongs to."""

    def _run(self) -> Run | None:
        return _nearest(FLOW, current_run.get())

    @property
    def flow_name(self) -> str | None:
        """The flow's name."""
        run = self._run()
        return None if run is None else run.spec.name

    @property
    def flow_version(self) -> str | None:
        """The flow's version, if it has one."""
        run = self._run()
        return None if run is None else run.spec.options.version

    @property
    def deployment_id(self) -> UUID | None:
        """The deployment that its outermost run is one of; None for runs that were called."""
        run = self._run()
        while run is not None and run.parent is not None:
            run = run.parent
        return None if run is None or run.origin is None else UUID(bytes=run.origin[0])

    @property
    def parent_flow_run_id(self) -> UUID | None:
        """The flow run this one is nested in."""
        run = self._run()
        return None if run is None or run.flow_run_id is None else UUID(bytes=run.flow_run_id)

    @property
    def parent_task_run_id(self) -> UUID | None:
        """The task run that stands for this flow run in its parent."""
        run = self._run()
        return None if run is None or run.stand_in_id is None else UUID(bytes=run.stand_in_id)

    @property
    def root_flow_run_id(self) -> UUID | None:
        """The outermost flow run."""
        run = found = self._run()
        while run is not None:
            found, run = run, _nearest(FLOW, run.parent)
        return None if found is None else UUID(bytes=found.id)


class TaskRunContext(_Context):
    """About the task run that the executing code belongs to."""

    def _run(self) -> Run | None:
        run = current_run.get()
        return run if run is not None and run.kind == TASK else None

    @property
    def task_name(self) -> str | None:
        """The task's name."""
        run = self._run()
        return None if run is None else run.spec.name

    @property
    def flow_run_id(self) -> UUID | None:
        """The flow run it belongs to; None outside of any."""
        run = self._run()
        return None if run is None or run.flow_run_id is None else UUID(bytes=run.flow_run_id)

    @property
    def parent_task_run_id(self) -> UUID | None:
        """The task run whose body called it, if a task did."""
        run = self._run()
        parent = None if run is None else run.parent
        return None if parent is None or parent.kind != TASK else UUID(bytes=parent.id)


def _nearest(kind: int, run: Run | None) -> Run | None:
    while run is not None and run.kind != kind:
        run = run.parent
    return run
