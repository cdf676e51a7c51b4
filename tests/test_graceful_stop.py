"""Leaving a runtime: no new runs, a drain window, a clean-up window, and what is left Interrupted and resumable."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

from asyncflow import (
    FlowRun,
    Runtime,
    TaskRun,
    cancel_flow_run,
    checkpoint,
    detached,
    flow,
    get_client,
    resume_flow_run,
    task,
)
from asyncflow.exceptions import CannotCancelNestedRunError, RunInterruptedError, RuntimeStoppingError
from asyncflow.states import StateType
from asyncflow.stores.memory import MemoryStore
from tests.conftest import Backend

LONG = 60.0


async def tree_of(run_id: Any, home: Path) -> list[FlowRun | TaskRun]:
    async with get_client(Runtime(home)) as client:
        return await client.read_tree(run_id)


async def test_what_ends_in_the_drain_window_is_completed(home: Path) -> None:
    release = anyio.Event()

    @flow
    async def slow() -> int:
        await release.wait()
        return 3

    async def let_go() -> None:
        await anyio.sleep(0.02)
        release.set()

    async with anyio.create_task_group() as group, Runtime(home, drain_seconds=LONG):
        future = slow.submit()
        group.start_soon(let_go)
    assert future.done()
    assert future.state.is_completed()
    assert await future == 3


async def test_what_goes_on_after_the_drain_window_is_interrupted_with_everything_below(home: Path) -> None:
    cleaned: list[str] = []

    @task
    async def leaf(name: str) -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            cleaned.append(name)

    @flow
    async def inner() -> None:
        await leaf("nested")

    @flow
    async def outer() -> None:
        leaf.submit("submitted")
        await inner()

    async with Runtime(home, drain_seconds=0.05):
        future = outer.submit()
        while len(future.run.children or ()) < 2:
            await anyio.sleep(0.001)
    assert sorted(cleaned) == ["nested", "submitted"]
    with pytest.raises(RunInterruptedError, match="interrupted because its runtime is stopping") as caught:
        await future
    assert caught.value.state.type is StateType.PAUSED
    runs = await tree_of(future.flow_run_id, home)
    assert [(run.state.type, run.state.name) for run in runs] == [(StateType.PAUSED, "Interrupted")] * 5
    assert [run.end_time for run in runs] == [None] * 5


async def test_it_goes_on_where_it_was(home: Path) -> None:
    ran: list[str] = []
    proceed = False

    @task
    async def first() -> int:
        ran.append("first")
        return 1

    @task
    async def second() -> int:
        ran.append("second")
        if not proceed:
            await anyio.sleep(LONG)
        return 2

    @flow
    async def both(base: int) -> int:
        return base + await first() + await second()

    async with Runtime(home, drain_seconds=0):
        future = both.submit(10)
        while ran != ["first", "second"]:
            await anyio.sleep(0.001)
    proceed = True
    async with Runtime(home):
        assert await resume_flow_run(future.flow_run_id) == 13
    assert ran == ["first", "second", "second"]
    states = [run.state.name for run in await tree_of(future.flow_run_id, home)]
    assert states == ["Completed"] * 3


async def test_the_next_start_resumes_what_asks_for_it(home: Path) -> None:
    ran: list[int] = []

    @flow(resume="auto")
    async def steady(n: int) -> int:
        ran.append(n)
        if len(ran) == 1:
            await anyio.sleep(LONG)
        return n * 2

    async with Runtime(home, drain_seconds=0):
        future = steady.submit(21)
        while not ran:
            await anyio.sleep(0.001)
    async with Runtime(home, drain_seconds=LONG):
        pass
    assert ran == [21, 21]
    async with Runtime(home) as runtime:
        client = get_client(runtime)
        assert await client.read_result(future.flow_run_id) == 42
        states = [state.name for state in await client.read_states(future.flow_run_id)]
    assert states == ["Pending", "Running", "Interrupted", "Resuming", "Retrying", "Completed"]


async def test_stopping_any_number_of_times_does_not_count_as_dying(home: Path) -> None:
    """Ten deploys are no reason to give a run up."""
    ran = 0

    @flow(resume="auto")
    async def patient() -> None:
        nonlocal ran
        ran += 1
        if ran <= 12:
            await anyio.sleep(LONG)

    async with Runtime(home, drain_seconds=0):
        future = patient.submit()
        while not ran:
            await anyio.sleep(0.001)
    for turn in range(2, 13):
        async with Runtime(home, drain_seconds=0):
            while ran < turn:
                await anyio.sleep(0.001)
    async with Runtime(home, drain_seconds=LONG):
        pass
    assert [run.state.name for run in await tree_of(future.flow_run_id, home)] == ["Completed"]


async def test_a_run_that_was_stopped_before_it_began_keeps_its_parameters(home: Path) -> None:
    @flow
    async def told(word: str) -> str:
        return word

    async with Runtime(home, drain_seconds=0):
        future = told.submit("hello")
    assert future.state.name == "Interrupted"
    async with Runtime(home):
        assert await resume_flow_run(future.flow_run_id) == "hello"


@pytest.mark.parametrize("answer", ["value", "error"])
async def test_a_body_may_answer(home: Path, answer: str) -> None:
    began = anyio.Event()

    @task
    async def leaf() -> None:
        began.set()
        await anyio.sleep(LONG)

    @flow
    async def stubborn() -> str:
        try:
            await leaf()
        except BaseException:
            if answer == "value":
                return "all the same"
            raise LookupError("no") from None
        return "never"

    async with Runtime(home, drain_seconds=0):
        future = stubborn.submit()
        await began.wait()
    if answer == "value":
        assert await future == "all the same"
    else:
        with pytest.raises(LookupError):
            await future
    outer, inner = await tree_of(future.flow_run_id, home)
    assert outer.state.type is (StateType.COMPLETED if answer == "value" else StateType.FAILED)
    # It has its final state, so everything it started has its own.
    assert inner.state.is_cancelled()
    assert inner.state.message == f"cancelled because its flow run {future.name!r} ended without it"


async def test_a_body_that_does_not_end_is_interrupted_with_everything_below_in_one_commit(home: Path) -> None:
    let_go = anyio.Event()
    inside = anyio.Event()

    @task
    async def deaf() -> None:
        inside.set()
        while not let_go.is_set():
            with suppress(BaseException), anyio.CancelScope(shield=True):
                await let_go.wait()

    @flow
    async def outer() -> None:
        await deaf()

    started = time.monotonic()
    async with Runtime(home, drain_seconds=0.01, grace_seconds=0.1):
        future = outer.submit()
        await inside.wait()
    assert time.monotonic() - started < 0.01 + 0.1 + 2
    let_go.set()
    outer_run, inner = await tree_of(future.flow_run_id, home)
    for run in (outer_run, inner):
        assert run.state.name == "Interrupted"
        assert "ignored" in (run.state.message or "")
    await anyio.wait_all_tasks_blocked()


async def test_a_sync_body_is_told_and_its_thread_does_not_hold_the_stop(home: Path) -> None:
    inside, let_go = threading.Event(), threading.Event()
    stopped: list[str] = []

    @task
    def polite() -> None:
        try:
            while True:
                checkpoint()
                time.sleep(0.001)
        finally:
            stopped.append("polite")

    @task
    def deaf() -> None:
        inside.set()
        let_go.wait(LONG)

    @flow
    async def outer() -> None:
        polite.submit()
        await deaf.acall()

    async with Runtime(home, drain_seconds=0.01, grace_seconds=0.1):
        future = outer.submit()
        while not inside.is_set():
            await anyio.sleep(0.001)
    try:
        names = {run.name.split("-")[0]: run.state.name for run in (await tree_of(future.flow_run_id, home))[1:]}
        assert names == {"polite": "Interrupted", "deaf": "Interrupted"}
        assert stopped == ["polite"]
    finally:
        let_go.set()


async def test_runs_that_others_await_are_waited_for_and_interrupted_too(home: Path) -> None:
    began = anyio.Event()
    seen: list[BaseException] = []

    @flow
    async def awaited() -> None:
        began.set()
        await anyio.sleep(LONG)

    async def handler(runtime: Runtime) -> None:
        with runtime.as_current():
            try:
                await awaited()
            except RunInterruptedError as error:
                seen.append(error)

    async with anyio.create_task_group() as group, Runtime(home, drain_seconds=0.02) as runtime:
        group.start_soon(handler, runtime)
        await began.wait()
    assert len(seen) == 1


async def test_a_run_whose_caller_is_cancelled_while_its_runtime_stops_is_interrupted(home: Path) -> None:
    began = anyio.Event()
    ids: list[Any] = []

    @task
    async def leaf() -> None:
        began.set()
        await anyio.sleep(LONG)

    @flow
    async def awaited() -> None:
        from asyncflow import runtime

        ids.append(runtime.flow_run.id)
        await leaf()

    async with Runtime(home) as runtime, anyio.create_task_group() as group:
        group.start_soon(awaited)
        await began.wait()
        runtime.stop()
        group.cancel_scope.cancel()
    outer, inner = await tree_of(ids[0], home)
    assert (outer.state.name, outer.state.message) == (
        "Interrupted",
        "cancelled by its caller while its runtime is stopping",
    )
    assert inner.state.name == "Interrupted"


async def test_a_cancelled_block_passes_its_cancellation_on(home: Path, anyio_backend: Backend) -> None:
    """The clean-up is awaited, and then the host's cancellation goes on as it would without us."""
    began = anyio.Event()
    cleaned: list[str] = []
    after: list[str] = []

    @flow
    async def body() -> None:
        began.set()
        try:
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            cleaned.append("body")

    async def block() -> None:
        async with Runtime(home):
            body.submit()
            await anyio.sleep(LONG)
        after.append("unreachable")

    async with anyio.create_task_group() as group:
        group.start_soon(block)
        await began.wait()
        group.cancel_scope.cancel()
    assert cleaned == ["body"]
    assert after == []
    if anyio_backend[0] == "asyncio":
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0


