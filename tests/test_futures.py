"""What a future of a submitted run can be asked, in async code and in sync code, while it lasts and afterwards."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow import FlowRunFuture, TaskFuture, flow, get_client, runtime, task
from asyncflow.exceptions import (
    CrashedRunError,
    FailedRunError,
    RunCancelledError,
    WaitOnEventLoopError,
    WaitTimeoutError,
)
from asyncflow.futures import RunFuture
from asyncflow.states import Cancelled, Completed, Crashed, Failed
from tests.conftest import BACKENDS, Backend
from tests.sync_flows import everywhere, in_sync_flow

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be cancelled."""


@task(persist_result=False)
async def give(value: Any = None) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


@task(persist_result=False)
def give_sync(value: Any = None) -> Any:
    return value


@flow(persist_result=False)
async def nested(value: Any = None) -> Any:
    return await give(value)


@flow(persist_result=False)
def nested_sync(value: Any = None) -> Any:
    return give_sync(value)


@task
async def fail(error: BaseException) -> None:
    raise error


@task
def fail_sync(error: BaseException) -> None:
    raise error


@task
async def sleep(seconds: float = LONG) -> str:
    await anyio.sleep(seconds)
    return "slept"


EVERY_KIND: list[Any] = [give, give_sync, nested, nested_sync]
kinds = pytest.mark.parametrize("kind", EVERY_KIND, ids=["async task", "sync task", "async flow", "sync flow"])


# --- the value ------------------------------------------------------------------------------------


async def test_a_future_can_be_awaited_as_often_as_one_likes() -> None:
    value = object()

    @flow(persist_result=False, validate_parameters=False)
    async def main(kind: Any) -> list[Any]:
        future = kind.submit(value)
        found: list[Any] = []

        async def wait() -> None:
            found.append(await future)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
        return [*found, await future, future.result(), future.result(0)]

    for kind in EVERY_KIND:
        assert await main(kind) == [value] * 5


@everywhere
def test_in_sync_code_result_gives_the_value(place: Backend | None) -> None:
    value = object()

    def main() -> list[Any]:
        return [found for kind in EVERY_KIND for found in asked(kind)]

    def asked(kind: Any) -> list[Any]:
        future = kind.submit(value)
        found: list[Any] = []

        def wait() -> None:
            found.append(future.result(LONG))

        thread = threading.Thread(target=wait)
        thread.start()
        found.append(future.result())
        thread.join(LONG)
        return [*found, future.result(), future.result(0), future.result(0, False)]

    assert in_sync_flow(place, main) == [value] * 5 * 4


async def test_several_loops_and_threads_wait_for_one(anyio_backend: Backend) -> None:
    backend, options = anyio_backend
    release = anyio.Event()
    found: list[Any] = []

    @task
    async def released() -> str:
        await release.wait()
        return "done"

    def on_a_loop_of_its_own(future: TaskFuture[str]) -> None:
        async def wait() -> None:
            found.append(await future)

        anyio.run(wait, backend=backend, backend_options=options)

    @flow
    async def main() -> None:
        future = released.submit()
        threads = [
            threading.Thread(target=on_a_loop_of_its_own, args=(future,)),
            threading.Thread(target=lambda: found.append(future.result(LONG))),
        ]
        for thread in threads:
            thread.start()
        while len(future.run.waiters or ()) < 2:  # both wait
            await anyio.sleep(0.001)
        release.set()
        found.append(await future)
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, LONG)

    await main()
    assert found == ["done"] * 3


async def test_a_future_outlives_its_flow_and_its_loop(anyio_backend: Backend) -> None:
    @flow(persist_result=False)
    async def main() -> tuple[Any, Any]:
        return give.submit(1), quiet(fail.submit(ValueError("because")))

    def quiet(future: TaskFuture[Any]) -> Callable[[], TaskFuture[Any]]:
        return lambda: future

    value, other = await main()
    failed = other()
    assert value == 1  # a future in what a flow returns is replaced
    for _ in range(2):
        with pytest.raises(ValueError, match="because"):
            await failed
    assert isinstance(failed.result(raise_on_failure=False), ValueError)
    assert failed.state.is_failed()

    def elsewhere() -> Any:
        return failed.result(raise_on_failure=False)

    assert isinstance(await anyio.to_thread.run_sync(elsewhere), ValueError)


