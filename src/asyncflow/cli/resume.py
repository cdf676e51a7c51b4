"""`asyncflow runs resume`: a paused run goes on where it is; any other runs again here, watched as it does."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any, cast

from cyclopts import Parameter

from asyncflow._backend.inline import drive
from asyncflow._deployment_rows import NOBODY
from asyncflow._deployments.waiting_runs import full_name
from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES, RunRow
from asyncflow._rules import RESTING
from asyncflow._services import Services
from asyncflow._specs import Colour
from asyncflow.cli.control import named
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.load import load_flow, spec_of
from asyncflow.cli.output import UsageError, complain, only_data_on_stdout
from asyncflow.cli.watched import Backend, Look, Loop, call_watched
from asyncflow.cli.words import RunId
from asyncflow.client import get_client
from asyncflow.control import resume_flow_run
from asyncflow.exceptions import CannotResumeError
from asyncflow.flows import Flow
from asyncflow.states import State, StateType

__all__ = ["resume"]

_PAUSED = STATE_CODES[StateType.PAUSED]
_COMPLETED = STATE_CODES[StateType.COMPLETED]
_NOT_RESUMED = frozenset({*range(FIRST_FINAL), _COMPLETED} - {_PAUSED})
"""Completed, or going on. (What a dead process had left open has ended, or rests, since this one opened the home.)"""


def resume(
    run_id: RunId,
    /,
    *,
    code: Annotated[
        str | None,
        Parameter(help="The flow, path/to/file.py:flow or package.module:flow; else where it was when it ran."),
    ] = None,
    parameters: Annotated[
        str | None, Parameter(help="A JSON object of parameters in place of recorded ones.", allow_leading_hyphen=True)
    ] = None,
    input_: Annotated[
        str | None,
        Parameter(name="--input", help="What it waits for: JSON, else text.", allow_leading_hyphen=True),
    ] = None,
    key: Annotated[str | None, Parameter(help="Which of its pauses is meant, where it is in several.")] = None,
    backend: Annotated[Backend, Parameter(help="The event loop that an async flow runs in.")] = "asyncio",
    plain: Annotated[bool, Parameter(help="Plain lines, also on a terminal.", negative="")] = False,
    traceback: Annotated[bool, Parameter(help="Show the whole traceback of a failure.", negative="")] = False,
    home: Home = None,
) -> int:
    """Let a paused flow run go on, in its process; or run one again here that has not completed.

    One that is Suspended or Interrupted goes on with whoever serves its deployment, unless --code says with what.
    Any other keeps its id, and what it completed is not run again; what is shown, the output and the exit
    status are those of asyncflow run.
    """
    given, answer = _parameters(parameters), _input(input_)
    with only_data_on_stdout() as write:
        services = open_recorded(home, upkeep=True)
        row = row_of(services, run_id)
        if not given and code is None and _goes_on_elsewhere(services, row):
            state = drive(get_client().resume_flow_run(run_id, run_input=answer, key=key, return_state=True))
            write(f"{named(row)} {_told(services, row, state)}\n")
            return 0
        if row.kind != FLOW or row.parent_id is not None or row.state in _NOT_RESUMED:
            if row.owner == NOBODY and row.state < FIRST_FINAL:
                raise CannotResumeError(run_id, "it has not begun", "Whoever serves its deployment begins it.")
            drive(get_client().resume_flow_run(run_id))  # says why not: no code is needed for that
        flow = _flow(row, code)
        look = Look(backend=backend, plain=plain, traceback=traceback)
        return call_watched(flow, partial(_again, run_id, given, answer, key), look, write)


def _goes_on_elsewhere(services: Services, row: RunRow) -> bool:
    """Whether it is Paused in a process that lives, or waits for one that serves its deployment."""
    if row.state != _PAUSED:
        return False
    if row.state_name not in RESTING:
        return True
    return row.deployment_id is not None and bool(services.store.read_deployments(ids=[row.deployment_id]))


def _told(services: Services, row: RunRow, state: State[Any]) -> str:
    if not state.is_scheduled():
        return "goes on"
    assert row.deployment_id is not None  # only such a run waits for somebody
    [deployment] = services.store.read_deployments(ids=[row.deployment_id])
    return f"waits for a process that serves {full_name(deployment)}"


def _input(text: str | None) -> Any:
    """The value that was meant: what looks like an object or a list must be one."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        if text and text.lstrip()[:1] in ("{", "["):
            raise UsageError(f"--input: it is not JSON: {error}") from error
        return text


def _again(
    run_id: str, parameters: dict[str, Any], answer: Any, key: str | None, flow: Flow[..., Any], run_in_loop: Loop
) -> Any:
    again = partial(resume_flow_run, run_id, flow=flow, parameters=parameters, run_input=answer, key=key)
    # A sync flow runs right here, as with `asyncflow run`.
    return drive(again()) if spec_of(flow).colour in (Colour.SYNC, Colour.SYNC_GENERATOR) else run_in_loop(again)


def _flow(row: RunRow, code: str | None) -> Flow[..., Any]:
    if code is not None:
        return load_flow(code)
    recorded: str | None = json.loads(row.details or "{}").get("entrypoint")
    if recorded is None:
        raise UsageError(
            f"the record does not say where the flow {row.function!r} is: name it with --code path/to/file.py:flow"
        )
    complain(f"resuming with {recorded}")
    return load_flow(recorded)


def _parameters(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--parameters: it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError('--parameters: it must be a JSON object: {"name": value, ...}')
    return cast("dict[str, Any]", found)
