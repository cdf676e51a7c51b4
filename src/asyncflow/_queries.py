"""What a store is asked, and what it answers besides rows."""

from __future__ import annotations

from dataclasses import dataclass

from asyncflow._rows import TransactionRow
from asyncflow.states import StateType

__all__ = ["LogQuery", "Reaped", "RunQuery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs, newest first. Conditions left out do not apply."""

    kinds: frozenset[int]
    """FLOW, TASK, STAND_IN (of `_rows`)."""
    states: frozenset[StateType] | None = None
    name: str | None = None
    """The run's name, exactly."""
    function: str | None = None
    """The flow's or task's name, exactly."""
    tags: frozenset[str] | None = None
    """All of these."""
    flow_run_id: bytes | None = None
    """The nearest flow run around it."""
    parent_id: bytes | None = None
    """The run directly above it."""
    deployment_id: bytes | None = None
    since: int | None = None
    """Created at or after, in microseconds since 1970 UTC."""
    until: int | None = None
    """Created before."""
    limit: int = 200
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which log lines, oldest first."""

    run_id: bytes
    """A flow run (its own lines and those of its tasks) or a task run."""
    level: int | None = None
    """This level and above."""
    after: int | None = None
    """Logged after this time, in microseconds since 1970 UTC."""
    after_id: bytes | None = None
    """With an id above this one; then in the order of their ids. `b""` is before all of them."""
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What was left behind by processes that have died."""

    crashed: int = 0
    """Runs that were open, and are Crashed."""
    interrupted: int = 0
    """Outermost flow runs that wait to be resumed."""
    requeued: int = 0
    """Runs of deployments that had been claimed and had not begun: they wait to be started again."""
    transactions: tuple[TransactionRow, ...] = ()
    """Transactions that were open: their hooks were not run."""
