"""Inputs: values that are sent to a flow run while it goes on, from anywhere, and received by its bodies in order.

What was sent is kept as long as its run. Nothing is consumed: a body that is run again, because its
process died or it was suspended, receives again what it received, in the same order. So that a task that
has completed, and is not run again, keeps what it received, that is put on record as well.
"""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import Any, TypeVar, overload
from uuid import UUID

import orjson

from asyncflow._alarm import Alarm
from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._control.questions import flow_run_around, made_model
from asyncflow._control.run_control import input_text, live_flow_run, recorded_flow_run
from asyncflow._deployment_rows import InputRow
from asyncflow._deployments.run_ends import LOOK_SECONDS, listening
from asyncflow._operation import Operation
from asyncflow._outcomes import blocked, time_to_wait
from asyncflow._recorded import ENDING
from asyncflow._rows import STATE_CODES, storable
from asyncflow._run import Run
from asyncflow._services import Services
from asyncflow._upkeep import microseconds_now
from asyncflow.client import Client
from asyncflow.context import current_run
from asyncflow.exceptions import (
    CannotSendInputError,
    InputTimeoutError,
    InputValidationError,
    NoFlowRunError,
    OptionError,
)
from asyncflow.retries import Seconds
from asyncflow.states import StateType

__all__ = ["receive_input", "send_input"]

T = TypeVar("T")
_HOUR = 3600
_COMPLETED = STATE_CODES[StateType.COMPLETED]
_PAGE = 100


def send_input(
    value: Any, flow_run_id: UUID | str, *, key: str = "default", client: Client | None = None
) -> Operation[None]:
    """Send a value to a flow run, from any task, thread or process: `receive_input` in its body gives it.

    `await` it in async code; on a thread without an event loop, `send_input(...).result()`. When it returns,
    the value is on disk. It waits there until it is received, also while the run is paused,
    suspended or has not begun. The values of one `key` are received in the order in which they were sent.

    Args:
        value: Anything that can be written as JSON, no larger than the parameters of a flow may be.
        flow_run_id: The flow run, outermost or nested.
        key: What kind of input it is.
        client: Of the runtime whose run it is; without it, of the runtime in force.

    Raises `NotJSONError` and `InputTooLargeError` for the value, `CannotSendInputError` for a run that has
    completed, and `RunNotFoundError`.
    """
    return Operation("send_input", _send(value, flow_run_id, _checked_key(key), client))


@overload
def receive_input(type_: type[T], *, key: str = "default", timeout: Seconds | None = _HOUR) -> Operation[T]: ...
@overload
def receive_input(type_: Any, *, key: str = "default", timeout: Seconds | None = _HOUR) -> Operation[Any]: ...
def receive_input(type_: Any, *, key: str = "default", timeout: Seconds | None = _HOUR) -> Operation[Any]:
    """Wait for the next value that `send_input` sends to the flow run around, and give it.

    `await` it in async code; in a sync body, `receive_input(...).result()`. For the bodies of flows and of
    their tasks. Each value is received once; of several bodies that wait, one gets it.

    Args:
        type_: The type that the value is to have, as for `pause_flow_run`: `Order`, `int`, `list[int]`.
        key: What kind of input.
        timeout: Seconds to wait; None for no limit.

    Raises `InputValidationError` for a value that does not fit, which is received by that,
    `InputTimeoutError` (a `TimeoutError`) when there was none in time, and `NoFlowRunError`.
    """
    return Operation("receive_input", _receive(type_, _checked_key(key), time_to_wait(timeout)))


def _checked_key(key: Any) -> str:
    if not isinstance(key, str) or not key:
        raise OptionError("key", key, "a text that is not empty")
    return str(storable(key))


# --- sending ---------------------------------------------------------------------------------


async def _send(value: Any, flow_run_id: UUID | str, key: str, client: Client | None) -> None:
    found, sender = live_flow_run(flow_run_id), flow_run_around(current_run.get())
    services = await (client or Client()).services() if found is None else found.services
    host = host_here(services.clock)
    text = "null" if value is None else input_text(value, key, services.settings)
    assert text is not None
    if found is None:
        row = await recorded_flow_run(services, host, flow_run_id)
        if row.state == _COMPLETED:
            raise CannotSendInputError(flow_run_id, "it has completed")
        run_id, owner = row.id, row.owner
    else:
        run_id, owner = found.id, services.store.owner
    from_run = None if sender is None else sender.id
    now = microseconds_now(services)
    await services.ask(host, partial(services.store.add_input, run_id, _sent(key), text, from_run, now))
    services.store.ring([owner])