async def test_a_cancellation_ends_the_drain_window(home: Path) -> None:
    began = anyio.Event()

    @flow
    async def body() -> None:
        began.set()
        await anyio.sleep(LONG)

    futures: list[Any] = []
    with anyio.move_on_after(LONG) as scope:
        async with anyio.create_task_group() as group:

            async def cancel_soon() -> None:
                await began.wait()
                await anyio.sleep(0.01)
                scope.cancel()

            group.start_soon(cancel_soon)
            async with Runtime(home, drain_seconds=LONG):
                futures.append(body.submit())
    assert scope.cancelled_caught
    assert futures[0].state.name == "Interrupted"


async def test_a_stopping_runtime_takes_no_new_runs_but_those_that_its_own_detach(home: Path) -> None:
    refused: list[str] = []
    ended: list[str] = []

    @flow
    async def follow_up() -> None:
        ended.append("follow_up")

    @flow
    async def inner() -> None:
        ended.append("inner")

    @flow
    async def outer() -> None:
        await anyio.sleep(0.02)
        await inner()
        with detached():
            follow_up.submit()

    async with Runtime(home, drain_seconds=LONG) as runtime:
        outer.submit()
        await anyio.sleep(0)
        runtime.stop()
        try:
            await inner()
        except RuntimeStoppingError as error:
            refused.append(str(error))
        with pytest.raises(RuntimeStoppingError):
            inner.submit()
    assert len(refused) == 1
    assert "'inner' was called outside of any run" in refused[0]
    assert ended == ["inner", "follow_up"]


