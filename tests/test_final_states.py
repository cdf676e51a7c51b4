"""What a body did, the final state it leads to, and what the caller gets: DESIGN 4.1, row by row."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import sqlite3
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pydantic  # noqa: F401  # here, because its first import blocks
import pytest

from asyncflow import Flow, FlowRun, Runtime, State, StateType, TaskRun, flow, get_client, task
from asyncflow.exceptions import (
    CrashedRunError,
    DurabilityError,
    FailedRunError,
    MissingResultError,
    NotJSONError,
    ParameterValidationError,
    RunCancelledError,
    StateNotFinalError,
    StoreError,
    UnfinishedRunError,
)
from asyncflow.states import Cancelled, Completed, Crashed, Failed, Paused, Pending, Running, Scheduled
from tests.conftest import Backend


@task
async def give(value: Any) -> Any:
    return value


@task
async def fail(error: BaseException) -> None:
    raise error


async def newest() -> FlowRun:
    return (await get_client().read_flow_runs(limit=1))[0]


async def newest_task() -> TaskRun:
    return (await get_client().read_task_runs(limit=1))[0]


async def states_of(run_id: UUID) -> list[str]:
    return [state.name for state in await get_client().read_states(run_id)]


def recorded_error(home: Path) -> Any:
    """What the newest failed run left in the database, read without asyncflow."""
    connection = sqlite3.connect(home / "asyncflow.db")
    try:
        (text,) = connection.execute("SELECT error FROM run WHERE error IS NOT NULL ORDER BY id DESC").fetchone()
    finally:
        connection.close()
    return json.loads(text)


def returns(value: Any) -> Flow[[], Any]:
    @flow
    async def main() -> Any:
        return value

    return main


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "", [], {}, {"a": [1, None]}, 1.5, True, 2**80])
async def test_a_value_completes_the_run_and_is_recorded(value: Any) -> None:
    assert await returns(value)() == value
    run = await newest()
    assert (run.state.type, run.state.name, run.state.message) == (StateType.COMPLETED, "Completed", None)
    assert await states_of(run.id) == ["Pending", "Running", "Completed"]
    assert await get_client().read_result(run.id) == value
    assert run.run_count == 1
    assert run.created <= (run.start_time or run.created) <= (run.end_time or run.created)


async def test_a_dict_with_states_in_it_is_a_value() -> None:
    state = Failed("not looked at")

    @flow(persist_result=False)
    async def main() -> dict[str, State[Any]]:
        return {"state": state}

    assert (await main())["state"] is state


# --- states made by hand ----------------------------------------------------------------------------


async def test_a_completed_state_by_hand_is_recorded_as_it_is() -> None:
    main = returns(Completed("nothing to do", name="Skipped", data=[1, 2]))
    assert await main() == [1, 2]
    run = await newest()
    assert (run.state.type, run.state.name, run.state.message) == (StateType.COMPLETED, "Skipped", "nothing to do")
    assert await get_client().read_result(run.id) == [1, 2]
    state = await main(return_state=True)
    assert (state.name, state.message, state.result()) == ("Skipped", "nothing to do", [1, 2])
    assert state.state_details.flow_run_id is not None


async def test_a_task_may_return_a_state_by_hand_too() -> None:
    assert await give(Completed(name="Skipped")) is None
    assert (await newest_task()).state.name == "Skipped"
    with pytest.raises(FailedRunError, match="no luck"):
        await give(Failed("no luck"))
    assert (await newest_task()).state.is_failed()


@pytest.mark.parametrize(
    ("make", "error"), [(Failed, FailedRunError), (Cancelled, RunCancelledError), (Crashed, CrashedRunError)]
)
async def test_an_unhappy_state_by_hand_is_recorded_and_raised(
    make: Callable[..., State[Any]], error: type[Exception]
) -> None:
    main = returns(make("so it is", name="Odd"))
    with pytest.raises(error, match="so it is") as caught:
        await main()
    assert caught.value.state.name == "Odd"  # type: ignore[attr-defined]
    run = await newest()
    assert (run.state.type.value.title(), run.state.name, run.state.message) == (make.__name__, "Odd", "so it is")
    assert (await main(return_state=True)).name == "Odd"


async def test_a_failed_state_by_hand_with_an_exception_raises_that() -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        await returns(Failed("it failed", data=error))()
    assert caught.value is error
    assert (await newest()).state.message == "it failed"


@pytest.mark.parametrize("state", [Running(), Pending(), Scheduled(), Paused("wait")], ids=str)
async def test_a_state_by_hand_that_is_not_final_fails(state: State[Any]) -> None:
    with pytest.raises(StateNotFinalError, match="returned a state that is not final") as caught:
        await returns(state)()
    assert caught.value.state is state
    run = await newest()
    assert run.state.is_failed()
    assert "returned a state that is not final" in (run.state.message or "")


# --- states of runs -----------------------------------------------------------------------------------


async def test_the_state_of_a_run_decides() -> None:
    error = KeyError("there")

    @flow
    async def good() -> Any:
        return await give(5, return_state=True)

    @flow
    async def bad() -> Any:
        return await fail(error, return_state=True)

    assert await good() == 5
    with pytest.raises(KeyError) as caught:
        await bad()
    assert caught.value is error
    assert (await newest()).state.is_failed()


@pytest.mark.parametrize("kind", [list, tuple, set])
async def test_completed_states_in_a_container_are_replaced_by_their_values(kind: Any) -> None:
    @flow
    async def main() -> Any:
        return kind([await give(1, return_state=True), 2, await give(3, return_state=True)])

    value = await main()
    assert type(value) is kind
    assert value == kind([1, 2, 3])
    run = await newest()
    assert (run.state.type, run.state.message) == (StateType.COMPLETED, "All states completed.")
    assert sorted(await get_client().read_result(run.id)) == [1, 2, 3]


@pytest.mark.parametrize("kind", [list, tuple, set])
async def test_one_failed_state_in_a_container_fails_with_its_exception(kind: Any) -> None:
    error = ValueError("one")

    @flow
    async def main() -> Any:
        return kind([await give(1, return_state=True), "data", await fail(error, return_state=True)])

    with pytest.raises(ValueError, match="one") as caught:
        await main()
    assert caught.value is error
    assert (await newest()).state.message == "1/2 states failed."


async def test_several_failed_states_fail_with_a_group() -> None:
    errors = [ValueError("one"), KeyError("two")]

    @flow
    async def main() -> Any:
        return [await fail(errors[0], return_state=True), 1, Crashed("third"), await fail(errors[1], return_state=True)]

    with pytest.raises(ExceptionGroup) as caught:
        await main()
    assert caught.value.exceptions[0] is errors[0]
    assert caught.value.exceptions[2] is errors[1]
    assert (await newest()).state.message == "3/3 states failed."


async def test_cancelled_comes_before_failed_in_a_container() -> None:
    @flow
    async def main() -> Any:
        return [Failed("f"), Cancelled("c"), Completed()]

    with pytest.raises(ExceptionGroup) as caught:
        await main()
    assert [type(each) for each in caught.value.exceptions] == [FailedRunError, RunCancelledError]
    run = await newest()
    assert (run.state.type, run.state.message) == (StateType.CANCELLED, "1/3 states cancelled.")


async def test_paused_in_a_container_comes_before_failed() -> None:
    @flow
    async def main() -> Any:
        return [Failed("f"), Paused("p")]

    state = await main(return_state=True)
    assert (state.type, state.message) == (StateType.PAUSED, "1/2 states paused.")
    assert (await newest()).state.is_paused()


async def test_a_returned_failure_is_retried_like_a_raised_one() -> None:
    calls = 0

    @flow(retries=2)
    async def main() -> Any:
        nonlocal calls
        calls += 1
        return [Failed("again")] if calls < 3 else [Completed(data="now")]

    assert await main() == ["now"]
    run = await newest()
    assert run.run_count == 3
    assert await states_of(run.id) == ["Pending", "Running"] + ["AwaitingRetry", "Retrying"] * 2 + ["Completed"]


# --- generators returned --------------------------------------------------------------------------------


def numbers() -> Iterator[int]:
    yield from range(3)


async def async_numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number


@pytest.mark.parametrize("make", [numbers, async_numbers])
async def test_a_returned_generator_is_consumed_into_a_list(make: Callable[[], Any]) -> None:
    @flow
    async def main() -> Any:
        return make()

    @task
    def sync_main() -> Any:
        return make()

    assert await main() == [0, 1, 2]
    assert await get_client().read_result((await newest()).id) == [0, 1, 2]
    assert await sync_main.acall() == [0, 1, 2]
    state = await main(return_state=True)
    assert state.result() == [0, 1, 2]


@pytest.mark.parametrize("make", [numbers, async_numbers])
def test_a_generator_returned_without_a_loop_is_consumed_too(make: Callable[[], Any]) -> None:
    @flow
    def main() -> Any:
        return make()

    assert main() == [0, 1, 2]


async def test_what_a_returned_generator_calls_belongs_to_the_run() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(3):
            yield await give(number)
        raise ValueError("at its end")

    @flow
    async def main() -> Any:
        return items()

    with pytest.raises(ValueError, match="at its end"):
        await main()
    run = await newest()
    assert run.state.is_failed()
    assert len(await get_client().read_task_runs(flow_run_id=run.id)) == 3


# --- exceptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_an_exception_reaches_the_caller_as_the_same_object_with_its_traceback(colour: str, home: Path) -> None:
    error = ValueError("text")

    def deep() -> None:
        raise error

    @flow
    async def async_body() -> None:
        deep()

    @flow
    def sync_body() -> None:
        deep()

    body: Any = async_body if colour == "async" else sync_body
    with pytest.raises(ValueError, match="text") as caught:
        await body.acall()
    assert caught.value is error
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-2:] == [f"{colour}_body", "deep"]
    assert error.__context__ is None
    assert error.__cause__ is None
    run = await newest()
    assert (run.state.type, run.state.name, run.state.message) == (StateType.FAILED, "Failed", "ValueError: text")
    record = recorded_error(home)
    assert (record["type"], record["message"]) == ("ValueError", "text")
    assert "in deep" in record["traceback"]


async def test_causes_and_notes_are_recorded(home: Path) -> None:
    @flow
    async def main() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            second = ValueError("second")
            second.add_note("while testing")
            raise second from error

    with pytest.raises(ValueError, match="second") as caught:
        await main()
    assert isinstance(caught.value.__cause__, KeyError)
    record = recorded_error(home)
    assert record["cause"]["type"] == "KeyError"
    assert "while testing" in json.dumps(record)


async def test_a_context_is_recorded_and_kept(home: Path) -> None:
    @flow
    async def main() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904  # the implicit context is the point

    with pytest.raises(ValueError, match="second") as caught:
        await main()
    assert isinstance(caught.value.__context__, KeyError)
    assert recorded_error(home)["context"]["type"] == "KeyError"


async def test_a_group_stays_a_group(home: Path) -> None:
    error = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [KeyError("b")])])

    @flow
    async def main() -> None:
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        await main()
    assert caught.value is error
    assert [each["type"] for each in recorded_error(home)["exceptions"]] == ["ValueError", "KeyError"]
    assert (await newest()).state.is_failed()


async def test_a_timeout_error_of_the_body_itself_is_an_ordinary_failure() -> None:
    @flow(timeout_seconds=60)
    async def main() -> None:
        raise TimeoutError("of a server")

    with pytest.raises(TimeoutError, match="of a server"):
        await main()
    assert (await newest()).state.name == "Failed"


async def test_an_exception_that_cannot_be_printed_is_recorded() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    with pytest.raises(Nasty):
        await fail(Nasty())
    assert (await newest_task()).state.is_failed()


async def test_one_exception_object_may_fail_many_runs() -> None:
    error = ValueError("shared")

    @flow
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="shared") as caught:
                await fail(error)
            assert caught.value is error
        raise error

    with pytest.raises(ValueError, match="shared"):
        await main()
    assert error.__context__ is None


async def test_a_stop_iteration_is_a_failure() -> None:
    @task
    def stops() -> None:
        raise StopIteration("sync")

    with pytest.raises(RuntimeError) as caught:  # a coroutine cannot raise it (PEP 479)
        await stops.acall()
    assert isinstance(caught.value.__cause__, StopIteration)
    assert (await newest_task()).state.is_failed()


def test_a_stop_iteration_of_a_sync_body_is_a_failure() -> None:
    @task
    def stops() -> None:
        raise StopIteration("sync")

    with pytest.raises((StopIteration, RuntimeError)):
        stops()
    assert anyio.run(newest_task).state.is_failed()


async def test_a_failure_that_was_handled_leaves_nothing_to_the_garbage_collector() -> None:
    class Big: ...

    seen: list[weakref.ref[Big]] = []

    @task
    async def fails() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        raise ValueError("with a frame that holds something")

    @task
    def fails_in_thread() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        raise ValueError("with a frame that holds something")

    @flow
    async def main() -> list[bool]:
        for each in (fails, fails_in_thread):
            with contextlib.suppress(ValueError):
                await each.acall()
        return [each() is None for each in seen]

    gc.collect()
    gc.disable()
    try:
        assert await main() == [True, True]
    finally:
        gc.enable()


# --- not exceptions ------------------------------------------------------------------------------------------


class Own(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt("k"), SystemExit(3), Own("own")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_what_is_no_exception_crashes_the_run_and_passes_unchanged(error: BaseException, colour: str) -> None:
    @flow
    async def async_body() -> None:
        raise error

    @flow
    def sync_body() -> None:
        raise error

    body: Any = async_body if colour == "async" else sync_body
    with pytest.raises(type(error)) as caught:
        await body.acall()
    assert caught.value is error
    run = await newest()
    assert run.state.is_crashed()
    assert type(error).__name__ in (run.state.message or "")


@pytest.mark.parametrize("error", [KeyboardInterrupt("k"), SystemExit(3), Own("own")], ids=lambda e: type(e).__name__)
def test_what_is_no_exception_crashes_a_sync_run(error: BaseException, anyio_backend: Backend) -> None:
    @task
    def inner() -> None:
        raise error

    @flow
    def main() -> None:
        inner()

    with pytest.raises(type(error)) as caught:
        main()
    assert caught.value is error
    assert anyio.run(newest, backend=anyio_backend[0]).state.is_crashed()
    assert anyio.run(newest_task, backend=anyio_backend[0]).state.is_crashed()


async def test_a_generator_exit_crashes_the_run() -> None:
    with pytest.raises(GeneratorExit):
        await fail(GeneratorExit())
    await give(1)  # its barrier: what was put before is on disk
    assert (await get_client().read_task_runs())[1].state.is_crashed()


async def test_an_interrupt_in_a_group_crashes_the_run() -> None:
    error = BaseExceptionGroup("from a task group", [KeyboardInterrupt()])
    with pytest.raises(BaseExceptionGroup) as caught:
        await fail(error)
    assert caught.value is error
    assert (await newest_task()).state.is_crashed()


# --- invalid parameters --------------------------------------------------------------------------------------


async def test_invalid_parameters_fail_the_run_without_running_it() -> None:
    ran = False

    @flow
    async def main(x: int, y: int = 1) -> None:
        nonlocal ran
        ran = True

    with pytest.raises(ParameterValidationError) as caught:
        await main("many", y="more")  # type: ignore[call-overload]
    assert [path for path, _, _ in caught.value.problems] == ["x", "y"]
    assert not ran
    run = await newest()
    assert await states_of(run.id) == ["Pending", "Failed"]
    assert (run.run_count, run.start_time) == (0, None)
    assert run.parameters == {"x": "many", "y": "more"}
    assert run.end_time is not None
    assert run.name not in ("", "main")  # a name to say, like that of any other run
    state = await main("many", return_state=True)
    assert state.is_failed()
    assert isinstance(state.data, ParameterValidationError)


async def test_invalid_parameters_are_not_retried() -> None:
    @flow(retries=3)
    async def main(x: int) -> None: ...

    with pytest.raises(ParameterValidationError):
        await main("many")  # type: ignore[call-overload]
    assert await states_of((await newest()).id) == ["Pending", "Failed"]


# --- return_state=True ------------------------------------------------------------------------------------------


async def test_return_state_gives_the_state_of_anything_the_run_did() -> None:
    @flow
    async def main(x: int) -> Any:
        return await fail(ValueError("x"), return_state=True)

    @task(timeout_seconds=0.01)
    async def slow() -> None:
        await anyio.sleep(60)

    state = await give(1, return_state=True)
    assert (state.is_completed(), state.result(), state.data) == (True, 1, 1)
    error = ValueError("x")
    state = await fail(error, return_state=True)
    assert state.is_failed()
    assert state.data is error
    assert state.result(raise_on_failure=False) is error
    with pytest.raises(ValueError, match="x"):
        state.result()
    late = await slow(return_state=True)
    assert (late.type, late.name) == (StateType.FAILED, "TimedOut")
    with pytest.raises(TimeoutError):
        late.result()
    assert (await main(1, return_state=True)).is_failed()
    assert (await fail(Own("own"), return_state=True)).is_crashed()
    assert (await give.acall(2, return_state=True)).result() == 2


async def test_the_state_that_was_given_is_the_state_that_was_recorded() -> None:
    state = await give(1, return_state=True)
    run_id = state.state_details.task_run_id
    assert run_id is not None
    recorded = (await get_client().read_states(run_id))[-1]
    assert recorded == state  # by id
    assert recorded.id == state.id
    assert (recorded.name, recorded.timestamp, recorded.type) == (state.name, state.timestamp, state.type)
    assert recorded.state_details == state.state_details


def test_return_state_works_for_sync_calls() -> None:
    @task
    def part(x: int) -> int:
        return 1 // x

    @flow
    def main() -> list[str]:
        return [part(0, return_state=True).type.value, part(1, return_state=True).type.value]

    state = main(return_state=True)
    assert state.result() == ["FAILED", "COMPLETED"]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(2),
        BaseExceptionGroup("of a nursery", [KeyboardInterrupt()]),
        BaseExceptionGroup("of a nursery", [ValueError(), BaseExceptionGroup("inner", [SystemExit(1)])]),
    ],
    ids=["KeyboardInterrupt", "SystemExit", "in a group", "in a group of groups"],
)
async def test_return_state_does_not_hold_back_what_ends_the_program(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        await fail(error, return_state=True)
    assert caught.value is error
    assert (await newest_task()).state.is_crashed()


async def test_return_state_does_not_hide_that_the_record_is_not_on_disk(tmp_path: Path) -> None:
    async with Runtime(tmp_path / "locked", durability_seconds=0.2):
        await give(1)
        connection = sqlite3.connect(tmp_path / "locked" / "asyncflow.db", isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(DurabilityError) as caught:
                await give(2)
            assert caught.value.state.result() == 2
            with pytest.raises(DurabilityError):
                await give(3, return_state=True)
        finally:
            connection.close()


# --- State.result ------------------------------------------------------------------------------------------------


def test_a_state_that_is_not_final_has_no_result() -> None:
    for state in (Pending(), Running(), Scheduled(), Paused()):
        with pytest.raises(UnfinishedRunError, match="no result yet"):
            state.result()
        with pytest.raises(UnfinishedRunError):
            state.result(raise_on_failure=False)


def test_a_failed_state_without_an_exception_raises_its_message() -> None:
    with pytest.raises(FailedRunError, match="the reason") as caught:
        Failed("the reason").result()
    assert caught.value.state.is_failed()
    assert isinstance(Crashed("gone").result(raise_on_failure=False), CrashedRunError)
    with pytest.raises(FailedRunError, match="the run failed"):
        Failed().result()


def test_a_completed_state_gives_its_data() -> None:
    assert Completed(data=[1]).result() == [1]
    assert Completed().result() is None
    assert Completed(data=None).result() is None


async def test_a_state_read_from_the_store_has_no_value_in_memory() -> None:
    await give(1)
    run = await newest_task()
    with pytest.raises(MissingResultError, match="read_result"):
        run.state.result()


def test_a_state_prints_its_name_message_and_type() -> None:
    assert str(Failed("because")) == "Failed('because')"
    assert str(Completed()) == "Completed()"
    assert str(Completed("m", name="Skipped")) == "Skipped('m', type=COMPLETED)"


def test_states_are_equal_by_their_id_alone() -> None:
    state: State[None] = Completed("a")
    assert state == state.with_(timestamp=datetime(2020, 1, 1, tzinfo=UTC))
    assert state != Completed("a")


@pytest.mark.parametrize("type_", StateType)
def test_each_type_has_one_predicate(type_: StateType) -> None:
    state: State[Any] = State(type=type_)
    names = [each.value.lower() for each in StateType]
    assert [name for name in names if getattr(state, f"is_{name}")()] == [type_.value.lower()]
    assert state.is_final() == type_.is_final
    assert state.name == type_.value.title()


# --- what is kept ----------------------------------------------------------------------------------------------------


async def test_a_value_that_is_not_json_is_passed_on_and_the_reason_recorded(caplog: pytest.LogCaptureFixture) -> None:
    class Client: ...

    client = Client()

    @task
    async def connect() -> dict[str, Any]:
        return {"items": [1, client]}

    for _ in range(3):
        assert (await connect())["items"][1] is client
    run = await newest_task()
    assert run.state.is_completed()
    with pytest.raises(MissingResultError, match=r"result\.items\[1\]"):
        await get_client().read_result(run.id)
    warned = [each for each in caplog.records if each.name == "asyncflow" and each.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "'connect'" in warned[0].getMessage()


async def test_a_value_that_must_be_kept_and_is_not_json_fails_the_run() -> None:
    @task(persist_result=True)
    async def connect() -> dict[str, Any]:
        return {"items": [1, object()]}

    with pytest.raises(NotJSONError, match=r"result\.items\[1\] is not JSON"):
        await connect()
    run = await newest_task()
    assert run.state.is_failed()
    assert "result.items[1]" in (run.state.message or "")


async def test_a_value_that_is_not_to_be_kept_is_not(home: Path) -> None:
    @flow(persist_result=False)
    async def main() -> str:
        return "a-secret-value"

    assert await main() == "a-secret-value"
    with pytest.raises(MissingResultError, match="persist_result is off"):
        await get_client().read_result((await newest()).id)
    assert not any(b"a-secret-value" in each.read_bytes() for each in home.rglob("*") if each.is_file())


async def test_the_setting_decides_where_no_option_says(tmp_path: Path) -> None:
    @task(persist_result=True)
    async def kept() -> int:
        return 7

    async with Runtime(tmp_path / "other", persist_results_by_default=False):
        await give(1)
        with pytest.raises(MissingResultError, match="persist_result is off"):
            await get_client().read_result((await newest_task()).id)
        await kept()
        assert await get_client().read_result((await newest_task()).id) == 7


async def test_what_is_recorded_is_the_value_at_the_end_of_the_body() -> None:
    value = [1]
    assert await give(value) is value
    value.append(2)
    assert await get_client().read_result((await newest_task()).id) == [1]


async def test_a_result_of_a_megabyte_is_a_file_and_is_read_back(home: Path) -> None:
    text = "é" * 500_000

    @flow
    async def main() -> dict[str, str]:
        return {"text": text + await give(text[:100_000])}

    value = await main()
    run = await newest()
    assert await get_client().read_result(run.id) == value
    files = sorted((home / "results" / str(run.id)).iterdir())
    assert json.loads((home / "results" / str(run.id) / "result.json").read_bytes()) == value
    part = await newest_task()
    assert await get_client().read_result(part.id) == text[:100_000]
    assert f"{part.id}.json" in {each.name for each in files}
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in files)


async def test_a_result_file_that_was_changed_is_not_believed(home: Path) -> None:
    await returns("x" * 1_000_000)()
    run = await newest()
    path = home / "results" / str(run.id) / "result.json"
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b'y"')
    with pytest.raises(StoreError, match="checksum"):
        await get_client().read_result(run.id)
    path.unlink()
    with pytest.raises(MissingResultError, match="is gone"):
        await get_client().read_result(run.id)


@pytest.mark.parametrize("error", [ValueError("v"), Own("own")], ids=lambda e: type(e).__name__)
async def test_a_run_that_did_not_complete_has_no_result(error: BaseException) -> None:
    assert not (await fail(error, return_state=True)).is_completed()
    with pytest.raises(MissingResultError, match=f"it is .*{type(error).__name__}"):
        await get_client().read_result((await newest_task()).id)
