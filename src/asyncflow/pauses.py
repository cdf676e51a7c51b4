"""Pausing flow runs: until somebody resumes them, with an input of a given type or without one."""

from __future__ import annotations

from typing import Any, TypeVar, overload
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._control.questions import Question, flow_run_around, made_model
from asyncflow._operation import Operation
from asyncflow._outcomes import time_to_wait
from asyncflow._rows import storable
from asyncflow.client import Client
from asyncflow.context import current_run
from asyncflow.exceptions import NoFlowRunError, OptionError
from asyncflow.retries import Seconds

__all__ = ["pause_flow_run", "suspend_flow_run"]

T = TypeVar("T")
_HOUR = 3600


@overload
def pause_flow_run(
    *, wait_for_input: type[T], timeout: Seconds | None = _HOUR, key: str | None = None
) -> Operation[T]: ...
@overload
def pause_flow_run(
    *, wait_for_input: None = None, timeout: Seconds | None = _HOUR, key: str | None = None
) -> Operation[None]: ...
@overload
def pause_flow_run(
    *, wait_for_input: Any, timeout: Seconds | None = _HOUR, key: str | None = None
) -> Operation[Any]: ...
@overload
def pause_flow_run(flow_run_id: UUID | str, *, client: Client | None = None) -> Operation[None]: ...
def pause_flow_run(
    flow_run_id: UUID | str | None = None,
    *,
    wait_for_input: Any = None,
    timeout: Seconds | None = _HOUR,
    key: str | None = None,
    client: Client | None = None,
) -> Operation[Any]:
    """Pause a flow run until `resume_flow_run(id)`: the one around, or another one by its id.

    `await` it in async code; in a sync body, `pause_flow_run(...).result()`.

    In the body of a flow, or of a task in it, and without an id: that body waits here, whatever else goes
    on in the run does so, and the nearest flow run around is Paused. Gives the input, once the run is
    resumed with one that fits.

    With an id, from any task, thread or process: no more tasks and nested flows of that run begin, and
    it is Paused; what has begun goes on. It lasts until the run is resumed.

    A paused run stays in its process. When that ends it can be resumed as any other, and comes to the same
    pause; one that was answered before is answered at once, with the same. See also `suspend_flow_run`.

    Args:
        flow_run_id: An outermost flow run, to pause it from outside.
        wait_for_input: The type of the input that the body waits for: a pydantic model, a dataclass,
            `int`, `list[int]`, ...; None for no input.
        timeout: Seconds that the body waits; None for no limit.
        key: What this pause is called, for whoever resumes the run when several bodies of it pause at
            a time. Without one it is "1" for the first of a body, and so on.
        client: Of the runtime whose run it is that has the id.

    Raises `PauseTimeoutError` in a body that nobody resumed in time, which it may handle; `NoFlowRunError`
    outside of any flow run; and with an id `CannotPauseError`, `RunElsewhereError` or `RunNotFoundError`.
    """
    if flow_run_id is not None:
        _refuse_input(wait_for_input, key)
        return Operation("pause_flow_run", (client or Client()).pause_flow_run(flow_run_id))
    seconds = time_to_wait(timeout)
    return Operation("pause_flow_run", _pause_here(wait_for_input, seconds, _checked_key(key)))


@overload
def suspend_flow_run(
    *, wait_for_input: type[T], timeout: Seconds | None = None, key: str | None = None
) -> Operation[T]: ...
@overload
def suspend_flow_run(
    *, wait_for_input: None = None, timeout: Seconds | None = None, key: str | None = None
) -> Operation[None]: ...
@overload
def suspend_flow_run(
    *, wait_for_input: Any, timeout: Seconds | None = None, key: str | None = None
) -> Operation[Any]: ...
@overload
def suspend_flow_run(flow_run_id: UUID | str, *, client: Client | None = None) -> Operation[None]: ...
def suspend_flow_run(
    flow_run_id: UUID | str | None = None,
    *,
    wait_for_input: Any = None,
    timeout: Seconds | None = None,
    key: str | None = None,
    client: Client | None = None,
) -> Operation[Any]:
    """End a flow run's part in its process, until `resume_flow_run(id)` has it run again, in any process.

    `await` it in async code; in a sync body, `suspend_flow_run(...).result()`.

    In the body of a flow, or of a task in it, and without an id: the *outermost* flow run and everything
    below it is stopped, as by a cancellation, and is Paused, named Suspended. It takes no memory and no
    process, so it may wait for weeks. Resumed, the flow begins at its start: tasks that had completed
    return what they returned, and the call of `suspend_flow_run` that it was suspended in gives the input.
    An input that does not fit suspends it again, with a message that says why.

    With an id the same is done with that run, from any task, thread or process.

    Args:
        flow_run_id: An outermost flow run, to suspend it from outside.
        wait_for_input: The type of the input: as for `pause_flow_run`.
        timeout: Seconds in which it takes an input; None for no limit. Resumed after that,
            the call raises `PauseTimeoutError`.
        key: As for `pause_flow_run`.
        client: Of the runtime whose run it is that has the id.

    Whoever awaits the run gets `RunSuspendedError`. Raises as `pause_flow_run` does.
    """
    if flow_run_id is not None:
        _refuse_input(wait_for_input, key)
        return Operation("suspend_flow_run", (client or Client()).suspend_flow_run(flow_run_id))
    seconds = time_to_wait(timeout)
    return Operation("suspend_flow_run", _suspend_here(wait_for_input, seconds, _checked_key(key)))


async def _pause_here(type_: Any, seconds: float | None, key: str | None) -> Any:
    question, host = await _question("pause_flow_run", type_, seconds, key)
    return await question.wait_here(host)


async def _suspend_here(type_: Any, seconds: float | None, key: str | None) -> Any:
    question, host = await _question("suspend_flow_run", type_, seconds, key)
    return await question.suspend(host)


async def _question(called: str, type_: Any, seconds: float | None, key: str | None) -> tuple[Question, Host]:
    caller = current_run.get()
    flow_run = flow_run_around(caller)
    if caller is None or flow_run is None:
        raise NoFlowRunError(f"{called}()", "Call it in a flow, or give it the id of the flow run that is meant.")
    host, model = host_here(caller.services.clock), None
    if type_ is not None:
        model = await made_model("wait_for_input", type_, host)
    return Question(caller, flow_run, key, model, seconds), host


def _checked_key(key: Any) -> str | None:
    if key is not None and (not isinstance(key, str) or not key):
        raise OptionError("key", key, "a text that is not empty, or None")
    return None if key is None else str(storable(key))


def _refuse_input(type_: Any, key: Any) -> None:
    """A run that is paused from outside waits for no input: its body is not asked."""
    for option, value in (("wait_for_input", type_), ("key", key)):
        if value is not None:
            raise OptionError(option, value, "None beside a flow_run_id: only the run's own body can wait for an input")
