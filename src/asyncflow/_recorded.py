"""The recorded side of a live run: its states, and the rows that tell of them.

Frozen records are made from it when somebody looks; replacing them at each step cost more than the
rest of the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from asyncflow._entrypoints import entrypoint_of
from asyncflow._facts import details_from
from asyncflow._rows import FLOW, STAND_IN, STATE_CODES, RunRow, history_of, json_of, maybe_uuid, moment
from asyncflow._rules import RESTING, TRANSITIONS, check_transition
from asyncflow._services import Services
from asyncflow._specs import Spec
from asyncflow.ids import state_id
from asyncflow.states import ABSENT, FINAL_TYPES, State, StateDetails, StateType

__all__ = ["ENDING", "UNBORN", "Recorded", "Status"]

ENDING = threading.RLock()
"""Held while a run gets its final state: a run is given up as deaf by another thread than its own.

One for all: it is held for a microsecond. Reentrant, because the garbage collector may run anything
inside.
"""

_MICRO = 1_000_000
_PLAIN = {(0, StateType.PENDING), (1, StateType.RUNNING)}
_MOST_PLAIN = 2


class Status(NamedTuple):
    """A run's newest state, replaced as a whole: the store's thread never sees half of one."""

    seq: int
    """Number of states so far."""
    type: StateType | None
    name: str | None
    message: str | None


_tuple: Any = tuple
_status: Callable[[tuple[int, StateType, str | None, str | None]], Status] = partial(_tuple.__new__, Status)
_row: Callable[[tuple[Any, ...]], RunRow] = partial(_tuple.__new__, RunRow)
# A quarter of what the classes take to make one, and each run makes several.
UNBORN = Status(0, None, None, None)
_BEGUN = Status(2, StateType.RUNNING, None, None)


class Recorded:
    """One call of a flow or task while it lasts, as the store and its readers see it."""

    __slots__ = (
        "__weakref__", "arguments", "created", "digest", "ended", "error", "error_json", "facts", "flow_run_id",
        "history", "id", "is_answered", "journalled", "kind", "latest", "name", "not_kept", "origin", "parameters_json",
        "parent_id", "queued", "result", "root_id", "run_count", "services", "spec", "stand_in_id", "started", "status",
        "tags", "value",
    )  # fmt: skip

    id: bytes
    root_id: bytes
    """Of the outermost run of its tree."""
    kind: int
    stand_in_id: bytes | None
    """Of a nested flow: the task run that stands for it in its parent."""
    parent_id: bytes | None
    flow_run_id: bytes | None
    """The flow run around it."""
    spec: Spec
    services: Services
    arguments: Mapping[str, Any]
    digest: bytes | None
    """Of what it was given: with its function's key, what it is known by among its parent's children."""
    name: str | None
    tags: frozenset[str]
    parameters_json: str | None
    origin: tuple[bytes, int | None, str | None] | None
    """Of a deployment's run: the deployment, when it was due, and its idempotency key."""

    status: Status
    created: int
    latest: int
    """When it came to its newest state."""
    started: int | None
    ended: int | None
    facts: dict[str, Any] | None
    run_count: int
    history: list[list[Any]] | None
    queued: bool
    journalled: int

    is_answered: bool
    """Whether it did not run: its record of an earlier life tells its value."""
    value: Any
    error: BaseException | None
    result: str | None
    error_json: str | None
    not_kept: str | None

    @property
    def is_over(self) -> bool:
        """Whether it has its final state, or waits to be resumed: nobody runs it any more."""
        type_ = self.status.type
        return type_ in FINAL_TYPES or (type_ is StateType.PAUSED and self.status.name in RESTING)

    @property
    def is_torn(self) -> bool:
        """Whether it has begun and neither ended nor come to rest: nobody can leave it like that."""
        type_ = self.status.type
        return type_ is not None and type_ not in FINAL_TYPES and type_ is not StateType.PAUSED

    def enter(
        self,
        type_: StateType,
        now: float,
        *,
        name: str | None = None,
        message: str | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Go to a state and queue its record. `facts` are what else its `state_details` tell.

        Plain code: no await and no I/O, so nothing can come between what happened and its record.
        """
        seq, before, _, _ = self.status
        if type_ not in TRANSITIONS[before]:
            check_transition(before, type_)
        at = int(now * _MICRO)
        if at < self.latest:  # the wall clock may be set back; a history does not go back
            at = self.latest
        self.latest = at
        self.facts = facts
        if self.history is not None or facts is not None or not _is_plain(seq, type_, name, message):
            self._write_history(seq, [STATE_CODES[type_], name, message, at, facts])
        if type_ is StateType.RUNNING:
            self.started = self.started or at
        elif type_ in FINAL_TYPES:
            self.ended = at
        elif seq == 0 and not self.created:  # a submitted run was created when it was submitted
            self.created = at
        self._publish(_status((seq + 1, type_, name, message)))

    def begin(self, now: float) -> None:
        """Go to Running for the first time; where nothing came before it, through Pending in the same step."""
        self.run_count = 1
        if self.status.seq:
            self.enter(StateType.RUNNING, now)
            return
        at = int(now * _MICRO)
        self.created = self.created or at
        self.started = self.latest = at if at > self.created else self.created
        self._publish(_BEGUN)

    def adopt(self, row: RunRow) -> None:
        """Be the run that is recorded in `row`: what was recorded goes on, nothing is recorded here.

        Only for a run that has no record of its own yet. It has no state until it enters the next one.
        """
        self.id = row.id
        if row.parent_id is None:
            self.root_id = row.id
        elif row.kind == FLOW:
            self.stand_in_id = row.parent_id
        self.name = row.name
        if row.deployment_id is not None:
            self.origin = row.deployment_id, row.scheduled, row.idempotency_key
        self.parameters_json = row.parameters  # it may be stopped before it has checked and written its own
        self.created, self.started, self.run_count = row.created, row.started, row.run_count
        self.latest = max(row.created, row.started or 0, row.ended or 0)
        self.history = [list(entry) for entry in history_of(row)]
        self.status = Status(row.seq, None, None, None)
        self.journalled = row.seq

    def stay(self, row: RunRow, value: Any) -> None:
        """Be the completed run that is recorded in `row`, with its value: nothing is left to record."""
        self.adopt(row)
        self.ended = row.ended
        self.value = value
        self.is_answered = True
        self.status = Status(row.seq, StateType.COMPLETED, row.state_name, row.message)

    def _publish(self, status: Status) -> None:
        try:
            # Last: whoever sees the new status also sees everything that belongs to it.
            self.status = status
            if not self.queued:
                self.services.store.put(self)
        except BaseException as error:
            # A Ctrl-C must not come between a state and its record.
            if self.status is status and not isinstance(error, Exception):
                self.services.store.put(self)
            raise

    def _write_history(self, seq: int, entry: list[Any]) -> None:
        """Keep the states one by one, from now on and back to the first."""
        if self.history is None:
            self.history = self._plain_history()
        del self.history[seq:]  # of a state that a Ctrl-C kept it from entering
        self.history.append(entry)

    def _plain_history(self) -> list[list[Any]]:
        """The states so far, none of them final, written out."""
        history: list[list[Any]] = []
        if self.status.seq:
            history.append([STATE_CODES[StateType.PENDING], None, None, self.created])
        if self.started is not None:
            history.append([STATE_CODES[StateType.RUNNING], None, None, self.started])
        return history

    # --- what others see

    @property
    def display_name(self) -> str:
        """The run's name."""
        return self.name or f"{self.spec.name}-{self.id.hex()[-3:]}"

    def state(self) -> State[Any]:
        """Its newest state, as a record."""
        seq, known, name, message = self.status
        type_ = known or StateType.PENDING
        return State(
            type=type_,
            name=name or "",
            message=message,
            data=self._data(type_),
            timestamp=moment(self.latest),
            state_details=self.details(),
            id=state_id(self.id, max(seq - 1, 0)),
        )

    def bare_state(self) -> State[Any]:
        """The same without value and exception, for an exception to carry: the two would hold each other."""
        return self.state().with_(data=ABSENT)

    def __del__(self) -> None:
        # The net below all others: whatever tore the engine apart (a Ctrl-C inside its own code,
        # a loop closed in the middle), a run that nobody can finish any more is recorded Crashed.
        try:
            if self.is_torn:
                self.enter(StateType.CRASHED, self.services.clock.now(), message="it was abandoned before it ended")
        except Exception:  # noqa: BLE001  # half made, or the store is gone; `suppress` costs each run more
            pass

    def _data(self, type_: StateType) -> Any:
        if type_ is StateType.COMPLETED:
            return self.value
        return self.error if self.error is not None else ABSENT

    def details(self) -> StateDetails:
        """The ids and times that its states carry."""
        own, facts = UUID(bytes=self.id), self.facts or {}
        is_flow = self.kind == FLOW
        return StateDetails(
            flow_run_id=own if is_flow else maybe_uuid(self.flow_run_id),
            task_run_id=None if is_flow else own,
            parent_task_run_id=maybe_uuid(self.stand_in_id),
            **details_from(facts),
        )

    def rows(self) -> tuple[RunRow, ...]:
        """What the store is to write. Called from the store's thread, while this run may go on."""
        seq, known, name, message = self.status
        type_ = known or StateType.PENDING
        final = type_ in FINAL_TYPES
        row = _row((
            self.id,
            self.kind,
            self.stand_in_id or self.parent_id,
            self.flow_run_id,
            self.spec.name,
            self.spec.key,
            self.name,
            STATE_CODES[type_],
            name,
            message,
            self.created,
            self.started,
            self.ended if final else None,
            self.run_count,
            seq,
            json_of(sorted(self.tags)) if self.tags else None,
            self.parameters_json,
            self.result if final else None,
            None,
            self.error_json if final else None,
            json_of(self.history[:seq]) if self.history is not None else None,
            self._details_json(),
            self.digest,
            self.services.store.owner,
            None, None, None,
        ))  # fmt: skip
        if self.origin is not None:
            deployment_id, scheduled, key = self.origin
            row = row._replace(deployment_id=deployment_id, scheduled=scheduled, idempotency_key=key)
        if self.stand_in_id is None:
            return (row,)
        stand_in = row._replace(
            id=self.stand_in_id,
            kind=STAND_IN,
            parent_id=self.parent_id,
            parameters=None,
            result=None,
            details=json_of({"child_flow_run_id": str(UUID(bytes=self.id))}),
            digest=None,
            deployment_id=None,
            scheduled=None,
            idempotency_key=None,
        )
        return (stand_in, row)

    def _details_json(self) -> str | None:
        details: dict[str, Any] = {}
        if self.kind == FLOW:
            if self.spec.options.version is not None:
                details["version"] = self.spec.options.version
            if self.stand_in_id is None:
                details |= _for_another_process(self.spec)
            if self.flow_run_id is not None:
                details["parent_flow_run_id"] = str(UUID(bytes=self.flow_run_id))
        if self.not_kept is not None:
            details["not_kept"] = self.not_kept
        if self.spec.keeps_items:
            details["items"] = True
        return json_of(details) if details else None


def _for_another_process(spec: Spec) -> dict[str, Any]:
    """What a process needs to know to run an outermost flow again."""
    entrypoint = entrypoint_of(spec.fn)
    known = {"entrypoint": entrypoint} if entrypoint is not None else {}
    return {**known, "resume": spec.options.resume} if spec.options.resume is not None else known


def _is_plain(seq: int, type_: StateType, name: str | None, message: str | None) -> bool:
    """Whether three time columns still tell the history: Pending, Running, then (or at once) a final state."""
    if type_ in FINAL_TYPES:
        return seq <= _MOST_PLAIN
    return name is None and message is None and (seq, type_) in _PLAIN