@asyncio_only
async def test_the_tools_of_asyncio_take_futures() -> None:
    @flow
    async def main() -> Any:
        futures = [give.submit(number) for number in range(5)]
        gathered = await asyncio.gather(*futures)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sleep.submit(), 0.01)
        late = asyncio.ensure_future(give.submit(7))
        for future in asyncio.as_completed(list(give.map([8]))):
            gathered.append(await future)
        for each in runtime_children():
            each.cancel()
        return [*gathered, await late]

    def runtime_children() -> list[TaskFuture[Any]]:
        return [TaskFuture(each) for each in main_run().children or ()]

    def main_run() -> Any:
        from asyncflow.context import current_run

        run: Any = current_run.get()
        return run

    assert await main() == [0, 1, 2, 3, 4, 8, 7]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [fail, fail_sync])
async def test_a_failure_is_raised_with_the_same_object_each_time(body: Any) -> None:
    error = ValueError("because")

    @flow(persist_result=False)
    async def main() -> list[int]:
        future = body.submit(error)
        depths: list[int] = []
        for _ in range(4):
            with pytest.raises(ValueError, match="because") as caught:
                await future
            assert caught.value is error
            depths.append(len(traceback.extract_tb(error.__traceback__)))
        with pytest.raises(ValueError, match="because"):
            future.result()
        assert future.result(raise_on_failure=False) is error
        assert any(frame.name in ("fail", "fail_sync") for frame in traceback.extract_tb(error.__traceback__))
        return depths

    depths = await main()
    assert len(set(depths)) == 1  # each raise would add its frames to the traceback for good


@everywhere
def test_in_sync_code_a_failure_is_raised_or_given(place: Backend | None) -> None:
    error = ValueError("because")

    def main() -> None:
        for body in (fail, fail_sync):
            future = body.submit(error)
            with pytest.raises(ValueError, match="because") as caught:
                future.result(LONG)
            assert caught.value is error
            assert future.result(raise_on_failure=False) is error
            assert future.wait(0)

    in_sync_flow(place, main)


async def test_a_failed_state_made_by_hand_raises_its_message() -> None:
    @flow(persist_result=False)
    async def main() -> None:
        future = give.submit(Failed("no luck"))
        with pytest.raises(FailedRunError, match="no luck"):
            await future
        assert future.state.message == "no luck"

    await main()


async def test_a_finished_future_keeps_neither_arguments_nor_frames() -> None:
    class Large:
        pass

    @task(persist_result=False)
    async def body(large: Large) -> None:
        assert large is not None

    @flow(persist_result=False)
    async def main() -> Any:
        large = Large()
        there = weakref.ref(large)
        future = body.submit(large)
        await future
        del large
        gc.collect()
        return there(), future.done()

    assert await main() == (None, True)


# --- waiting --------------------------------------------------------------------------------------


async def test_cancelling_a_wait_does_not_cancel_the_run() -> None:
    release = anyio.Event()

    @task
    async def released() -> str:
        await release.wait()
        return "done"

    @flow
    async def main() -> str:
        future = released.submit()
        with anyio.move_on_after(0.01) as scope:
            await future
        assert scope.cancelled_caught
        assert not future.done()
        async with anyio.create_task_group() as group:
            group.start_soon(future.wait_async)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert not future.run.waiters
        release.set()
        return await future

    assert await main() == "done"


async def test_wait_async_tells_whether_it_is_done_and_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    @flow
    async def main() -> None:
        future = sleep.submit(0.05)
        assert not await future.wait_async(0)
        assert not await future.wait_async(0.001)
        assert await future.wait_async(LONG)
        assert await future.wait_async()
        assert await future.wait_async(0)
        assert await fail.submit(ValueError("unseen")).wait_async()

    await main()
    # who only waited has not seen the failure
    assert [record.getMessage() for record in caplog.records if "unseen" in record.getMessage()]


@everywhere
def test_in_sync_code_a_wait_has_a_time_limit(place: Backend | None) -> None:
    release = threading.Event()

    @task
    def released() -> str:
        assert release.wait(LONG)
        return "done"

    def main() -> str:
        future = released.submit()
        try:
            for seconds in (0.02, 0, -1):
                began = time.monotonic()
                assert not future.wait(seconds)
                with pytest.raises(WaitTimeoutError, match=r"had not ended after") as caught:
                    future.result(seconds)
                assert time.monotonic() - began < 5
                assert isinstance(caught.value, TimeoutError)
                assert caught.value.seconds == max(seconds, 0)
            assert not future.done()
        finally:
            release.set()
        assert future.wait()
        return future.result()

    assert in_sync_flow(place, main) == "done"


