"""The rules of a run's life and the arithmetic of retries: pure, so held for every input hypothesis can think of."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import StateType, exponential_backoff
from asyncflow._rules import TRANSITIONS, check_transition, ending_of_error, ending_of_value
from asyncflow.exceptions import (
    CrashedRunError,
    FailedRunError,
    IllegalTransitionError,
    OptionError,
    RunCancelledError,
    StateNotFinalError,
)
from asyncflow.retries import delay_after, seconds_of
from asyncflow.states import Cancelled, Completed, Crashed, Failed, Paused, Running, State, StateDetails

FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
OPEN = set(StateType) - FINAL

# --- transitions ----------------------------------------------------------------------------


def test_the_table_names_every_type_and_the_beginning() -> None:
    assert set(TRANSITIONS) == {None, *StateType}


def test_nothing_follows_a_final_state() -> None:
    assert {type_ for type_ in StateType if not TRANSITIONS[type_]} == FINAL


def test_every_open_state_can_fail_be_cancelled_and_crash() -> None:
    for type_ in OPEN:
        assert {StateType.FAILED, StateType.CANCELLED, StateType.CRASHED} <= TRANSITIONS[type_]


def test_a_run_does_not_begin_in_the_middle() -> None:
    assert TRANSITIONS[None] == {StateType.SCHEDULED, StateType.PENDING}


def test_a_run_that_is_being_stopped_does_not_just_go_on() -> None:
    # Scheduled: another attempt after one that ran out of time in a worker thread. Paused: its runtime is stopping.
    assert TRANSITIONS[StateType.CANCELLING] - FINAL <= {StateType.SCHEDULED, StateType.PAUSED}


def test_only_a_run_that_began_completes() -> None:
    assert StateType.COMPLETED not in TRANSITIONS[StateType.SCHEDULED]


@pytest.mark.parametrize(("before", "after"), [*product([None, *StateType], StateType)])
def test_a_move_is_legal_when_the_table_has_it(before: StateType | None, after: StateType) -> None:
    if after in TRANSITIONS[before]:
        check_transition(before, after)
        return
    with pytest.raises(IllegalTransitionError) as caught:
        check_transition(before, after)
    assert str(caught.value) == f"a run cannot go from {before.value if before else 'nothing'} to {after.value}"


# --- endings of values ----------------------------------------------------------------------

messages = st.none() | st.text(max_size=8)
plain = st.none() | st.integers() | st.text(max_size=8) | st.floats()
hashable = st.none() | st.integers() | st.text(max_size=8)


def of_a_run(state: State[Any], run_id: UUID | None = None) -> State[Any]:
    """`state` as the engine would have made it."""
    return state.with_(state_details=StateDetails(task_run_id=run_id or uuid4()))


completed = st.builds(lambda message, data: Completed(message, data=data), messages, hashable)
unhappy = st.builds(lambda make, message: make(message), st.sampled_from([Failed, Cancelled, Crashed]), messages)
paused = st.builds(Paused, messages)
not_final: st.SearchStrategy[State[Any]] = st.builds(
    lambda type_, message: State(type=type_, message=message), st.sampled_from(sorted(OPEN)), messages
)
any_state = completed | unhappy | paused | not_final
containers: Any = st.sampled_from([list, tuple, set])


@given(plain | st.lists(plain) | st.dictionaries(st.text(max_size=3), plain | completed | unhappy))
def test_a_value_completes_and_stays_the_same_object(value: Any) -> None:
    ending = ending_of_value(value)
    assert (ending.type, ending.name, ending.message, ending.error) == (StateType.COMPLETED, None, None, None)
    assert ending.value is value


@given(messages, st.text(max_size=8), plain)
def test_a_completed_state_by_hand_is_taken_as_it_is(message: str | None, name: str, data: Any) -> None:
    ending = ending_of_value(Completed(message, name=name, data=data))
    assert ending.type is StateType.COMPLETED
    assert ending.name == (name if name not in ("", "Completed") else None)
    assert ending.message == message
    assert ending.value is data
    assert ending.error is None


def test_a_completed_state_without_data_has_the_value_none() -> None:
    assert ending_of_value(Completed("done")).value is None


@pytest.mark.parametrize(
    ("make", "error"), [(Failed, FailedRunError), (Cancelled, RunCancelledError), (Crashed, CrashedRunError)]
)
def test_an_unhappy_state_by_hand_keeps_its_type_and_raises_its_message(
    make: Callable[..., State[Any]], error: type[Exception]
) -> None:
    ending = ending_of_value(make("so it is", name="Odd"))
    assert (ending.type.value.title(), ending.name, ending.message) == (make.__name__, "Odd", "so it is")
    assert type(ending.error) is error
    assert str(ending.error) == "so it is"


def test_a_failed_state_by_hand_raises_the_exception_in_it() -> None:
    error = ValueError("mine")
    assert ending_of_value(Failed(data=error)).error is error


@given(not_final)
def test_a_state_by_hand_that_is_not_final_fails(state: State[Any]) -> None:
    ending = ending_of_value(state)
    assert ending.type is StateType.FAILED
    assert (ending.message or "").startswith("returned a state that is not final")
    assert isinstance(ending.error, StateNotFinalError)
    assert ending.error.state is state


@given(completed, plain)
def test_the_completed_state_of_a_run_gives_that_runs_value(state: State[Any], value: Any) -> None:
    state = of_a_run(state.with_(data=value))
    ending = ending_of_value(state)
    assert ending.type is StateType.COMPLETED
    assert ending.value is value


def test_the_failed_state_of_a_run_raises_that_runs_exception() -> None:
    error = LookupError("there")
    ending = ending_of_value(of_a_run(Failed("LookupError: there", data=error)))
    assert ending.type is StateType.FAILED
    assert ending.error is error


@given(containers, st.lists(completed.map(of_a_run), min_size=1, max_size=6), st.lists(hashable, max_size=4))
def test_a_container_of_completed_states_holds_their_values(
    kind: Any, states: list[State[Any]], data: list[Any]
) -> None:
    ending = ending_of_value(kind([*states, *data]))
    assert ending.type is StateType.COMPLETED
    assert ending.message == "All states completed."
    assert type(ending.value) is kind
    assert ending.value == kind([*(state.data for state in states), *data])


@given(containers, st.lists(any_state.map(of_a_run), min_size=1, max_size=6), st.lists(hashable, max_size=3))
def test_the_worst_state_in_a_container_decides(kind: Any, states: list[State[Any]], data: list[Any]) -> None:
    ending = ending_of_value(kind([*data, *states]))
    failed = [state for state in states if state.type in (StateType.FAILED, StateType.CRASHED)]
    cancelled = [state for state in states if state.is_cancelled()]
    is_paused = [state for state in states if state.is_paused()]
    if any(not state.is_final() and not state.is_paused() for state in states):
        assert ending.type is StateType.FAILED
        assert isinstance(ending.error, StateNotFinalError)
    elif cancelled:
        assert ending.type is StateType.CANCELLED
        assert ending.message == f"{len(cancelled)}/{len(states)} states cancelled."
    elif is_paused:
        assert ending.type is StateType.PAUSED
        assert ending.message == f"{len(is_paused)}/{len(states)} states paused."
    elif failed:
        assert ending.type is StateType.FAILED
        assert ending.message == f"{len(failed)}/{len(states)} states failed."
        assert ending.error is not None
        if len(failed) > 1:
            assert isinstance(ending.error, ExceptionGroup)
            assert len(ending.error.exceptions) == len(failed)
        else:
            assert not isinstance(ending.error, BaseExceptionGroup)
    else:
        assert ending.type is StateType.COMPLETED


def test_hand_made_states_in_a_container_count_like_those_of_runs() -> None:
    ending = ending_of_value([Completed(data=1), Failed("no"), 3])
    assert (ending.type, ending.message) == (StateType.FAILED, "1/2 states failed.")
    assert str(ending.error) == "no"


def test_several_exceptions_of_states_come_as_one_group_of_the_same_objects() -> None:
    first, second = ValueError("1"), KeyError("2")
    ending = ending_of_value((of_a_run(Failed(data=first)), of_a_run(Completed(data=0)), of_a_run(Failed(data=second))))
    assert ending.message == "2/3 states failed."
    assert isinstance(ending.error, ExceptionGroup)
    assert ending.error.exceptions == (first, second)


def test_a_named_tuple_stays_one() -> None:
    pair = namedtuple("pair", "left right")  # the untyped kind is the point
    ending = ending_of_value(pair(of_a_run(Completed(data=1)), 2))
    assert ending.value == pair(1, 2)
    assert type(ending.value) is pair


def test_a_container_without_states_is_a_value() -> None:
    value: list[Any] = []
    assert ending_of_value(value).value is value
    assert ending_of_value(value).message is None


# --- endings of errors ----------------------------------------------------------------------


@given(st.text(max_size=8))
def test_an_exception_fails_and_the_message_has_its_type_and_text(text: str) -> None:
    error = ZeroDivisionError(text)
    ending = ending_of_error(error)
    assert ending.type is StateType.FAILED
    assert ending.error is error
    assert ending.message == (f"ZeroDivisionError: {text}" if text else "ZeroDivisionError")


def test_a_group_with_one_leaf_is_named_by_it() -> None:
    error = ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("leaf")])])
    ending = ending_of_error(error)
    assert ending.error is error
    assert ending.message == "KeyError: 'leaf'"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), BaseException("own")])
def test_what_is_no_exception_crashes(error: BaseException) -> None:
    ending = ending_of_error(error)
    assert ending.type is StateType.CRASHED
    assert ending.error is error
    assert type(error).__name__ in (ending.message or "")


# --- delays ---------------------------------------------------------------------------------

lengths = st.floats(min_value=0, max_value=1e9)
attempts = st.integers(min_value=1, max_value=1000)


@given(attempts, lengths, st.floats(min_value=0, max_value=1), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_jitter_stays_within_its_factor(attempt: int, delay: float, factor: float, random: float) -> None:
    got = delay_after(attempt, delay, factor, lambda: random)
    assert got >= 0
    assert delay * (1 - factor) * (1 - 1e-9) <= got <= delay * (1 + factor) * (1 + 1e-9)


@given(attempts, lengths, st.floats(min_value=1, max_value=100), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_delay_is_never_negative_however_large_the_jitter(
    attempt: int, delay: float, factor: float, random: float
) -> None:
    assert delay_after(attempt, delay, factor, lambda: random) >= 0


@given(attempts, lengths)
def test_without_jitter_a_number_is_the_delay(attempt: int, delay: float) -> None:
    assert delay_after(attempt, delay, 0, lambda: 0.9) == delay
    length = timedelta(seconds=delay)
    assert delay_after(attempt, length, 0, lambda: 0.9) == length.total_seconds()


@given(attempts, st.lists(lengths, min_size=1, max_size=10))
def test_a_list_has_one_delay_per_retry_and_its_last_repeats(attempt: int, delays: list[float]) -> None:
    assert delay_after(attempt, delays, 0, lambda: 0.5) == (delays + [delays[-1]] * 1000)[attempt - 1]


def test_an_empty_list_is_no_delay() -> None:
    assert delay_after(3, [], 0, lambda: 0.5) == 0


@given(attempts)
def test_a_function_gets_the_number_of_the_retry(attempt: int) -> None:
    assert delay_after(attempt, lambda retry: timedelta(minutes=retry), 0, lambda: 0.5) == attempt * 60


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), True, "1", None, timedelta(seconds=-1)])
def test_a_delay_that_is_no_length_of_time_is_refused(bad: Any) -> None:
    with pytest.raises(OptionError, match="seconds"):
        seconds_of("retry_delay_seconds", bad)
    with pytest.raises(OptionError, match="retry_delay_seconds"):
        delay_after(1, lambda _: bad, 0, lambda: 0.5)


@given(
    st.floats(min_value=0, max_value=1e6),
    st.floats(min_value=1, max_value=1e6),
    st.integers(min_value=1, max_value=5000),
)
def test_backoff_grows_up_to_its_maximum(first: float, factor: float, retry: int) -> None:
    delay = exponential_backoff(first, factor=factor, maximum=timedelta(hours=1))
    assert 0 <= delay(retry) <= delay(retry + 1) <= 3600


def test_backoff_doubles_from_the_first() -> None:
    assert [exponential_backoff(0.5)(retry) for retry in (1, 2, 3, 4)] == [0.5, 1, 2, 4]


def test_running_is_not_final_and_crashed_is() -> None:
    assert not Running().is_final()
    assert Crashed().is_final()
