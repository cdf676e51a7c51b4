"""What a client can have runs do: be cancelled, pause, be suspended, go on; in whichever process they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._cancellation import outermost_of
from asyncflow._control.orders import CANCEL, PAUSE, RESUME, SUSPEND, carry_out, find_flow_run, refuse_part
from asyncflow._control.pause_answers import answer_suspended
from asyncflow._control.requests import ask_owner, is_owned, rests
from asyncflow._deployment_rows import NOBODY
from asyncflow._engine.declared import Declared
from asyncflow._engine.resuming import call_off, outermost_row, run_again, take_over
from asyncflow._given import not_recorded
from asyncflow._outcomes import wait_settled
from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES, RunRow, state_of
from asyncflow._rules import SUSPENDED
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._specs import Colour
from asyncflow._upkeep import microseconds_now
from asyncflow.context import current_run
from asyncflow.exceptions import (
    CannotPauseError,
    CannotResumeError,
    InputTooLargeError,
    MissingParametersError,
    NotJSONError,
    RunElsewhereError,
    RunNotFoundError,
)
from asyncflow.ids import parse_id
from asyncflow.runtime import HOME
from asyncflow.serializers import encode
from asyncflow.settings import Settings
from asyncflow.states import State, StateType

__all__ = ["RunControl", "input_text", "live_flow_run", "recorded_flow_run"]

_COMPLETED = STATE_CODES[StateType.COMPLETED]
_SEND_PLAIN = "Send plain data, a dataclass or a pydantic model, with no secret in it: it is stored as it is"
_NEED_LOOP = (Colour.ASYNC, Colour.ASYNC_GENERATOR)


class RunControl:
    """The part of `Client` that changes what becomes of runs."""

    async def services(self) -> Services:
        """For the engine: what the runs of the runtime share."""
        raise NotImplementedError

    async def cancel_flow_run(self, flow_run_id: UUID | str, *, reason: str | None = None) -> State[Any]:
        """Cancel a flow run and everything below it; gives its final state. See `asyncflow.cancel_flow_run`."""
        caller = current_run.get()
        message = _message("cancelled", "cancel_flow_run", reason, caller)
        found = live_flow_run(flow_run_id)
        if found is None:
            return await _cancel_recorded(await self.services(), flow_run_id, message, caller)
        carry_out(found, CANCEL, {"message": message})
        await _wait_unless_inside(found, caller)
        return found.state()

    async def pause_flow_run(self, flow_run_id: UUID | str) -> None:
        """Let no more tasks and nested flows of a run begin until it is resumed. See `asyncflow.pause_flow_run`."""
        await self._order(flow_run_id, PAUSE, "paused")

    async def suspend_flow_run(self, flow_run_id: UUID | str) -> None:
        """End a run's part in its process until it is resumed. See `asyncflow.suspend_flow_run`."""
        await self._order(flow_run_id, SUSPEND, "suspended")

    async def resume_flow_run(
        self,
        flow_run_id: UUID | str,
        *,
        run_input: Any = None,
        key: str | None = None,
        flow: Declared | None = None,
        parameters: Mapping[str, Any] | None = None,
        return_state: bool = False,
    ) -> Any:
        """Have a run go on, or run it again; see `asyncflow.resume_flow_run`."""
        found = live_flow_run(flow_run_id)
        if found is not None:
            services = found.services
            data = {"key": key, "input": input_text(run_input, key, services.settings)}
            await services.ask(host_here(services.clock), partial(carry_out, found, RESUME, data))
            return found.state() if return_state else None
        services = await self.services()
        host = host_here(services.clock)
        text = input_text(run_input, key, services.settings)
        # What is no flow run is refused like a part of another run.
        while is_owned(row := await _recorded_run(services, host, flow_run_id)) and row.kind == FLOW:
            if await ask_owner(services, host, row, RESUME, {"key": key, "input": text}, current_run.get()):
                row = await recorded_flow_run(services, host, flow_run_id)
                return state_of(row) if return_state else None
        again = _Again(services, host, row, flow, parameters or {})
        return await again.go_on(text, return_state=return_state)

    async def _order(self, flow_run_id: UUID | str, order: str, word: str) -> None:
        caller = current_run.get()
        data = {"message": _message(word, f"{order}_flow_run", None, caller)}
        found = live_flow_run(flow_run_id)
        if found is None:
            await _order_recorded(await self.services(), flow_run_id, order, data, caller)
            return
        carry_out(found, order, data)
        if order == SUSPEND:
            await _wait_unless_inside(found, caller)


# --- of runs that do not go on in this process -----------------------------------------------


async def _cancel_recorded(services: Services, flow_run_id: UUID | str, message: str, caller: Run | None) -> State[Any]:
    host, asked = host_here(services.clock), None
    while (row := await recorded_flow_run(services, host, flow_run_id)).state < FIRST_FINAL:
        if row.parent_id is not None:
            raise await _refuse_part(services, host, row, CANCEL)
        if not is_owned(row):
            await services.ask(host, partial(_cancel_unowned, services, row, message))
        elif asked is not None and (asked.seq, asked.owner) == (row.seq, row.owner):
            raise RunElsewhereError(flow_run_id, state_of(row), "the process that it is recorded for does not know it")
        else:
            asked = row
            await ask_owner(services, host, row, CANCEL, {"message": message}, caller)
    return state_of(row)


def _cancel_unowned(services: Services, row: RunRow, message: str) -> None:
    """Make a run Cancelled that nobody runs, unless somebody has just begun to. Blocks."""
    if row.owner == NOBODY:
        services.store.cancel_waiting(row.id, row.seq, microseconds_now(services), message)
        return
    with suppress(CannotResumeError):  # whoever has taken it is asked next
        call_off(services, row.id, message)


