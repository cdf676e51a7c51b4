"""Asking the process that runs a run to do something with it, and doing what others ask for.

A request is a row of the store and a ring at the bell of the one who is asked. Its upkeep's thread does it,
writes what came of it, and rings back. Whoever asked may be gone by then: what was asked for is done all the
same. A bell may be lost: both sides look by themselves every second, and the one who asks also whether the
other one lives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from asyncflow._alarm import Alarm
from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here
from asyncflow._backend.inline import drive
from asyncflow._control.orders import CANCEL, SUSPEND, carry_out, error_of, find_flow_run, told
from asyncflow._deployment_rows import NOBODY, RequestRow
from asyncflow._deployments.run_ends import LOOK_SECONDS
from asyncflow._outcomes import blocked
from asyncflow._rows import FIRST_FINAL, RunRow, state_of
from asyncflow._rules import RESTING
from asyncflow._run import Run, Waiter
from asyncflow._services import Services
from asyncflow.error_records import error_summary
from asyncflow.exceptions import RunElsewhereError
from asyncflow.states import StateType

__all__ = ["Requests", "ask_owner", "is_owned", "rests"]

_ENDING = frozenset({CANCEL, SUSPEND})
"""Orders that are done when the run has ended its part here."""
_FORGOTTEN = 60.0
"""Seconds after which nobody reads an answer any more."""
_CONFIRM_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
"""How long to wait for the answer of a process whose run has ended meanwhile. It comes at once, if it lives."""
_MICRO = 1_000_000


def rests(row: RunRow) -> bool:
    """Whether nobody runs a run, and it can be resumed: it is Interrupted or Suspended."""
    return row.state_name in RESTING and state_of(row).type is StateType.PAUSED


def is_owned(row: RunRow) -> bool:
    """Whether a run has begun and goes on in some process, as far as is known."""
    return row.state < FIRST_FINAL and row.owner != NOBODY and not rests(row)


# --- being asked -----------------------------------------------------------------------------


class Requests:
    """What others ask of the runs of one runtime. Used by its upkeep's thread."""

    def __init__(self, services: Services, wake: Callable[[], object]) -> None:
        self._services = services
        self._wake = wake
        self._ending: dict[int, tuple[RequestRow, Run]] = {}
        """Those that are begun, until the run has ended."""
        self._answered: dict[int, float] = {}
        """When: whoever asked forgets the request, but may be gone."""

    def serve(self) -> bool:
        """Begin what is asked for, and answer what is done. Blocks; one question to the store where nobody asks."""
        for request in self._services.store.read_requests():
            if request.id not in self._ending:
                self._do(request)
        if ended := [request for request, run in self._ending.values() if run.is_settled]:
            # Who asked looks at the record next, and one that was given up as deaf is not in it yet.
            drive(host_here(self._services.clock).confirm(self._services.store, _CONFIRM_SECONDS))
            for request in ended:
                self._answer(request, {"ok": True})
        self._forget_old()
        return False

    def _do(self, request: RequestRow) -> None:
        run = find_flow_run([self._services], request.run_id)
        if run is None:
            row = self._services.store.read_run(request.run_id)
            if row is None or row.owner != self._services.store.owner or not is_owned(row):
                self._answer(request, {"gone": True})
            return  # else it was claimed a moment ago, and begins
        data: Mapping[str, Any] = orjson.loads(request.data or "{}")
        try:
            carry_out(run, request.kind, data)
        except Exception as error:  # noqa: BLE001  # whoever asked is to know, and it is no fault of this process
            self._answer(request, {"error": told(error), "message": error_summary(error)})
            return
        if request.kind in _ENDING:
            self._ending[request.id] = (request, run)
            run.attend(Waiter(self._wake))
        else:
            self._answer(request, {"ok": True})

    def _answer(self, request: RequestRow, answer: dict[str, Any]) -> None:
        store = self._services.store
        store.answer(request.id, orjson.dumps(answer).decode())
        self._ending.pop(request.id, None)
        self._answered[request.id] = self._services.clock.monotonic()
        store.ring([request.asker])

    def _forget_old(self) -> None:
        before = self._services.clock.monotonic() - _FORGOTTEN
        for request_id in [each for each, at in self._answered.items() if at < before]:
            self._services.store.forget(request_id)
            del self._answered[request_id]


# --- asking ----------------------------------------------------------------------------------


class _Look(NamedTuple):
    """What the store tells of a request, and of the run."""

    answer: str | None
    row: RunRow | None


async def ask_owner(
    services: Services, host: Host, row: RunRow, order: str, data: Mapping[str, Any], waiting: Run | None
) -> bool:
    """Have the process that runs a run do something with it; whether it did.

    False when that process does not run it any more: it has ended, or its process has died, and is recorded
    so now. A cancellation of the wait takes nothing back. `waiting` is the run whose body waits. Raises what
    the order raises there, and `RunElsewhereError` when it could not be carried out for another reason.
    """
    store = services.store
    if store.is_instant:  # there is no other process, and nobody here who would answer
        why = "no other process can reach its store, and this one does not run it"
        raise RunElsewhereError(UUID(bytes=row.id), state_of(row), why)
    if not await services.ask(host, partial(_is_alive, services, row)):
        return False
    alarm, text = Alarm(), orjson.dumps(data).decode()
    stop = store.listen(alarm.wake)
    try:
        request = await services.ask(host, lambda: store.ask(row.owner, row.id, order, text, _now(services)))
        store.ring([row.owner])
        answer = await _answer_of(services, host, request, row, order, alarm, waiting)
    finally:
        stop()
    await services.ask(host, partial(store.forget, request))
    return answer is not None and _heed(row, answer)


def _heed(row: RunRow, answer: str) -> bool:
    said: dict[str, Any] = orjson.loads(answer)
    if "message" not in said:
        return "ok" in said
    if said["error"] is not None:
        raise error_of(said["error"])
    raise RunElsewhereError(UUID(bytes=row.id), state_of(row), f"its process could not do it: {said['message']}")


def _is_alive(services: Services, row: RunRow) -> bool:
    """Whether the process that runs a run lives; else the run is recorded as what it is then. Blocks."""
    services.store.reap(_now(services))
    found = services.store.read_run(row.id)
    return found is not None and found.owner == row.owner and is_owned(found)


async def _answer_of(
    services: Services, host: Host, request: int, asked: RunRow, order: str, alarm: Alarm, waiting: Run | None
) -> str | None:
    reap_at = services.clock.monotonic() + LOOK_SECONDS
    answer_until = services.clock.monotonic() + _ANSWER_SECONDS
    while True:
        signal = alarm.renew(host)
        found = await services.ask(host, partial(_look, services, request, asked.id))
        if found.answer is not None:
            return found.answer
        if found.row is None or found.row.owner != asked.owner:
            return None
        if not is_owned(found.row):
            # What was asked for may have ended it, and be answered in a moment: to be resumed, say, and then quick.
            if order == CANCEL or services.clock.monotonic() >= answer_until:
                return None
        elif services.clock.monotonic() >= reap_at:
            reap_at = services.clock.monotonic() + LOOK_SECONDS
            if not await services.ask(host, partial(_is_alive, services, asked)):
                return None
        await blocked(host, waiting, signal, LOOK_SECONDS)


def _look(services: Services, request: int, run_id: bytes) -> _Look:
    # The answer first: it is written after what it tells of.
    answer = services.store.read_answer(request)
    return _Look(answer, None if answer is not None else services.store.read_run(run_id))


def _now(services: Services) -> int:
    return int(services.clock.now() * _MICRO)