async def test_on_the_thread_of_a_loop_only_what_is_done_can_be_had() -> None:
    @flow
    async def main() -> None:
        future = sleep.submit(0.01)
        calls: list[Callable[[], Any]] = [
            future.result,
            lambda: future.result(timeout=0.1),
            lambda: future.result(raise_on_failure=False),
            future.wait,
            lambda: future.wait(0),
        ]
        for call in calls:
            with pytest.raises(WaitOnEventLoopError, match="await future"):
                call()
        assert await future == "slept"
        assert [call() for call in calls] == ["slept"] * 3 + [True] * 2

    await main()


async def test_the_refusal_names_the_method_that_was_called() -> None:
    @flow
    async def main() -> None:
        future = sleep.submit(0.01)
        with pytest.raises(WaitOnEventLoopError, match=r"future\.result\(") as caught:
            future.result(timeout=1)
        assert caught.value.called.startswith("future.result(")
        with pytest.raises(WaitOnEventLoopError, match=r"future\.wait\(") as caught:
            future.wait()
        assert "wait_async" in str(caught.value)

    await main()


async def test_a_thread_of_a_loops_flow_may_wait_for_its_futures() -> None:
    @flow
    async def main() -> str:
        future = sleep.submit(0.01)
        return await anyio.to_thread.run_sync(future.result)

    assert await main() == "slept"


async def test_a_thread_that_waits_is_told_when_its_run_is_cancelled() -> None:
    waits = threading.Event()
    ended: list[str] = []

    @task
    def waiting(future: list[Callable[[], TaskFuture[Any]]]) -> None:
        waits.set()
        try:
            future[0]().result()
        finally:
            ended.append("ended")

    @flow
    async def main() -> Any:
        target = sleep.submit()
        future = waiting.submit([lambda: target])
        await anyio.to_thread.run_sync(waits.wait, LONG)
        while not target.run.waiters:
            await anyio.sleep(0.001)
        began = time.monotonic()
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        assert not target.run.waiters
        assert not target.done()
        target.cancel()
        return time.monotonic() - began, future.state.type.value

    seconds, type_ = await main()
    assert seconds < 5
    assert type_ == "CANCELLED"
    assert ended == ["ended"]


# --- state, done, ids, repr -----------------------------------------------------------------------


async def test_what_a_future_says_during_the_life_of_its_run() -> None:
    release = anyio.Event()
    runs = anyio.Event()

    @task(task_run_name="the one")
    async def released() -> int:
        runs.set()
        await release.wait()
        return 3

    @flow
    async def main() -> None:
        future = released.submit()
        await runs.wait()
        assert (future.state.type.value, future.done()) == ("RUNNING", False)
        assert future.name == "the one"
        assert repr(future) == "<TaskFuture 'the one' Running>"
        release.set()
        assert await future == 3
        state = future.state
        assert (state.type.value, state.data, state.result(), future.done()) == ("COMPLETED", 3, 3, True)
        assert state == future.state
        assert repr(future) == "<TaskFuture 'the one' Completed>"

    await main()


async def test_the_state_of_one_that_has_not_begun_is_pending() -> None:
    @flow
    async def main() -> None:
        first = sleep.submit(0.01)
        second = give.submit(first)
        assert second.state.is_pending()
        assert repr(second).endswith(" Pending>")
        await second

    await main()


@kinds
async def test_its_ids_are_those_of_the_record(kind: Any) -> None:
    @flow
    async def main() -> tuple[RunFuture[Any], UUID | None]:
        future = kind.submit(1)
        await future
        return wrapped(future), runtime.flow_run.id

    def wrapped(future: RunFuture[Any]) -> Any:
        return {"kept": future}

    kept: Any = await main(return_state=True)
    found, parent = kept.result()
    future = found["kept"]
    client = get_client()
    stand_in = await client.read_task_run(future.task_run_id)
    assert stand_in.flow_run_id == parent
    assert stand_in.state.is_completed()
    if kind in (nested, nested_sync):
        assert isinstance(future, FlowRunFuture)
        run = await client.read_flow_run(future.flow_run_id)
        assert (run.parent_flow_run_id, run.parent_task_run_id) == (parent, future.task_run_id)
        assert stand_in.child_flow_run_id == future.flow_run_id
    else:
        assert isinstance(future, TaskFuture)
        assert stand_in.task_name == kind.name
    assert future.state.id == (await client.read_states(future_id(future)))[-1].id


