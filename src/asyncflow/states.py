"""States: what a run is in, why, and since when.

A `State` is a value. The engine keeps something smaller while a run is going and builds a
`State` only when somebody looks at one (DESIGN D7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar, cast, overload
from uuid import UUID, uuid4

from asyncflow.exceptions import (
    CrashedRunError,
    FailedRunError,
    MissingResultError,
    RunCancelledError,
    RunInterruptedError,
    RunSuspendedError,
    UnfinishedRunError,
)

__all__ = [
    "FINAL_TYPES",
    "RESTED",
    "AwaitingRetry",
    "Cancelled",
    "Cancelling",
    "Completed",
    "Crashed",
    "Failed",
    "Late",
    "Paused",
    "Pending",
    "Retrying",
    "Running",
    "Scheduled",
    "State",
    "StateDetails",
    "StateType",
    "exception_for",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StateType(StrEnum):
    """What a state is; its `name` is for people, the type is what the engine acts on."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"

    __hash__ = str.__hash__  # an enum's own is a Python function, and each step of a run looks types up in tables

    @property
    def is_final(self) -> bool:
        """Whether a run in such a state has ended for good."""
        return self in FINAL_TYPES


FINAL_TYPES = frozenset({StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class StateDetails:
    """What a state refers to. Empty fields do not apply to it."""

    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None
    child_flow_run_id: UUID | None = None
    """On the task run that stands for a nested flow: that flow's run."""
    parent_task_run_id: UUID | None = None
    """On a nested flow's run: the task run that stands for it in the parent."""
    scheduled_time: datetime | None = None
    """When the run is to go on (Scheduled, AwaitingRetry); aware UTC."""
    cache_key: str | None = None
    cache_expiration: datetime | None = None
    retriable: bool | None = None
    """False when `retry_condition_fn` refused another attempt."""
    pause_key: str | None = None
    """Of a run that waits for `resume_flow_run` (Paused, Suspended): which of its pauses it is in."""
    pause_timeout: datetime | None = None
    """Until when it can be resumed; aware UTC."""
    input_schema: dict[str, Any] | None = None
    """The JSON schema of the input that it waits for."""


class _Absent:
    """The value of a state that carries none; `None` is a value like any other."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<no data>"

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True, kw_only=True)
class State(Generic[T_co]):
    """A run's state at one moment.

    Equal only to itself or to a copy with the same `id`: two states with the same type and
    message are still two moments.
    """

    type: StateType
    name: str = ""
    message: str | None = None
    data: Any = field(default=ABSENT, repr=False, compare=False)
    """The value (Completed) or the exception (Failed, Cancelled, Crashed), in memory only."""
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)
    state_details: StateDetails = field(default_factory=StateDetails, repr=False, compare=False)
    id: UUID = field(default_factory=uuid4, repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.type.value.title())

    def is_scheduled(self) -> bool:
        """Whether the run is to start or to go on at a later time."""
        return self.type is StateType.SCHEDULED

    def is_pending(self) -> bool:
        """Whether the run exists and its body has not begun."""
        return self.type is StateType.PENDING

    def is_running(self) -> bool:
        """Whether the body has begun and has not ended."""
        return self.type is StateType.RUNNING

    def is_paused(self) -> bool:
        """Whether the run has stopped and can be resumed."""
        return self.type is StateType.PAUSED

    def is_cancelling(self) -> bool:
        """Whether the run has been cancelled and its body has not ended yet."""
        return self.type is StateType.CANCELLING

    def is_completed(self) -> bool:
        """Whether the run ended well."""
        return self.type is StateType.COMPLETED

    def is_failed(self) -> bool:
        """Whether the run ended with an exception or past its own timeout."""
        return self.type is StateType.FAILED

    def is_cancelled(self) -> bool:
        """Whether the run was cancelled and its body has ended."""
        return self.type is StateType.CANCELLED

    def is_crashed(self) -> bool:
        """Whether the run was torn down from outside: its process, thread or loop went away."""
        return self.type is StateType.CRASHED

    def is_final(self) -> bool:
        """Whether the run has ended for good."""
        return self.type in FINAL_TYPES

    @overload
    def result(self, raise_on_failure: Literal[True] = True) -> T_co: ...
    @overload
    def result(self, raise_on_failure: bool) -> T_co | BaseException: ...
    def result(self, raise_on_failure: bool = True) -> T_co | BaseException:
        """The run's value.

        A run that ended otherwise raises its exception, or gives it when `raise_on_failure` is
        false. A state that is not final raises `UnfinishedRunError`, a completed one whose value
        is not in memory `MissingResultError` (a client's `read_result` reads it from the store).
        """
        if self.type is StateType.COMPLETED:
            if self.data is ABSENT:
                if self.state_details.flow_run_id or self.state_details.task_run_id:
                    raise MissingResultError(
                        self.state_details.task_run_id or self.state_details.flow_run_id,
                        "this state was read from the store, which client.read_result(run_id) reads in full",
                    )
                return cast("T_co", None)  # a state made by hand without data
            return cast("T_co", self.data)
        error = exception_for(self)
        if raise_on_failure or isinstance(error, UnfinishedRunError):
            raise error
        return error

    def with_(self, **changes: Any) -> State[T_co]:
        """A copy with other fields and the same identity."""
        return replace(self, **changes)

    def __str__(self) -> str:
        about = repr(self.message) if self.message is not None else ""
        if self.name != self.type.value.title():
            about += f"{', ' if about else ''}type={self.type.value}"
        return f"{self.name}({about})"


RESTED: dict[str, type[RunInterruptedError]] = {"Interrupted": RunInterruptedError, "Suspended": RunSuspendedError}
"""What who waits for a run gets that is Paused and that nobody runs, by the name of that state."""
_WRAPPERS: dict[StateType, tuple[Callable[[str, Any], Exception], str]] = {
    StateType.FAILED: (FailedRunError, "the run failed"),
    StateType.CANCELLED: (RunCancelledError, "the run was cancelled"),
    StateType.CRASHED: (CrashedRunError, "the run crashed"),
}


def exception_for(state: State[Any]) -> BaseException:
    """The exception a failed, cancelled or crashed state stands for: its own, else one made from its message.

    A cancelled run's own exception is the cancellation of the task it ran in, which means nothing
    to anybody who was not cancelled, so it is never handed out here.
    """
    if isinstance(state.data, Exception):
        return state.data
    if isinstance(state.data, BaseException) and state.type is not StateType.CANCELLED:
        return state.data
    if state.type is StateType.PAUSED and state.name in RESTED:
        return RESTED[state.name](state.message or f"the run was {state.name.lower()}", state)
    if state.type not in _WRAPPERS:
        return UnfinishedRunError(f"the run is {state}, so it has no result yet", state)
    wrapper, default = _WRAPPERS[state.type]
    return wrapper(state.message or default, state)


def _maker(type_: StateType, name: str = "") -> Callable[..., State[Any]]:
    def make(
        message: str | None = None,
        *,
        name: str = name,
        data: Any = ABSENT,
        state_details: StateDetails | None = None,
    ) -> State[Any]:
        return State(type=type_, name=name, message=message, data=data, state_details=state_details or StateDetails())

    make.__name__ = make.__qualname__ = name or type_.value.title()
    make.__doc__ = f"A state of type {type_.value}{f', named {name}' if name else ''}, made by hand."
    return make


Scheduled: Callable[..., State[Any]] = _maker(StateType.SCHEDULED)
Late: Callable[..., State[Any]] = _maker(StateType.SCHEDULED, "Late")
AwaitingRetry: Callable[..., State[Any]] = _maker(StateType.SCHEDULED, "AwaitingRetry")
Pending: Callable[..., State[Any]] = _maker(StateType.PENDING)
Running: Callable[..., State[Any]] = _maker(StateType.RUNNING)
Retrying: Callable[..., State[Any]] = _maker(StateType.RUNNING, "Retrying")
Paused: Callable[..., State[Any]] = _maker(StateType.PAUSED)
Cancelling: Callable[..., State[Any]] = _maker(StateType.CANCELLING)
Failed: Callable[..., State[Any]] = _maker(StateType.FAILED)
Cancelled: Callable[..., State[Any]] = _maker(StateType.CANCELLED)
Crashed: Callable[..., State[Any]] = _maker(StateType.CRASHED)


def Completed(  # a constructor: it reads like the class the field knows
    message: str | None = None,
    *,
    name: str = "",
    data: T = ABSENT,  # type: ignore[assignment]
    state_details: StateDetails | None = None,
) -> State[T]:
    """A state of type COMPLETED, made by hand; `data` becomes the run's value."""
    return State(
        type=StateType.COMPLETED, name=name, message=message, data=data, state_details=state_details or StateDetails()
    )
