"""Stopping runs and running them again, from wherever one knows their id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from asyncflow._backend.detect import host_here
from asyncflow._cancellation import cancel, outermost_of
from asyncflow._causes import Cause
from asyncflow._engine.declared import Declared
from asyncflow._outcomes import wait_settled
from asyncflow._rows import FLOW
from asyncflow._rules import INTERRUPTED
from asyncflow._run import Run
from asyncflow.client import Client
from asyncflow.context import current_run
from asyncflow.exceptions import CannotCancelNestedRunError, RunElsewhereError
from asyncflow.ids import parse_id
from asyncflow.runtime import HOME
from asyncflow.states import State

__all__ = ["cancel_flow_run", "resume_flow_run"]


async def cancel_flow_run(
    flow_run_id: UUID | str, *, reason: str | None = None, client: Client | None = None
) -> State[Any]:
    """Cancel a flow run and everything below it, at once, from any task or thread; gives its final state.

    It returns when every `finally` block of the run is done and every record made, at the latest
    when the grace time is over; cancelling such a wait takes nothing back. Inside of the run itself
    it returns at once, and the cancellation comes at the next checkpoint. A run that has ended
    keeps its state, and an interrupted one, which nobody runs, is Cancelled instead of being resumed.

    Raises `CannotCancelNestedRunError` for a run that is a part of another one,
    `RunElsewhereError` for one of another process, `RunNotFoundError` for an unknown id.
    """
    found = _find(flow_run_id)
    if found is None:
        return await _cancel_recorded(flow_run_id, reason, client or Client())
    if found.parent is not None:
        raise CannotCancelNestedRunError(flow_run_id, UUID(bytes=outermost_of(found).id))
    caller = current_run.get()
    cancel(found, Cause(_message(reason, caller)))
    if caller is None or outermost_of(caller) is not found:
        await wait_settled(found, host_here(found.services.clock), caller)
    return found.state()


async def resume_flow_run(
    flow_run_id: UUID | str,
    *,
    flow: Declared | None = None,
    parameters: Mapping[str, Any] | None = None,
    return_state: bool = False,
    client: Client | None = None,
) -> Any:
    """Run a flow run again that did not complete, under its own id and with its own parameters; gives its value.

    Tasks and nested flows whose values are recorded return them without running; the others run, as
    further attempts. What was recorded is found by task and inputs, so the code may have been edited
    meanwhile: what changed runs, what did not is reused.

    Args:
        flow_run_id: An outermost flow run that is Failed, Cancelled, Crashed or interrupted. One whose
            process died counts as Crashed, also before anybody has noticed.
        flow: The flow to run it with; without it, the one of this name that the process has declared.
        parameters: Values by name in place of recorded ones: for what could not be recorded as JSON.
        return_state: Give the final `State`, whatever the run did, and raise nothing of it.
        client: Of the runtime whose run it is; without it, of the runtime in force.

    Raises `CannotResumeError`, which says why and what to do, `ParameterValidationError` when the
    parameters do not fit, and `RunNotFoundError`.
    """
    client = client or Client()
    return await client.resume_flow_run(flow_run_id, flow=flow, parameters=parameters, return_state=return_state)


async def _cancel_recorded(flow_run_id: UUID | str, reason: str | None, client: Client) -> State[Any]:
    """Cancel a run that does not go on in this process, where that can be done."""
    run = await client.read_flow_run(flow_run_id)
    if run.state.is_final():
        return run.state
    if run.state.name != INTERRUPTED:
        raise RunElsewhereError(flow_run_id, run.state)
    return await client.call_off_flow_run(flow_run_id, _message(reason, current_run.get()))


def _find(flow_run_id: UUID | str) -> Run | None:
    """The live run with this id, in whichever runtime of this process: its thread may know of none."""
    try:
        wanted = parse_id(flow_run_id)
    except (ValueError, AttributeError, TypeError):
        return None  # the client says so
    pending: list[Run] = [run for services in HOME.every_open() for run in services.live()]
    while pending:
        run = pending.pop()
        if run.id == wanted and run.kind == FLOW:
            return run
        pending.extend(list(run.children or ()))
    return None


def _message(reason: str | None, caller: Run | None) -> str:
    who = "" if caller is None else f" by {caller.spec.kind.value} run {caller.display_name!r}"
    return f"cancelled{who} through cancel_flow_run{'' if reason is None else f': {reason}'}"