def future_id(future: Any) -> UUID:
    found: UUID = future.flow_run_id if isinstance(future, FlowRunFuture) else future.task_run_id
    return found


# --- cancel ---------------------------------------------------------------------------------------


async def test_cancel_ends_the_run_and_everything_below_it() -> None:
    began = anyio.Event()
    ended: list[str] = []

    @task
    async def below() -> None:
        began.set()
        try:
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            ended.append("below")

    @flow
    async def inner() -> None:
        try:
            await below.submit()
        finally:
            ended.append("inner")

    @flow
    async def main() -> UUID:
        future = inner.submit()
        await began.wait()
        assert future.cancel()
        with pytest.raises(RunCancelledError, match="cancelled through its future") as caught:
            await future
        assert "through its future" in str(caught.value)
        assert sorted(ended) == ["below", "inner"]
        assert future.state.is_cancelled()
        assert not future.cancel()  # it has ended
        return future.flow_run_id

    run = await get_client().read_flow_run(await main())
    assert run.state.is_cancelled()
    assert "through its future by flow run" in (run.state.message or "")
    (child,) = await get_client().read_task_runs(flow_run_id=run.id)
    assert child.state.is_cancelled()


async def test_one_that_was_cancelled_before_it_began_never_begins() -> None:
    began: list[int] = []

    @task
    async def body(_upstream: Any) -> None:
        began.append(1)

    @flow
    async def main() -> None:
        upstream = sleep.submit()
        waits = body.submit(upstream)
        at_once = body.submit(upstream)
        assert at_once.cancel()
        await anyio.wait_all_tasks_blocked()
        assert waits.cancel()
        for future in (waits, at_once):
            with pytest.raises(RunCancelledError):
                await future
            assert future.state.is_cancelled()
        assert not upstream.done()
        upstream.cancel()

    await main()
    assert began == []
    runs = await get_client().read_task_runs(name=None)
    assert {run.state.type.value for run in runs} == {"CANCELLED"}
    assert [run.run_count for run in runs if run.task_name == "body"] == [0, 0]


@everywhere
def test_in_sync_code_cancel_reaches_async_and_sync_bodies(place: Backend | None) -> None:
    began = threading.Event()

    @task
    def waits_for(_marker: str, box: list[Callable[[], TaskFuture[Any]]]) -> None:
        began.set()
        box[0]().result()

    def main() -> None:
        target = sleep.submit()
        future = waits_for.submit("x", [lambda: target])
        assert began.wait(LONG)
        assert future.cancel()
        assert target.cancel()
        for each in (future, target):
            with pytest.raises(RunCancelledError, match="cancelled through its future by flow run"):
                each.result(LONG)
            assert isinstance(each.result(raise_on_failure=False), RunCancelledError)
            assert not each.cancel()

    in_sync_flow(place, main)


@pytest.mark.parametrize("body", ["async", "sync"])
async def test_a_cancelled_error_carries_the_state(body: str) -> None:
    began = threading.Event()

    @task
    async def waits() -> None:
        began.set()
        await anyio.sleep(LONG)

    @task
    def waits_sync() -> None:
        began.set()
        sleep.submit().result()

    @flow
    async def main() -> None:
        future = (waits if body == "async" else waits_sync).submit()
        await anyio.to_thread.run_sync(began.wait, LONG)
        future.cancel()
        with pytest.raises(RunCancelledError) as caught:
            await future
        assert caught.value.state is not None
        assert caught.value.state.is_cancelled()
        assert caught.value.state == future.state

    await main()


async def test_a_negative_time_to_wait_is_none() -> None:
    @flow
    async def main() -> None:
        future = sleep.submit()
        assert not await future.wait_async(-1)
        assert not await anyio.to_thread.run_sync(future.wait, -1)
        future.cancel()

    await main()