@pytest.mark.parametrize("fails", [False, True])
def test_in_a_script(home: Path, fails: bool) -> None:
    began = threading.Event()

    @task
    async def slow() -> None:
        began.set()
        await asyncio.sleep(LONG)

    futures: list[Any] = []
    started = time.monotonic()
    try:
        with Runtime(home, drain_seconds=0 if not fails else LONG):
            futures.append(slow.submit())
            assert began.wait(LONG)
            if fails:
                raise LookupError
    except LookupError:
        assert fails
    assert time.monotonic() - started < 30
    assert futures[0].state.name == "Interrupted"


def test_sync_runs_of_other_threads_are_waited_for(home: Path) -> None:
    began, let_go = threading.Event(), threading.Event()

    @flow
    def body(wait: Callable[[], object]) -> str:
        began.set()
        wait()
        return "done"

    values: list[str] = []
    with Runtime(home, drain_seconds=LONG):
        thread = threading.Thread(target=lambda: values.append(body(let_go.wait)))
        thread.start()
        assert began.wait(LONG)
        threading.Timer(0.02, let_go.set).start()
    assert values == ["done"]
    thread.join()


def test_a_sync_run_of_another_thread_is_stopped_at_its_checkpoint(home: Path) -> None:
    began = threading.Event()
    errors: list[BaseException] = []

    @flow
    def body() -> None:
        began.set()
        while True:
            checkpoint()
            time.sleep(0.001)

    def call() -> None:
        try:
            body()
        except RunInterruptedError as error:
            errors.append(error)

    with Runtime(home, drain_seconds=0):
        thread = threading.Thread(target=call)
        thread.start()
        assert began.wait(LONG)
    thread.join(LONG)
    assert len(errors) == 1


