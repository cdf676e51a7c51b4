"""Pausing and suspending flow runs, in one process: in place and for later, with typed input and without."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from pydantic import BaseModel, Field, SecretStr

from asyncflow import (
    Deployment,
    FlowRunFuture,
    Runtime,
    cancel_flow_run,
    flow,
    get_client,
    pause_flow_run,
    resume_flow_run,
    runtime,
    serve,
    suspend_flow_run,
    task,
)
from asyncflow.abc import RunStore
from asyncflow.exceptions import (
    CannotPauseError,
    CannotResumeError,
    InputTooLargeError,
    InputValidationError,
    NoFlowRunError,
    OptionError,
    PauseTimeoutError,
    RunCancelledError,
    RunNotFoundError,
    RunSuspendedError,
    WaitOnEventLoopError,
)
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing import VirtualClock
from tests.conftest import Backend, uvloop_loop

pytestmark = pytest.mark.anyio

LONG = 60
HOUR = 3600.0


class Approval(BaseModel):
    """What a person is asked for."""

    approved: bool
    by: str = "nobody"


@dataclass
class Move:
    """An input that is a dataclass."""

    x: int
    y: int = 0


Open = Callable[..., Runtime]


@pytest.fixture(params=["memory", "sqlite"])
def open_runtime(request: pytest.FixtureRequest, home: Path) -> Open:
    """Opens a runtime; opened again, it has what the one before recorded."""
    memory: MemoryStore | None = MemoryStore() if request.param == "memory" else None

    def make(**fields: Any) -> Runtime:
        if memory is None:
            return Runtime(home, **fields)
        memory._closed = False  # as another process would find a database
        store: RunStore = memory
        return Runtime(home, store=store, **fields)

    return make


async def until_paused(future: FlowRunFuture[Any], key: str | None = None) -> None:
    """Wait until a run is Paused, in that pause."""
    with anyio.fail_after(LONG):
        while not (future.state.is_paused() and key in (None, future.state.state_details.pause_key)):
            await anyio.sleep(0.001)


async def states_of(run_id: UUID) -> list[str]:
    return [state.name for state in await get_client().read_states(run_id)]


# --- in place --------------------------------------------------------------------------------


async def test_a_paused_flow_goes_on_when_it_is_resumed(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> str:
        await pause_flow_run()
        return "done"

    async with open_runtime():
        future = pipeline.submit()
        await until_paused(future)
        details = future.state.state_details
        assert (details.pause_key, details.input_schema) == ("1", None)
        assert details.pause_timeout is not None
        assert timedelta(0) < details.pause_timeout - future.state.timestamp <= timedelta(hours=1)
        assert await resume_flow_run(future.flow_run_id) is None
        assert await future == "done"
        assert await states_of(future.flow_run_id) == ["Pending", "Running", "Paused", "Running", "Completed"]


@pytest.mark.parametrize(
    ("type_", "given", "expected"),
    [
        (Approval, {"approved": "yes"}, Approval(approved=True)),
        (Approval, Approval(approved=False, by="me"), Approval(approved=False, by="me")),
        (Move, {"x": 3}, Move(3)),
        (Move, Move(1, 2), Move(1, 2)),
        (int, "7", 7),
        (str, "word", "word"),
        (list[int], [1, "2"], [1, 2]),
        (int | str, "seven", "seven"),
        (Literal["yes", "no"], "no", "no"),
        (Annotated[int, Field(gt=0)], 5, 5),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
    ],
    ids=lambda each: getattr(each, "__name__", str(each))[:30],
)
async def test_an_input_comes_as_the_type_that_was_asked_for(
    open_runtime: Open, type_: Any, given: Any, expected: Any
) -> None:
    @flow(persist_result=False)
    async def ask() -> Any:
        return await pause_flow_run(wait_for_input=type_)

    async with open_runtime():
        future = ask.submit()
        await until_paused(future)
        assert future.state.state_details.input_schema
        await resume_flow_run(future.flow_run_id, run_input=given)
        value = await future
        assert value == expected
        assert type(value) is type(expected)


async def test_an_input_that_does_not_fit_is_told_to_who_gave_it_and_the_run_stays_paused(open_runtime: Open) -> None:
    class Person(BaseModel):
        age: int
        approval: Approval

    @flow
    async def ask() -> int:
        return (await pause_flow_run(wait_for_input=Person)).age

    async with open_runtime():
        future = ask.submit()
        await until_paused(future)
        with pytest.raises(InputValidationError) as caught:
            await resume_flow_run(future.flow_run_id, run_input={"age": "old", "approval": {}})
        assert [problem[0] for problem in caught.value.problems] == ["age", "approval.approved"]
        assert "age: Input should be a valid integer" in str(caught.value)
        assert "got 'old'" in str(caught.value)
        assert str(future.flow_run_id) in str(caught.value)
        with pytest.raises(InputValidationError, match="It waits for one, and none was given"):
            await resume_flow_run(future.flow_run_id)
        assert future.state.is_paused()
        await resume_flow_run(future.flow_run_id, run_input={"age": 5, "approval": {"approved": True}})
        assert await future == 5


async def test_an_input_may_be_left_out_where_everything_in_it_has_a_default(open_runtime: Open) -> None:
    class Options(BaseModel):
        depth: int = 3

    @flow
    async def ask() -> int:
        return (await pause_flow_run(wait_for_input=Options)).depth

    async with open_runtime():
        future = ask.submit()
        await until_paused(future)
        await resume_flow_run(future.flow_run_id)
        assert await future == 3


async def test_what_is_secret_in_an_input_is_in_no_message(open_runtime: Open) -> None:
    class Login(BaseModel):
        password: SecretStr = Field(min_length=20)

    @flow
    async def ask() -> int:
        return len((await pause_flow_run(wait_for_input=Login)).password.get_secret_value())

    async with open_runtime():
        future = ask.submit()
        await until_paused(future)
        with pytest.raises(InputValidationError) as caught:
            await resume_flow_run(future.flow_run_id, run_input={"password": "hunter2"})
        assert "password" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        await resume_flow_run(future.flow_run_id, run_input={"password": "x" * 20})
        assert await future == 20


async def test_a_run_that_waits_for_nothing_takes_no_input(open_runtime: Open) -> None:
    @flow
    async def ask() -> None:
        await pause_flow_run()

    async with open_runtime():
        future = ask.submit()
        await until_paused(future)
        with pytest.raises(CannotResumeError, match="waits for no input"):
            await resume_flow_run(future.flow_run_id, run_input=1)
        with pytest.raises(CannotResumeError, match="it is in no pause 'other', but in '1'"):
            await resume_flow_run(future.flow_run_id, key="other")
        await resume_flow_run(future.flow_run_id)
        await future


async def test_an_input_is_no_larger_than_parameters(open_runtime: Open) -> None:
    @flow
    async def ask() -> int:
        return len(await pause_flow_run(wait_for_input=str))

    async with open_runtime(parameters_limit=100):
        future = ask.submit()
        await until_paused(future)
        with pytest.raises(InputTooLargeError, match="103 bytes"):
            await resume_flow_run(future.flow_run_id, run_input="é" * 50 + "x")
        await resume_flow_run(future.flow_run_id, run_input="x" * 98)
        assert await future == 98


async def test_twenty_pauses_in_a_row(open_runtime: Open) -> None:
    @flow
    async def count() -> list[int]:
        return [await pause_flow_run(wait_for_input=int, key=f"step {number}") for number in range(20)]

    async with open_runtime():
        future = count.submit()
        for number in range(20):
            await until_paused(future, f"step {number}")
            await resume_flow_run(future.flow_run_id, run_input=number * 10, key=f"step {number}")
        assert await future == [number * 10 for number in range(20)]
        names = await states_of(future.flow_run_id)
        assert names == ["Pending", "Running", *["Paused", "Running"] * 20, "Completed"]


async def test_several_pauses_at_a_time_are_told_apart_by_their_keys(open_runtime: Open) -> None:
    @task
    async def ask(who: str) -> str:
        return await pause_flow_run(wait_for_input=str, key=who)

    @flow
    async def everybody() -> list[str]:
        return [await future for future in ask.map(["anna", "ben", "cleo"])]

    async with open_runtime():
        future = everybody.submit()
        services = future.run.services
        with anyio.fail_after(LONG):
            while len(services.pauses.get(future.run.id, ())) < 3:
                await anyio.sleep(0.001)
        first, second, third = (pause.key for pause in services.pauses[future.run.id])  # in whichever order they came
        assert future.state.state_details.pause_key == first
        await resume_flow_run(future.flow_run_id, run_input=second.upper(), key=second)
        assert future.state.state_details.pause_key == first
        await resume_flow_run(future.flow_run_id, run_input=first.upper())
        assert future.state.state_details.pause_key == third
        await resume_flow_run(future.flow_run_id, run_input=third.upper())
        assert await future == ["ANNA", "BEN", "CLEO"]
        assert not services.pauses
        paused = [state for state in await get_client().read_states(future.flow_run_id) if state.is_paused()]
        assert [state.state_details.pause_key for state in paused] == [first, third]


async def test_whoever_is_second_to_resume_is_told(open_runtime: Open) -> None:
    @flow
    async def ask() -> int:
        return await pause_flow_run(wait_for_input=int)

    async with open_runtime():
        future = ask.submit()
        await until_paused(future)
        refused: list[CannotResumeError] = []
        taken: list[int] = []

        async def resume(number: int) -> None:
            try:
                await resume_flow_run(future.flow_run_id, run_input=number)
            except CannotResumeError as error:
                refused.append(error)
            else:
                taken.append(number)

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(resume, number)
        assert len(refused) == 4
        assert [await future] == taken


async def test_a_nested_flow_is_paused_itself(open_runtime: Open) -> None:
    ids: list[UUID] = []

    @flow
    async def inner() -> int:
        assert runtime.flow_run.id is not None
        ids.append(runtime.flow_run.id)
        return await pause_flow_run(wait_for_input=int, key="inside")

    @flow
    async def outer() -> int:
        return await inner() + 1

    async with open_runtime():
        future = outer.submit()
        with anyio.fail_after(LONG):
            while not future.run.services.pauses:
                await anyio.sleep(0.001)
        assert future.state.is_running()
        with pytest.raises(CannotResumeError, match=f"nested in it is in the pause 'inside'.*{ids[0]}"):
            await resume_flow_run(future.flow_run_id, run_input=1)
        await resume_flow_run(ids[0], run_input=1)
        assert await future == 2
        assert await states_of(ids[0]) == ["Pending", "Running", "Paused", "Running", "Completed"]
        assert await states_of(future.flow_run_id) == ["Pending", "Running", "Completed"]


async def test_sync_bodies_pause_too(open_runtime: Open) -> None:
    @task
    def ask(what: str) -> int:
        return pause_flow_run(wait_for_input=int, key=what).result()

    @flow
    def pipeline() -> int:
        return ask("task") + pause_flow_run(wait_for_input=int, key="flow").result()

    async with open_runtime():
        future = pipeline.submit()
        await until_paused(future, "task")
        await resume_flow_run(future.flow_run_id, run_input=1)
        await until_paused(future, "flow")
        await resume_flow_run(future.flow_run_id, run_input=2)
        assert await future == 3


def test_a_sync_flow_of_a_script_pauses(home: Path) -> None:
    ids: list[UUID] = []

    @flow
    def pipeline() -> int:
        assert runtime.flow_run.id is not None
        ids.append(runtime.flow_run.id)
        return pause_flow_run(wait_for_input=int, timeout=LONG).result()

    def resume() -> None:
        while True:
            try:
                resume_flow_run(ids[0], run_input=4).result()
            except (CannotResumeError, IndexError):
                continue
            return

    with Runtime(home):
        thread = threading.Thread(target=resume)
        thread.start()
        assert pipeline() == 4
        thread.join()


async def test_on_a_loop_the_result_is_not_waited_for(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> None:
        with pytest.raises(WaitOnEventLoopError, match=r"await pause_flow_run\(\.\.\.\)"):
            pause_flow_run().result()

    async with open_runtime():
        await pipeline()


async def test_a_paused_run_can_be_cancelled(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> None:
        await pause_flow_run(timeout=None)

    async with open_runtime():
        future = pipeline.submit()
        await until_paused(future)
        state = await cancel_flow_run(future.flow_run_id, reason="no answer")
        assert state.is_cancelled()
        with pytest.raises(RunCancelledError, match="no answer"):
            await future
        assert await states_of(future.flow_run_id) == ["Pending", "Running", "Paused", "Cancelled"]
        with pytest.raises(CannotPauseError, match="Only a run that goes on"):
            await pause_flow_run(future.flow_run_id)


# --- in time ---------------------------------------------------------------------------------


@pytest.fixture
def clock(anyio_backend: Backend, quiet_process: None) -> Iterator[VirtualClock]:
    """Virtual time, in which an hour is nothing."""
    if anyio_backend[1].get("loop_factory") is uvloop_loop:
        pytest.skip("uvloop keeps its own time")
    with VirtualClock(io_seconds=0.05) as clock, Runtime(store=MemoryStore(), clock=clock):
        yield clock


async def test_a_pause_has_its_time(clock: VirtualClock) -> None:
    seen: list[tuple[float, str]] = []

    @flow
    async def handled() -> str:
        before = clock.monotonic()
        try:
            await pause_flow_run(timeout=timedelta(hours=1), key="approval")
        except PauseTimeoutError as error:
            seen.append((clock.monotonic() - before, str(error)))
            return "without"
        return "never"

    @flow
    async def unhandled() -> None:
        await pause_flow_run(timeout=5)

    assert await handled() == "without"
    state = await unhandled(return_state=True)
    [run, _] = await get_client().read_flow_runs()
    told = f"run {run.name!r} was not resumed within 5 seconds (its pause '1')"
    assert (state.type.name, state.message) == ("FAILED", f"PauseTimeoutError: {told}")
    assert await states_of(run.id) == ["Pending", "Running", "Paused", "Running", "Failed"]
    assert len(seen) == 1
    assert seen[0][0] == pytest.approx(HOUR)


# --- from outside ----------------------------------------------------------------------------


async def test_nothing_more_begins_in_a_run_that_is_paused_from_outside(open_runtime: Open) -> None:
    begun: list[int] = []
    ready, go_on = anyio.Event(), anyio.Event()

    @task
    async def work(number: int) -> int:
        begun.append(number)
        return number

    @flow
    async def pipeline() -> list[int]:
        first = await work(1)
        ready.set()
        await go_on.wait()
        return [first, await work(2)]

    async with open_runtime():
        future = pipeline.submit()
        await ready.wait()
        await pause_flow_run(future.flow_run_id)
        assert future.state.is_paused()
        go_on.set()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert begun == [1]
        with pytest.raises(CannotResumeError, match="waits for no input"):
            await resume_flow_run(future.flow_run_id, run_input=1)
        state = await resume_flow_run(future.flow_run_id, return_state=True)
        assert not state.is_paused()  # it may have completed already
        assert await future == [1, 2]
        with pytest.raises(CannotPauseError, match="Completed"):
            await pause_flow_run(future.flow_run_id)


async def test_what_cannot_be_paused_says_why(open_runtime: Open) -> None:
    ids: list[UUID] = []
    ready, go_on = anyio.Event(), anyio.Event()

    @flow
    async def inner() -> None:
        assert runtime.flow_run.id is not None
        ids.append(runtime.flow_run.id)
        ready.set()
        await go_on.wait()

    @flow
    async def outer() -> None:
        await inner()

    async with open_runtime():
        future = outer.submit()
        await ready.wait()
        for order in (pause_flow_run, suspend_flow_run):
            with pytest.raises(CannotPauseError, match=f"Pause or suspend that one: {future.flow_run_id}"):
                await order(ids[0])
            with pytest.raises(RunNotFoundError):
                await order(uuid4())
            with pytest.raises(RunNotFoundError):
                await order("not an id")
            with pytest.raises(NoFlowRunError, match="outside of any flow run"):
                await order()
            with pytest.raises(OptionError, match="key='k'"):
                order(ids[0], key="k")  # type: ignore[call-overload]
        with pytest.raises(CannotResumeError, match="goes on"):
            await resume_flow_run(future.flow_run_id)
        with pytest.raises(RunNotFoundError):
            await resume_flow_run(uuid4())
        go_on.set()
        await future


def test_options_are_checked_where_they_are_written() -> None:
    for order in (pause_flow_run, suspend_flow_run):
        with pytest.raises(OptionError, match="timeout='soon'"):
            order(timeout="soon")  # type: ignore[call-overload]
        with pytest.raises(OptionError, match="key=''"):
            order(key="")


async def test_a_type_that_nothing_can_be_checked_against_is_refused(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> None:
        await pause_flow_run(wait_for_input=object())

    async with open_runtime():
        with pytest.raises(OptionError, match="wait_for_input"):
            await pipeline()


# --- suspending ------------------------------------------------------------------------------


async def test_a_suspended_run_goes_on_with_its_input_in_another_runtime(open_runtime: Open) -> None:
    done: list[str] = []

    @task
    async def work(name: str) -> str:
        done.append(name)
        return name

    @flow
    async def pipeline() -> list[Any]:
        first = await work("first")
        approval = await suspend_flow_run(wait_for_input=Approval, key="approval")
        return [first, approval.by, await work("second")]

    async with open_runtime():
        with pytest.raises(RunSuspendedError, match="suspended in its pause 'approval'"):
            await pipeline()
        [run] = await get_client().read_flow_runs()
        details = run.state.state_details
        assert (run.state.type.name, run.state.name, details.pause_key) == ("PAUSED", "Suspended", "approval")
        assert details.input_schema is not None
        assert set(details.input_schema["properties"]) == {"approved", "by"}
        assert details.pause_timeout is None
    async with open_runtime():
        with pytest.raises(InputValidationError, match="It waits for one, and none was given"):
            await resume_flow_run(run.id)
        with pytest.raises(InputValidationError, match="approved: Field required"):
            await resume_flow_run(run.id, run_input={})
        assert await resume_flow_run(run.id, run_input={"approved": True, "by": "me"}) == ["first", "me", "second"]
        assert done == ["first", "second"]
        names = await states_of(run.id)
        assert names == ["Pending", "Running", "Suspended", "Resuming", "Retrying", "Completed"]
        with pytest.raises(CannotResumeError, match="Completed"):
            await resume_flow_run(run.id)


async def test_an_input_that_does_not_fit_suspends_the_run_again(open_runtime: Open) -> None:
    """What only its type tells is found out when the body reads it; nothing is lost by that."""

    @flow
    async def pipeline() -> int:
        count: int = await suspend_flow_run(wait_for_input=Annotated[int, Field(gt=0)], key="count")
        return count

    async with open_runtime():
        await pipeline(return_state=True)
        [run] = await get_client().read_flow_runs()
        with pytest.raises(RunSuspendedError, match=r"(?s)again: .*greater than 0, got -5"):
            await resume_flow_run(run.id, run_input=-5)
        state = (await get_client().read_flow_run(run.id)).state
        assert (state.name, state.state_details.pause_key) == ("Suspended", "count")
        assert await resume_flow_run(run.id, run_input=5) == 5


async def test_suspending_from_a_task_a_nested_flow_and_a_sync_body(open_runtime: Open) -> None:
    @task
    def ask(what: str) -> int:
        return suspend_flow_run(wait_for_input=int, key=what).result()

    @flow
    async def inner() -> int:
        return await ask.acall("task") + await suspend_flow_run(wait_for_input=int, key="nested")

    @flow
    def outer() -> int:
        return inner.submit().result() + suspend_flow_run(wait_for_input=int, key="outer").result()

    async with open_runtime():
        state = await outer.acall(return_state=True)
        assert (state.name, state.state_details.pause_key) == ("Suspended", "task")
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        tree = await get_client().read_tree(run_id)
        assert {run.state.name for run in tree} == {"Suspended"}, [str(run.state) for run in tree]
        for number, key in enumerate(["nested", "outer"]):
            state = await resume_flow_run(run_id, run_input=10**number, return_state=True)
            assert (state.name, state.state_details.pause_key) == ("Suspended", key)
        assert await resume_flow_run(run_id, run_input=100) == 111


def test_a_sync_flow_of_a_script_is_suspended(home: Path) -> None:
    @flow
    def pipeline() -> int:
        return suspend_flow_run(wait_for_input=int).result() + 1

    @flow
    async def on_a_loop() -> int:
        return await suspend_flow_run(wait_for_input=int) + 2

    with Runtime(home):
        with pytest.raises(RunSuspendedError):
            pipeline()
        [run] = anyio.run(partial(get_client().read_flow_runs, name=None))
        assert resume_flow_run(run.id, run_input=1).result() == 2
        state: Any = anyio.run(partial(on_a_loop, return_state=True))
        assert resume_flow_run(state.state_details.flow_run_id, run_input=1).result() == 3


async def test_being_suspended_is_no_failed_attempt(open_runtime: Open) -> None:
    failed: list[int] = []

    @flow(retries=1)
    async def pipeline() -> int:
        total = sum([await suspend_flow_run(wait_for_input=int) for _ in range(4)])
        if not failed:
            failed.append(total)
            raise ConnectionError
        return total

    async with open_runtime():
        state = await pipeline(return_state=True)
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        for number in range(3):
            assert (await resume_flow_run(run_id, run_input=number, return_state=True)).name == "Suspended"
        assert await resume_flow_run(run_id, run_input=3) == 6
        assert failed == [6]


async def test_suspending_from_outside(open_runtime: Open) -> None:
    ran = 0
    ready = anyio.Event()

    @flow
    async def pipeline() -> str:
        nonlocal ran
        ran += 1
        if ran == 1:
            ready.set()
            await anyio.sleep(LONG)
        return "done"

    async with open_runtime():
        future = pipeline.submit()
        await ready.wait()
        await suspend_flow_run(future.flow_run_id)
        assert future.state.name == "Suspended"
        assert future.state.message == "suspended through suspend_flow_run"
        with pytest.raises(CannotResumeError, match="waits for no input"):
            await resume_flow_run(future.flow_run_id, run_input=1)
        assert await resume_flow_run(future.flow_run_id) == "done"


async def test_a_suspended_run_can_be_cancelled(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> None:
        await suspend_flow_run()

    async with open_runtime():
        state = await pipeline(return_state=True)
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        with pytest.raises(CannotPauseError, match="Suspended"):
            await pause_flow_run(run_id)
        assert (await cancel_flow_run(run_id)).is_cancelled()


@pytest.mark.parametrize("given", [None, 3])
async def test_of_two_who_resume_one_counts(open_runtime: Open, given: int | None) -> None:
    """Also where both have written what they want before either has taken the run."""
    begun = 0
    let_go = anyio.Event()

    @flow
    async def pipeline() -> Any:
        nonlocal begun
        begun += 1
        value = await suspend_flow_run(wait_for_input=None if given is None else int)
        await let_go.wait()
        return value

    async with open_runtime():
        state = await pipeline(return_state=True)
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        values: list[Any] = []
        refused: list[str] = []

        async def resume(number: int | None) -> None:
            try:
                values.append(await resume_flow_run(run_id, run_input=number))
            except CannotResumeError as error:
                refused.append(error.why)
                let_go.set()

        async with anyio.create_task_group() as group:
            for turn in range(4):
                group.start_soon(resume, None if given is None else given + turn)
        assert len(values) == 1
        assert len(refused) == 3
        assert begun == 2


# --- a second life ---------------------------------------------------------------------------


async def test_a_paused_run_whose_runtime_stops_resumes_into_the_pause(open_runtime: Open) -> None:
    asked: list[str] = []

    @flow
    async def pipeline() -> list[int]:
        asked.append("first")
        first = await pause_flow_run(wait_for_input=int, key="first")
        asked.append("second")
        return [first, await pause_flow_run(wait_for_input=int, key="second")]

    async with open_runtime(drain_seconds=0):
        future = pipeline.submit()
        await until_paused(future, "first")
        await resume_flow_run(future.flow_run_id, run_input=1)
        await until_paused(future, "second")
    assert future.state.name == "Interrupted"
    async with open_runtime(), anyio.create_task_group() as group:
        values: list[list[int]] = []

        async def go_on() -> None:
            values.append(await resume_flow_run(future.flow_run_id))

        group.start_soon(go_on)
        with anyio.fail_after(LONG):
            while (await states_of(future.flow_run_id))[-1] != "Paused":
                await anyio.sleep(0.001)
        state = (await get_client().read_flow_run(future.flow_run_id)).state
        assert state.state_details.pause_key == "second"  # the first was answered
        await resume_flow_run(future.flow_run_id, run_input=2)
    assert values == [[1, 2]]
    assert asked == ["first", "second", "first", "second"]


async def test_a_body_gets_the_answer_of_its_own_pause_again(open_runtime: Open) -> None:
    """Also where a task that paused before it has completed, and does not pause any more."""

    @task
    async def ask() -> int:
        return await pause_flow_run(wait_for_input=int)

    is_broken = True

    @flow
    async def pipeline() -> list[int]:
        values = [await ask(), await pause_flow_run(wait_for_input=int), await ask()]
        if is_broken:
            raise ConnectionError
        return values

    async with open_runtime():
        future = pipeline.submit()
        for number in range(3):
            with anyio.fail_after(LONG):
                while not future.state.is_paused():
                    await anyio.sleep(0.001)
            await resume_flow_run(future.flow_run_id, run_input=number)
        with pytest.raises(ConnectionError):
            await future
        is_broken = False
        assert await resume_flow_run(future.flow_run_id) == [0, 1, 2]


async def test_a_retried_attempt_gets_the_answers_again(open_runtime: Open) -> None:
    ran = 0

    @flow(retries=1)
    async def pipeline() -> int:
        nonlocal ran
        ran += 1
        value = await pause_flow_run(wait_for_input=int)
        if ran == 1:
            raise ConnectionError
        return value

    async with open_runtime():
        future = pipeline.submit()
        await until_paused(future)
        await resume_flow_run(future.flow_run_id, run_input=5)
        assert await future == 5
        assert ran == 2


async def test_a_run_that_does_not_wait_takes_no_input(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> None:
        raise ConnectionError

    async with open_runtime():
        state = await pipeline(return_state=True)
        run_id = state.state_details.flow_run_id
        assert run_id is not None
        with pytest.raises(CannotResumeError, match="waits for no input"):
            await resume_flow_run(run_id, run_input=1)


async def test_a_suspension_has_its_time(clock: VirtualClock) -> None:
    told: list[str] = []

    @flow
    async def pipeline() -> str:
        try:
            await suspend_flow_run(wait_for_input=int, timeout=timedelta(days=30))
        except PauseTimeoutError as error:
            told.append(str(error))
            return "too late"
        return "in time"

    early, late = [(await pipeline(return_state=True)).state_details.flow_run_id for _ in range(2)]
    assert early is not None
    assert late is not None
    await anyio.sleep(29 * 24 * HOUR)
    assert await resume_flow_run(early, run_input=1) == "in time"
    await anyio.sleep(2 * 24 * HOUR)
    with pytest.raises(CannotResumeError, match="has taken no input since"):
        await resume_flow_run(late, run_input=1)
    assert await resume_flow_run(late) == "too late"
    assert len(told) == 1


# --- runs of deployments ---------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(deployment: Deployment) -> AsyncIterator[None]:
    """Serve a deployment around the block, which begins when that is known."""
    async with anyio.create_task_group() as group:
        group.start_soon(serve, deployment)
        with anyio.fail_after(LONG):
            while not await get_client().read_deployments():
                await anyio.sleep(0.005)
        yield
        group.cancel_scope.cancel()


async def until_state(run_id: UUID, name: str) -> None:
    with anyio.fail_after(LONG):
        while (await states_of(run_id))[-1] != name:
            await anyio.sleep(0.002)


async def test_a_suspended_run_of_a_deployment_goes_on_where_that_is_served(open_runtime: Open) -> None:
    done: list[str] = []

    @task
    async def work(name: str) -> None:
        done.append(name)

    @flow
    async def approvals() -> str:
        await work("before")
        word: str = await suspend_flow_run(wait_for_input=Annotated[str, Field(min_length=3)])
        await work("after")
        return word

    async with open_runtime():
        client, deployment = get_client(), approvals.to_deployment("daily")
        async with served(deployment):
            run = await client.create_flow_run_from_deployment("approvals/daily")
            await until_state(run.id, "Suspended")
        with pytest.raises(InputValidationError, match="none was given"):
            await resume_flow_run(run.id)
        state = await resume_flow_run(run.id, run_input="no", return_state=True)
        assert state.is_scheduled()
        async with served(deployment):
            await until_state(run.id, "Suspended")  # the server has found that it is too short
            assert "at least 3 characters, got 'no'" in str((await client.read_states(run.id))[-1].message)
            assert await resume_flow_run(run.id, run_input="yes") is None
            await until_state(run.id, "Completed")
        assert await client.read_result(run.id) == "yes"
        assert done == ["before", "after"]


async def test_a_suspended_run_of_a_deployment_goes_on_here_if_that_is_wanted(open_runtime: Open) -> None:
    @flow
    async def approvals() -> int:
        return await suspend_flow_run(wait_for_input=int)

    async with open_runtime():
        async with served(approvals.to_deployment("daily")):
            run = await get_client().create_flow_run_from_deployment("approvals/daily")
            await until_state(run.id, "Suspended")
        assert await resume_flow_run(run.id, run_input=4, flow=approvals) == 4


async def test_a_run_that_waits_to_be_started_is_cancelled(open_runtime: Open) -> None:
    @flow
    async def approvals() -> None: ...

    async with open_runtime():
        client = get_client()
        async with served(approvals.to_deployment("daily")):
            pass
        run = await client.create_flow_run_from_deployment("approvals/daily")
        for order in (pause_flow_run, suspend_flow_run):
            with pytest.raises(CannotPauseError, match=r"has not begun\. Cancel it, or pause its deployment"):
                await order(run.id)
        with pytest.raises(CannotResumeError, match="waits to be started"):
            await resume_flow_run(run.id)
        state = await cancel_flow_run(run.id, reason="not today")
        assert (state.type.name, state.message) == ("CANCELLED", "cancelled through cancel_flow_run: not today")
        assert await cancel_flow_run(run.id) == state


async def test_nothing_of_it_is_kept_when_it_is_over(open_runtime: Open) -> None:
    @flow
    async def pipeline() -> int:
        return await pause_flow_run(wait_for_input=int)

    async def resumed(future: FlowRunFuture[int], number: int) -> int:
        await until_paused(future)
        await resume_flow_run(future.flow_run_id, run_input=number)
        return await future

    async with open_runtime() as opened:
        services = opened.services
        assert services is not None
        for number in range(5):
            assert await resumed(pipeline.submit(), number) == number
        await anyio.lowlevel.checkpoint()
        assert not services.pauses
        assert not services.held