async def test_cancel_from_a_thread_that_knows_nothing_of_the_run() -> None:
    began = anyio.Event()

    @task
    async def body() -> None:
        began.set()
        await anyio.sleep(LONG)

    @flow
    async def main() -> str | None:
        future = body.submit()
        await began.wait()
        thread = threading.Thread(target=future.cancel)
        thread.start()
        await anyio.to_thread.run_sync(thread.join, LONG)
        with pytest.raises(RunCancelledError):
            await future
        return future.state.message

    assert await main() == "cancelled through its future"


async def test_a_run_may_cancel_itself_through_its_future() -> None:
    box: list[Callable[[], TaskFuture[Any]]] = []
    began = anyio.Event()

    @task
    async def body() -> None:
        await began.wait()
        box[0]().cancel()
        await anyio.sleep(LONG)

    @flow
    async def main() -> str | None:
        future = body.submit()
        box.append(lambda: future)
        began.set()
        with pytest.raises(RunCancelledError):
            await future
        return future.state.message

    assert "by task run 'body-" in (await main() or "")


async def test_the_one_that_ends_first_wins_and_both_see_it() -> None:
    @flow
    async def main() -> None:
        for delay in range(40):
            future = sleep.submit(0.001)
            await anyio.sleep(delay / 20_000)
            cancelled = future.cancel()
            await future.wait_async()
            if future.state.is_completed():
                assert future.result() == "slept"
            else:
                assert cancelled
                assert isinstance(future.result(raise_on_failure=False), RunCancelledError)

    await main()


# --- callbacks ------------------------------------------------------------------------------------


async def test_callbacks_are_called_once_in_their_order() -> None:
    called: list[tuple[str, bool, bool]] = []

    @flow
    async def main() -> TaskFuture[Any] | None:
        future = sleep.submit(0.01)
        given: list[Any] = []
        for name in ("first", "second", "third"):
            future.add_done_callback(
                lambda each, name=name: called.append((name, each.done(), each is future))  # type: ignore[misc]
            )
        assert called == []
        await future
        assert called == [(name, True, True) for name in ("first", "second", "third")]
        future.add_done_callback(given.append)
        assert given == [future]  # at once, when it is done already
        assert len(called) == 3
        return None

    await main()


