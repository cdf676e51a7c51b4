"""The rules of a run's life, as pure functions: what may follow what, and what an ending means.

Nothing here waits, reads a clock or knows a loop, so each rule can be tested for all inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeGuard, cast

from asyncflow.error_records import error_summary
from asyncflow.exceptions import IllegalTransitionError, StateNotFinalError
from asyncflow.states import ABSENT, State, StateType, exception_for

__all__ = [
    "INTERRUPTED",
    "RESTING",
    "RESUMING",
    "STOPPING",
    "SUSPENDED",
    "TRANSITIONS",
    "Ending",
    "check_transition",
    "ending_of_error",
    "ending_of_value",
    "one_error",
]

_T = StateType
TRANSITIONS: dict[StateType | None, frozenset[StateType]] = {
    None: frozenset({_T.SCHEDULED, _T.PENDING}),
    _T.SCHEDULED: frozenset(
        {_T.SCHEDULED, _T.PENDING, _T.RUNNING, _T.PAUSED, _T.CANCELLING, _T.FAILED, _T.CANCELLED, _T.CRASHED}
    ),
    _T.PENDING: frozenset(
        {_T.RUNNING, _T.SCHEDULED, _T.PAUSED, _T.CANCELLING, _T.COMPLETED, _T.FAILED, _T.CANCELLED, _T.CRASHED}
    ),
    _T.RUNNING: frozenset(
        {_T.RUNNING, _T.SCHEDULED, _T.PAUSED, _T.CANCELLING, _T.COMPLETED, _T.FAILED, _T.CANCELLED, _T.CRASHED}
    ),
    # A paused run whose body ends all the same has ended; one that is to be resumed later is Paused once more.
    _T.PAUSED: frozenset(_T),
    # A cancelled body may still answer with a value or an exception of its own; one that a deadline
    # stopped in its thread may be tried again.
    _T.CANCELLING: frozenset({_T.SCHEDULED, _T.PAUSED, _T.COMPLETED, _T.FAILED, _T.CANCELLED, _T.CRASHED}),
    # Final: written once. Resuming or retrying a run by hand opens it again, as a new attempt.
    _T.COMPLETED: frozenset(),
    _T.FAILED: frozenset(),
    _T.CANCELLED: frozenset(),
    _T.CRASHED: frozenset(),
}
"""Which types of state may follow which; `None` is before the first.

Pending goes straight to Completed for a cached value, to Failed for invalid parameters.
"""


RESUMING = "Resuming"
"""The name of the Pending state in which a run that had ended is opened again: the one way out of a final state."""
INTERRUPTED = "Interrupted"
"""The name of the Paused state of a run that waits to be resumed: its runtime has stopped, or its process died."""
SUSPENDED = "Suspended"
"""The same, of a run that was to stop there: by its own body, or by somebody who will resume it."""
RESTING = frozenset({INTERRUPTED, SUSPENDED})
"""The names of the Paused states in which nobody runs a run. (One that is just Paused waits in its process.)"""
STOPPING = "its runtime is stopping"
"""What the message of an interrupted run says when nothing went wrong."""


def check_transition(before: StateType | None, after: StateType) -> None:
    """Raise `IllegalTransitionError` when a run in `before` cannot go to `after`."""
    if after not in TRANSITIONS[before]:
        raise IllegalTransitionError("nothing" if before is None else before.value, after.value)


_CONTAINERS = (list, tuple, set)


class Ending(NamedTuple):
    """How a body ended: the final state it leads to, and what its caller is to get."""

    type: StateType
    name: str | None = None
    message: str | None = None
    value: Any = None
    error: BaseException | None = None
    """What the caller gets raised instead of the value."""
    facts: dict[str, Any] | None = None
    """What else the state's details tell."""


def ending_of_error(error: BaseException) -> Ending:
    """The ending of a body that raised, cancellations apart (only a host can tell those)."""
    if isinstance(error, Exception):
        return Ending(type=StateType.FAILED, message=error_summary(error), error=error)
    return Ending(type=StateType.CRASHED, message=f"interrupted by {error_summary(error)}", error=error)


def ending_of_value(value: Any) -> Ending:
    """The ending of a body that returned `value`: the rules of DESIGN 4.1, in their order."""
    if _is_state(value):
        return _ending_of_states([value], value) if _is_of_a_run(value) else _ending_of_hand_made(value)
    if isinstance(value, _CONTAINERS) and (states := _states_in(cast("Iterable[Any]", value))):
        return _ending_of_states(states, value)
    return Ending(type=StateType.COMPLETED, value=value)


def _is_state(value: object) -> TypeGuard[State[Any]]:
    return isinstance(value, State)


def _states_in(items: Iterable[Any]) -> list[State[Any]]:
    return [each for each in items if _is_state(each)]


def _is_of_a_run(state: State[Any]) -> bool:
    return bool(state.state_details.flow_run_id or state.state_details.task_run_id)


def _ending_of_hand_made(state: State[Any]) -> Ending:
    if not state.is_final():
        error = StateNotFinalError(f"returned a state that is not final: {state}", state)
        return Ending(type=StateType.FAILED, message=str(error), error=error)
    name = state.name if state.name != state.type.value.title() else None
    if state.is_completed():
        data = None if state.data is ABSENT else state.data
        return Ending(type=state.type, name=name, message=state.message, value=data)
    return Ending(type=state.type, name=name, message=state.message, error=exception_for(state))


def _ending_of_states(states: list[State[Any]], value: Any) -> Ending:
    if all(state.is_completed() for state in states):
        return Ending(type=StateType.COMPLETED, message="All states completed.", value=_with_values(value))
    open_ = [state for state in states if not state.is_final() and not state.is_paused()]
    if open_:
        error = StateNotFinalError(f"returned a state that is not final: {open_[0]}", open_[0])
        return Ending(type=StateType.FAILED, message=f"{len(open_)}/{len(states)} states are not final.", error=error)
    bad = [state for state in states if not state.is_completed()]
    type_, word = _worst_of(bad)
    worst = [state for state in bad if _ranked(state.type) is type_]
    count = len(worst)
    names = {state.name for state in worst}
    return Ending(
        type=type_,
        name=names.pop() if type_ is StateType.PAUSED and len(names) == 1 and names <= RESTING else None,
        message=f"{count}/{len(states)} states {word}.",
        error=one_error(exception_for(each) for each in bad),
    )


_RANKS = {StateType.CANCELLED: (0, "cancelled"), StateType.PAUSED: (1, "paused"), StateType.FAILED: (2, "failed")}


def _ranked(type_: StateType) -> StateType:
    return StateType.FAILED if type_ is StateType.CRASHED else type_


def _worst_of(states: Iterable[State[Any]]) -> tuple[StateType, str]:
    worst = min((_ranked(state.type) for state in states), key=lambda type_: _RANKS[type_][0])
    return worst, _RANKS[worst][1]


def one_error(errors: Iterable[BaseException]) -> BaseException:
    """The only one, or a group of several."""
    found = list(errors)
    if len(found) == 1:
        return found[0]
    return BaseExceptionGroup("several runs did not complete", found)


def _with_values(value: Any) -> Any:
    """`value` with each completed state in it replaced by that run's value."""
    if _is_state(value):
        return value.result()
    replaced = [each.result() if _is_state(each) else each for each in value]
    if hasattr(value, "_make"):
        return value._make(replaced)  # a named tuple
    return type(value)(replaced)