async def test_the_warning_says_how_many_and_which_setting(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = anyio.Event()

    @flow
    async def body() -> None:
        began.set()
        await anyio.sleep(LONG)

    async with Runtime(home, drain_seconds=0.01):
        body.submit()
        await began.wait()
    assert [record.getMessage() for record in caplog.records] == [
        "1 run is interrupted, to be resumed: not over 0.01 seconds after the runtime was left (setting drain_seconds)"
    ]


@pytest.mark.parametrize("kept_by", ["sqlite", "memory"])
async def test_an_interrupted_run_can_be_cancelled_instead(home: Path, kept_by: str) -> None:
    began = anyio.Event()
    store = MemoryStore() if kept_by == "memory" else None

    @task
    async def leaf() -> None:
        began.set()
        await anyio.sleep(LONG)

    @flow
    async def inner() -> None:
        await leaf()

    @flow
    async def outer() -> None:
        await inner()

    async with Runtime(home, store=store, drain_seconds=0):
        future = outer.submit()
        await began.wait()
        child = next(iter(future.run.children or {}))
        nested = UUID(bytes=child.id)
    if store is not None:  # opened again, as another process would find it
        store._closed = False
    async with Runtime(home, store=store) as runtime:
        with pytest.raises(CannotCancelNestedRunError, match=str(future.flow_run_id)):
            await cancel_flow_run(nested)
        state = await cancel_flow_run(future.flow_run_id, reason="not needed any more")
        assert (state.type, state.message) == (
            StateType.CANCELLED,
            "cancelled through cancel_flow_run: not needed any more",
        )
        runs = await get_client(runtime).read_tree(future.flow_run_id)
        assert [run.state.type for run in runs] == [StateType.CANCELLED] * 4
        assert await cancel_flow_run(future.flow_run_id) == state
        names = [state.name for state in await get_client(runtime).read_states(future.flow_run_id)]
        assert names == ["Pending", "Running", "Interrupted", "Resuming", "Cancelled"]


async def test_an_interrupted_run_can_be_deleted(home: Path) -> None:
    began = anyio.Event()

    @flow
    async def body() -> None:
        began.set()
        await anyio.sleep(LONG)

    async with Runtime(home, drain_seconds=0):
        future = body.submit()
        await began.wait()
    async with Runtime(home) as runtime:
        client = get_client(runtime)
        await client.delete_flow_run(future.flow_run_id)
        assert await client.read_flow_runs() == []


@pytest.mark.parametrize("kept_by", ["sqlite", "memory"])
async def test_what_a_resumed_run_does_not_call_again_has_its_end_too(home: Path, kept_by: str) -> None:
    """The code was edited meanwhile: nothing below a completed run waits for ever."""
    store = MemoryStore() if kept_by == "memory" else None
    is_edited = False

    @task
    async def old() -> None:
        await anyio.sleep(LONG)

    @flow
    async def inner() -> None:
        await old()

    @task
    async def new() -> str:
        return "new"

    @flow
    async def outer() -> str:
        if is_edited:
            return await new()
        await inner()
        return "old"

    async with Runtime(home, store=store, drain_seconds=0):
        future = outer.submit()
        while not (future.run.children and next(iter(future.run.children)).children):
            await anyio.sleep(0.001)
    if store is not None:
        store._closed = False
    is_edited = True
    async with Runtime(home, store=store) as runtime:
        assert await resume_flow_run(future.flow_run_id) == "new"
        runs = await get_client(runtime).read_tree(future.flow_run_id)
    assert [run.state.name for run in runs] == ["Completed", "Cancelled", "Cancelled", "Cancelled", "Completed"]
    assert {run.state.message for run in runs[1:4]} == {"interrupted with the run it is a part of, which is run again"}


async def test_a_run_that_is_cancelled_at_once_keeps_its_parameters(home: Path) -> None:
    @flow
    async def told(word: str) -> str:
        return word

    async with Runtime(home) as runtime:
        future = told.submit("hello")
        future.cancel()
        await future.wait_async()
        run = await get_client(runtime).read_flow_run(future.flow_run_id)
        assert run.state.is_cancelled()
        assert run.parameters == {"word": "hello"}