@everywhere
def test_in_sync_code_callbacks_are_called_too(place: Backend | None) -> None:
    called: list[tuple[str, Any]] = []

    def main() -> None:
        for body in (give, give_sync):
            future = body.submit(1)
            future.add_done_callback(lambda each: called.append(("before", each.result())))
            future.result(LONG)
            future.add_done_callback(lambda each: called.append(("after", each.result())))

    in_sync_flow(place, main)
    assert called == [("before", 1), ("after", 1)] * 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_callback_that_raises_is_logged_and_changes_nothing(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def bad(_future: Any) -> None:
        raise LookupError("callback")

    @flow
    async def main() -> Any:
        future = give.submit(5)
        if when == "after":
            await future
        future.add_done_callback(bad)
        future.add_done_callback(lambda _: called.append("next"))
        return await future

    assert await main() == 5
    assert called == ["next"]
    (record,) = [each for each in caplog.records if "done callback" in each.getMessage()]
    assert record.levelno == logging.ERROR
    assert "give" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


async def test_callbacks_of_cancelled_and_failed_runs() -> None:
    ended: list[str] = []

    @flow
    async def main() -> None:
        failed, cancelled = fail.submit(ValueError()), sleep.submit()
        for future in (failed, cancelled):
            future.add_done_callback(lambda each: ended.append(each.state.type.value))
        cancelled.cancel()
        await cancelled.wait_async()
        await failed.wait_async()

    await main()
    assert sorted(ended) == ["CANCELLED", "FAILED"]


async def test_a_callback_may_submit() -> None:
    ran: list[Any] = []

    @task
    async def after(value: Any) -> None:
        ran.append(value)

    @flow
    async def main() -> None:
        def then(future: Any) -> None:
            after.submit(future)

        future = sleep.submit(0.01)
        future.add_done_callback(then)
        await future

    await main()
    assert ran == ["slept"]


# --- the final state of a flow that returns futures -----------------------------------------------

SCALARS = st.integers(0, 5) | st.sampled_from(["x", "y"])
ITEMS = st.one_of(
    st.tuples(st.just("future"), SCALARS),
    st.tuples(st.sampled_from(["failed", "cancelled"]), st.just(0)),
    st.tuples(st.just("data"), SCALARS),
    st.tuples(st.sampled_from([Completed, Failed, Cancelled, Crashed]), SCALARS),
)
OF_TYPE: dict[Any, str] = {
    "future": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    Completed: "COMPLETED",
    Failed: "FAILED",
    Cancelled: "CANCELLED",
    Crashed: "CRASHED",
}


def made(kind: Any, value: Any) -> Any:
    """What a flow's body returns for an item of the plan."""
    if kind == "data":
        return value
    if kind == "future":
        return give.submit(value)
    if kind == "failed":
        return fail.submit(ValueError(value))
    if kind == "cancelled":
        future = sleep.submit()
        future.cancel()
        return future
    return kind(data=value) if kind is Completed else kind(str(value))


def expected(plan: list[tuple[Any, Any]]) -> tuple[str, str | None, int]:
    """The type and message of the final state, and how many exceptions it stands for: DESIGN 4.1."""
    types = [OF_TYPE[kind] for kind, _ in plan if kind != "data"]
    if not types:
        return "COMPLETED", None, 0
    bad = [each for each in types if each != "COMPLETED"]
    if not bad:
        return "COMPLETED", "All states completed.", 0
    if "CANCELLED" in bad:
        return "CANCELLED", f"{bad.count('CANCELLED')}/{len(types)} states cancelled.", len(bad)
    return "FAILED", f"{len(bad)}/{len(types)} states failed.", len(bad)


@pytest.mark.parametrize("place", [pytest.param(None, id="inline"), *BACKENDS])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(ITEMS, max_size=5), container=st.sampled_from([list, tuple, set]))
def test_a_container_of_futures_states_and_data_decides_as_the_rules_say(
    place: Backend | None, plan: list[tuple[Any, Any]], container: Any
) -> None:
    def body() -> Any:
        return container(made(kind, value) for kind, value in plan)

    @flow(persist_result=False)
    async def main() -> Any:
        return body()

    if place is None:
        state: Any = flow(body, persist_result=False)(return_state=True)
    else:
        backend, options = place

        async def call() -> Any:
            return await main(return_state=True)

        state = anyio.run(call, backend=backend, backend_options=options)
    type_, message, errors = expected(plan)
    assert (state.type.value, state.message) == (type_, message)
    found = state.result(raise_on_failure=False)
    if not errors:
        assert found == container(value for _, value in plan)
        assert type(found) is container
    elif errors == 1:
        assert isinstance(found, FailedRunError | RunCancelledError | CrashedRunError | ValueError)
    elif type_ == "FAILED":
        assert isinstance(found, ExceptionGroup)
        assert len(found.exceptions) == errors


@pytest.mark.parametrize("place", [pytest.param(None, id="inline"), *BACKENDS])
def test_one_future_decides_alone(place: Backend | None) -> None:
    error = ValueError("because")

    def completed() -> Any:
        return give.submit([1])

    def failed() -> Any:
        return fail.submit(error)

    def cancelled() -> Any:
        return made("cancelled", 0)

    assert in_sync_flow(place, completed) == [1]
    with pytest.raises(ValueError, match="because") as caught:
        in_sync_flow(place, failed)
    assert caught.value is error
    with pytest.raises(RunCancelledError):
        in_sync_flow(place, cancelled)


async def test_a_group_of_what_failed_holds_the_very_exceptions() -> None:
    errors = [ValueError(0), LookupError(1)]

    @flow
    async def main() -> Any:
        return [fail.submit(errors[0]), give.submit(1), fail.submit(errors[1]), "data"]

    with pytest.raises(ExceptionGroup) as caught:
        await main()
    assert list(caught.value.exceptions) == errors
    (run,) = await get_client().read_flow_runs(flow_name="main")
    assert (run.state.type.value, run.state.message) == ("FAILED", "2/3 states failed.")


async def test_a_dict_of_futures_is_a_value() -> None:
    @flow(persist_result=False)
    async def main() -> Any:
        return {"a": fail.submit(ValueError())}

    found = await main()
    assert isinstance(found["a"], TaskFuture)
    assert found["a"].state.is_failed()


async def test_a_returned_failure_is_retried() -> None:
    attempts: list[int] = []

    @flow(retries=2)
    async def main() -> Any:
        attempts.append(len(attempts))
        return [fail.submit(ValueError()) if len(attempts) < 3 else give.submit(1)]

    assert await main() == [1]
    assert attempts == [0, 1, 2]
