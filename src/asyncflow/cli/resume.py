"""`asyncflow runs resume`: a recorded flow run runs again, watched like `asyncflow run`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any, cast

from cyclopts import Parameter

from asyncflow._backend.inline import drive
from asyncflow._rows import FLOW, STATE_CODES, RunRow
from asyncflow._specs import Colour
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.load import load_flow, spec_of
from asyncflow.cli.output import UsageError, complain, only_data_on_stdout
from asyncflow.cli.watched import Backend, Look, Loop, call_watched
from asyncflow.cli.words import RunId
from asyncflow.control import resume_flow_run
from asyncflow.flows import Flow
from asyncflow.states import StateType

__all__ = ["resume"]

_COMPLETED = STATE_CODES[StateType.COMPLETED]


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
    backend: Annotated[Backend, Parameter(help="The event loop that an async flow runs in.")] = "asyncio",
    plain: Annotated[bool, Parameter(help="Plain lines, also on a terminal.", negative="")] = False,
    traceback: Annotated[bool, Parameter(help="Show the whole traceback of a failure.", negative="")] = False,
    home: Home = None,
) -> int:
    """Run a flow run again that failed, was cancelled or whose process died: what it completed is not run again.

    It keeps its id. What is shown, the output and the exit status are those of asyncflow run.
    """
    given = _parameters(parameters)
    with only_data_on_stdout() as write:
        row = row_of(open_recorded(home, upkeep=True), run_id)
        if row.kind != FLOW or row.parent_id is not None or row.state == _COMPLETED:
            drive(resume_flow_run(run_id))  # says why not: no code is needed for that
        flow = _flow(row, code)
        look = Look(backend=backend, plain=plain, traceback=traceback)
        return call_watched(flow, partial(_again, run_id, given), look, write)


def _again(run_id: str, parameters: dict[str, Any], flow: Flow[..., Any], run_in_loop: Loop) -> Any:
    again = partial(resume_flow_run, run_id, flow=flow, parameters=parameters)
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