# --- receiving -------------------------------------------------------------------------------


async def _receive(type_: Any, key: str, seconds: float | None) -> Any:
    caller = current_run.get()
    flow_run = flow_run_around(caller)
    if caller is None or flow_run is None:
        raise NoFlowRunError("receive_input(...)", "Call it in a flow: there it is known whose input is meant.")
    host = host_here(caller.services.clock)
    model = await made_model("type_", type_, host)
    with ENDING:  # two bodies may be the first
        boxes: dict[str, Any] = caller.services.received.setdefault(flow_run, {})
        box: _Box = boxes.setdefault(_sent(key), _Box(caller.services, flow_run.id, key))
    row = await _next(box, host, caller, seconds)
    if row is None:
        raise InputTimeoutError(flow_run.display_name, key, seconds or 0.0)
    value, problems = model.read(row.data)
    if problems:
        raise InputValidationError(UUID(bytes=flow_run.id), key, problems)
    return value


async def _next(box: _Box, host: Host, caller: Run, seconds: float | None) -> InputRow | None:
    services, alarm = caller.services, Alarm()
    monotonic = services.clock.monotonic
    until = None if seconds is None else monotonic() + seconds
    stop = listening(services, alarm.wake)
    try:
        while True:
            signal = alarm.renew(host)
            row = await services.ask(host, partial(box.take, caller))
            left = None if until is None else until - monotonic()
            if row is not None or (left is not None and left <= 0):
                return row
            look = None if services.store.is_instant else LOOK_SECONDS
            await blocked(host, caller, signal, left if look is None else min(look, left or look))
    finally:
        stop()


def _sent(key: str) -> str:
    """The key of the rows of what was sent."""
    return f"input:{key}"


def _received(key: str) -> str:
    """The key of the rows that tell which of them tasks received."""
    return f"received:{key}"


class _Box:
    """The inputs of one key of a live flow run, and who received which."""

    def __init__(self, services: Services, flow_run_id: bytes, key: str) -> None:
        self._store = services.store
        self._services = services
        self._flow_run_id = flow_run_id
        self._key = key
        self._lock = Lock()
        self._given: dict[bytes, list[int]] | None = None
        """The places that each run received, in order: what its body receives when it is run again."""
        self._next: dict[tuple[bytes, int], int] = {}
        """How many of those each attempt of a body has received."""
        self._free = -1
        """All places up to this one are somebody's."""

    def take(self, caller: Run) -> InputRow | None:
        """What a body is to receive next; None when nothing is there yet. Blocks."""
        with self._lock:
            if self._given is None:
                self._given = self._recorded()
            mine = self._given.setdefault(caller.id, [])
            attempt = (caller.id, caller.run_count)
            count = self._next.get(attempt, 0)
            row = self._read(mine[count] - 1, 1)[0] if count < len(mine) else self._first_free(caller, mine)
            if row is not None:
                self._next[attempt] = count + 1
            return row

    def _first_free(self, caller: Run, mine: list[int]) -> InputRow | None:
        assert self._given is not None
        taken = {place for places in self._given.values() for place in places if place > self._free}
        after = self._free
        while rows := self._read(after, _PAGE):
            for row in rows:
                if row.n not in taken:
                    if caller.id != self._flow_run_id:
                        self._record(caller, row)
                    mine.append(row.n)
                    return row
                if row.n == self._free + 1:
                    self._free = row.n
            after = rows[-1].n
        return None

    def _read(self, after: int, limit: int) -> list[InputRow]:
        return self._store.read_inputs(self._flow_run_id, _sent(self._key), after, limit)

    def _record(self, caller: Run, row: InputRow) -> None:
        told = orjson.dumps({"by": caller.id.hex(), "place": row.n}).decode()
        now = microseconds_now(self._services)
        self._store.add_input(self._flow_run_id, _received(self._key), told, caller.id, now)

    def _recorded(self) -> dict[bytes, list[int]]:
        """What tasks received in earlier lives. The flow's own body receives the others, as it did then."""
        given: dict[bytes, list[int]] = {}
        after = -1
        while rows := self._store.read_inputs(self._flow_run_id, _received(self._key), after, _PAGE):
            for row in rows:
                told: dict[str, Any] = orjson.loads(row.data)
                given.setdefault(bytes.fromhex(told["by"]), []).append(told["place"])
            after = rows[-1].n
        return given