async def _order_recorded(
    services: Services, flow_run_id: UUID | str, order: str, data: Mapping[str, Any], caller: Run | None
) -> None:
    host = host_here(services.clock)
    row = await recorded_flow_run(services, host, flow_run_id)
    if row.parent_id is not None:
        raise await _refuse_part(services, host, row, order)
    if is_owned(row):
        if await ask_owner(services, host, row, order, data, caller):
            return
        row = await recorded_flow_run(services, host, flow_run_id)
        if order == SUSPEND and rests(row) and row.state_name == SUSPENDED:
            return  # it was done: the run was seen before the answer was
    run_id, state = UUID(bytes=row.id), state_of(row)
    if row.owner == NOBODY and row.state < FIRST_FINAL:
        raise CannotPauseError(run_id, f"it is {state} and has not begun", "Cancel it, or pause its deployment.")
    raise CannotPauseError(run_id, f"it is {state}", "Only a run that goes on can be paused.")


class _Again:
    """A run that nobody runs, and that is to go on."""

    def __init__(
        self, services: Services, host: Host, row: RunRow, flow: Declared | None, parameters: Mapping[str, Any]
    ) -> None:
        self._services = services
        self._host = host
        self._row = row
        self._flow = flow
        self._parameters = parameters

    async def go_on(self, text: str | None, *, return_state: bool) -> Any:
        """Where its deployment is served, or else here; `text` is what its pause gets."""
        row = self._row
        if row.owner == NOBODY and row.state < FIRST_FINAL:
            why, instead = f"it is {state_of(row)} and waits to be started", "Whoever serves its deployment begins it."
            raise CannotResumeError(UUID(bytes=row.id), why, instead)
        is_suspended = rests(row) and row.state_name == SUSPENDED
        if text is not None and not is_suspended and row.state != _COMPLETED:
            instead = "Resume it without run_input; when it comes to a pause, that can be answered."
            raise CannotResumeError(UUID(bytes=row.id), f"it is {state_of(row)}, and waits for no input", instead)
        if rests(row) and row.deployment_id is not None and self._flow is None and not self._parameters:
            taken = await self._services.ask(self._host, partial(self._requeue, text, is_suspended=is_suspended))
            if taken is not None:
                return state_of(taken) if return_state else None
            # Its deployment is gone; or somebody was quicker, which the claim finds out.
        answer = partial(self._answer, text) if is_suspended else None
        claim = await take_over(self._services, row.id, self._flow, self._parameters, answer)
        run = partial(run_again, self._services, claim, return_state)
        if self._host.is_inline and claim.flow.spec.colour in _NEED_LOOP:
            return await self._host.run_async(run)
        return await run()

    def _requeue(self, text: str | None, *, is_suspended: bool) -> RunRow | None:
        if missing := not_recorded(self._row):
            raise MissingParametersError(UUID(bytes=self._row.id), missing)
        if is_suspended:
            self._answer(text, self._row)
        taken = self._services.store.requeue(self._row.id, self._row.seq, microseconds_now(self._services))
        self._services.store.ring()  # here, where listing those to be woken blocks no loop
        return taken

    def _answer(self, text: str | None, row: RunRow) -> None:
        answer_suspended(self._services.store, row, text, microseconds_now(self._services))


def input_text(value: Any, key: str | None, settings: Settings) -> str | None:
    """An input as JSON, no larger than parameters may be; None for none."""
    if value is None:
        return None
    try:
        text = encode(value, where="input")
    except NotJSONError as error:
        raise NotJSONError(error.path, error.problem, _SEND_PLAIN) from None
    size, limit = len(text.encode()), settings.parameters_limit
    if limit and size > limit:
        raise InputTooLargeError(key or "input", size=size, limit=limit)
    return text


# --- finding ---------------------------------------------------------------------------------


def live_flow_run(flow_run_id: UUID | str) -> Run | None:
    """The live run with this id, in whichever runtime of this process: its thread may know of none."""
    wanted = _id(flow_run_id)
    return None if wanted is None else find_flow_run(HOME.every_open(), wanted)


async def recorded_flow_run(services: Services, host: Host, flow_run_id: UUID | str) -> RunRow:
    """The record of a flow run, with all that this process has done. Raises `RunNotFoundError`."""
    row = await _recorded_run(services, host, flow_run_id)
    if row.kind != FLOW:
        raise RunNotFoundError(flow_run_id)
    return row


async def _recorded_run(services: Services, host: Host, flow_run_id: UUID | str) -> RunRow:
    wanted = _id(flow_run_id)
    _, _, held_back = await host.confirm(services.store, services.settings.durability_seconds)
    if held_back is not None:
        raise held_back
    row = None if wanted is None else await services.ask(host, partial(services.store.read_run, wanted))
    if row is None:
        raise RunNotFoundError(flow_run_id)
    return row


def _id(flow_run_id: UUID | str) -> bytes | None:
    try:
        return parse_id(flow_run_id)
    except (ValueError, AttributeError, TypeError):
        return None


async def _refuse_part(services: Services, host: Host, row: RunRow, order: str) -> Exception:
    top = await services.ask(host, partial(outermost_row, services, row))
    return refuse_part(order, UUID(bytes=row.id), UUID(bytes=top.id))


async def _wait_unless_inside(run: Run, caller: Run | None) -> None:
    if caller is None or outermost_of(caller) is not run:
        await wait_settled(run, host_here(run.services.clock), caller)


def _message(what: str, called: str, reason: str | None, caller: Run | None) -> str:
    who = "" if caller is None else f" by {caller.spec.kind.value} run {caller.display_name!r}"
    return f"{what}{who} through {called}{'' if reason is None else f': {reason}'}"
