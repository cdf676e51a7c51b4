"""Stopping runs and having them go on, from wherever one knows their id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from asyncflow._engine.declared import Declared
from asyncflow._operation import Operation
from asyncflow.client import Client
from asyncflow.states import State

__all__ = ["cancel_flow_run", "resume_flow_run"]


def cancel_flow_run(
    flow_run_id: UUID | str, *, reason: str | None = None, client: Client | None = None
) -> Operation[State[Any]]:
    """Cancel a flow run and everything below it, at once, from any task, thread or process; gives its final state.

    `await` it in async code; on a thread without an event loop, `cancel_flow_run(id).result()`.

    It returns when every `finally` block of the run is done and every record made, at the latest
    when the grace time is over; cancelling such a wait takes nothing back. Inside of the run itself
    it returns at once, and the cancellation comes at the next checkpoint. A run that has ended
    keeps its state; one that nobody runs, because it is interrupted, suspended or waits to be
    started, is Cancelled instead of being run. Of a process that has died the run is what that made it.

    Raises `CannotCancelNestedRunError` for a run that is a part of another one, `RunNotFoundError` for
    an unknown id, and `RunElsewhereError` when the run goes on somewhere that cannot be asked.
    """
    return Operation("cancel_flow_run", (client or Client()).cancel_flow_run(flow_run_id, reason=reason))


def resume_flow_run(
    flow_run_id: UUID | str,
    *,
    run_input: Any = None,
    key: str | None = None,
    flow: Declared | None = None,
    parameters: Mapping[str, Any] | None = None,
    return_state: bool = False,
    client: Client | None = None,
) -> Operation[Any]:
    """Have a flow run go on that is paused, or run it again if it did not complete, under its own id.

    `await` it in async code; on a thread without an event loop, `resume_flow_run(id).result()`.

    - A run that is Paused goes on where it is, in whichever process that is. Gives None.
    - One that is suspended or interrupted, and that a deployment made, is started again by whoever serves
      that. Gives None.
    - Any other that did not complete runs again here, with its own parameters. Gives its value.

    Tasks and nested flows whose values are recorded return them without running; the others run, as
    further attempts. What was recorded is found by task and inputs, so the code may have been edited
    meanwhile: what changed runs, what did not is reused.

    Args:
        flow_run_id: A flow run that is Paused; or an outermost one that is Suspended, Interrupted, Failed,
            Cancelled or Crashed. One whose process died counts as Crashed, also before anybody has noticed.
        run_input: What its pause waits for: of that type, or plain data that fits it.
        key: Which of several pauses it is in; without it, the one it has been in the longest.
        flow: The flow to run it with, here; without it, the one of this name that the process has declared.
        parameters: Values by name in place of recorded ones: for what could not be recorded as JSON.
        return_state: Give the final `State`, whatever the run did, and raise nothing of it; of a run that
            goes on elsewhere, the state as it is then.
        client: Of the runtime whose run it is; without it, of the runtime in force.

    Raises `InputValidationError` when the input does not fit (the run is as it was), `CannotResumeError`,
    which says why and what to do, `ParameterValidationError` when the parameters do not fit, and
    `RunNotFoundError`.
    """
    resuming = (client or Client()).resume_flow_run(
        flow_run_id, run_input=run_input, key=key, flow=flow, parameters=parameters, return_state=return_state
    )
    return Operation("resume_flow_run", resuming)
