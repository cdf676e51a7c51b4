"""`asyncflow runs cancel`, `pause` and `suspend`: a run that goes on in another process is told so."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from cyclopts import Parameter

from asyncflow._backend.inline import drive
from asyncflow._rows import RunRow
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.output import complain, one_line, write_data
from asyncflow.cli.words import RunId
from asyncflow.client import get_client
from asyncflow.states import State

__all__ = ["cancel", "named", "pause", "suspend"]


def cancel(
    run_id: RunId,
    /,
    *,
    reason: Annotated[str | None, Parameter(help="What is recorded beside the state.")] = None,
    home: Home = None,
) -> int:
    """Cancel a flow run and all below it, wherever it goes on, and wait until it has cleaned up.

    One that waits to be started, or to be resumed, is Cancelled at once. The exit status is 1 when it ended in
    another way.
    """
    row = row_of(open_recorded(home), run_id)
    state: State[Any] = drive(get_client().cancel_flow_run(run_id, reason=reason))
    if not state.is_cancelled():
        complain(f"{named(row)} is {state.name}: there is nothing to cancel")
        return 1
    _tell(row, state, "")
    return 0


def pause(run_id: RunId, /, *, home: Home = None) -> int:
    """Let nothing more of a flow run begin until asyncflow runs resume. What has begun goes on."""
    services = open_recorded(home)
    row = row_of(services, run_id)
    drive(get_client().pause_flow_run(run_id))
    write_data(f"{named(row)} is Paused; asyncflow runs resume {UUID(bytes=row.id)}\n")
    return 0


def suspend(run_id: RunId, /, *, home: Home = None) -> int:
    """End what goes on of a flow run, so that it needs no process until asyncflow runs resume.

    What it has completed is recorded, and is not run again then.
    """
    services = open_recorded(home)
    row = row_of(services, run_id)
    drive(get_client().suspend_flow_run(run_id))
    write_data(f"{named(row)} is Suspended; asyncflow runs resume {UUID(bytes=row.id)}\n")
    return 0


def _tell(row: RunRow, state: State[Any], rest: str) -> None:
    message = f": {one_line(state.message, 1000)}" if state.message else ""
    write_data(f"{named(row)} is {state.name}{message}{rest}\n")


def named(row: RunRow) -> str:
    """A run as it is called in a sentence."""
    return f"flow run {one_line(row.name or row.function)} of {one_line(row.function)}"
