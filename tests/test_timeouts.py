"""`timeout_seconds`: what a deadline does to bodies of every kind, and to what is around and below them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import FlowRun, Runtime, TaskRun, flow, get_client, runtime, task
from asyncflow.exceptions import RunCancelledError
from tests.conftest import BACKENDS

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
trio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id == "trio"], indirect=True)
LONG = 30.0
SOON = 0.02


async def runs() -> dict[str, FlowRun | TaskRun]:
    client = get_client()
    found: dict[str, FlowRun | TaskRun] = {each.flow_name: each for each in await client.read_flow_runs()}
    found |= {each.task_name: each for each in await client.read_task_runs() if not each.child_flow_run_id}
    return found


async def state_names() -> dict[str, str]:
    return {name: each.state.name for name, each in (await runs()).items()}


async def shielded(seconds: float) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


# --- async bodies ----------------------------------------------------------------------------


@pytest.mark.parametrize("declare", [flow, task], ids=["flow", "task"])
async def test_a_body_past_its_deadline_is_timed_out(declare: Any) -> None:
    ended: list[str] = []

    @declare(timeout_seconds=SOON)  # type: ignore[untyped-decorator]
    async def slow() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            await shielded(0.05)
            ended.append("finally")

    with pytest.raises(TimeoutError, match=r"exceeded its timeout of 0\.02 seconds"):
        await slow()
    assert ended == ["finally"]
    state = (await runs())["slow"].state
    assert (state.type.value, state.name) == ("FAILED", "TimedOut")
    assert state.message == "exceeded its timeout of 0.02 seconds"
    await anyio.sleep(0)
    await anyio.sleep(0.001)


@asyncio_only
async def test_a_clean_up_without_a_shield_is_undisturbed_too() -> None:
    ended: list[str] = []

    @task(timeout_seconds=SOON)
    async def slow() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            await asyncio.sleep(0.05)
            ended.append("finally")

    with pytest.raises(TimeoutError):
        await slow()
    assert ended == ["finally"]
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_a_body_within_its_deadline_is_not_touched() -> None:
    @task(timeout_seconds=LONG)
    async def quick() -> int:
        await anyio.sleep(0)
        return 3

    assert await quick() == 3
    assert (await state_names())["quick"] == "Completed"


async def test_return_state_gives_the_timed_out_state() -> None:
    @task(timeout_seconds=SOON)
    async def slow() -> None:
        await anyio.sleep(LONG)

    state: Any = await slow(return_state=True)
    assert state.name == "TimedOut"
    with pytest.raises(TimeoutError):
        state.result()


@pytest.mark.parametrize("raised", [TimeoutError("mine"), LookupError("mine")])
async def test_a_body_s_own_exception_is_an_ordinary_failure(raised: Exception) -> None:
    @task(timeout_seconds=LONG)
    async def raises() -> None:
        raise raised

    with pytest.raises(type(raised)) as caught:
        await raises()
    assert caught.value is raised
    assert (await state_names())["raises"] == "Failed"


async def test_a_timeout_of_the_body_s_own_is_an_ordinary_failure() -> None:
    @task(timeout_seconds=LONG)
    async def raises() -> None:
        with anyio.fail_after(0.005):
            await anyio.sleep(LONG)

    with pytest.raises(TimeoutError):
        await raises()
    assert (await state_names())["raises"] == "Failed"


async def test_a_timed_out_attempt_is_tried_again() -> None:
    @task(timeout_seconds=SOON, retries=2)
    async def slow_twice() -> int:
        if runtime.task_run.run_count < 3:
            await anyio.sleep(LONG)
        return runtime.task_run.run_count

    assert await slow_twice() == 3
    run = (await runs())["slow_twice"]
    names = [state.name for state in await get_client().read_states(run.id)]
    assert names == ["Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed"]


async def test_a_body_that_answers_with_a_value_is_completed() -> None:
    @task(timeout_seconds=SOON)
    async def answers() -> str:
        try:
            await anyio.sleep(LONG)
        except BaseException:
            return "partial"
        return "never"

    assert await answers() == "partial"
    assert (await state_names())["answers"] == "Completed"
    await anyio.sleep(0.001)


async def test_a_body_that_answers_with_an_exception_is_failed() -> None:
    @task(timeout_seconds=SOON)
    async def answers() -> None:
        try:
            await anyio.sleep(LONG)
        except BaseException:
            raise LookupError("instead") from None

    with pytest.raises(LookupError, match="instead"):
        await answers()
    assert (await state_names())["answers"] == "Failed"
    await anyio.sleep(0.001)


async def test_a_deadline_waits_for_the_body_s_shield() -> None:
    order: list[str] = []

    @task(timeout_seconds=SOON)
    async def careful() -> None:
        await shielded(0.08)
        order.append("shielded")
        await anyio.sleep(LONG)
        order.append("never")

    with pytest.raises(TimeoutError):
        await careful()
    assert order == ["shielded"]


async def test_a_deadline_that_passes_in_a_shield_of_a_body_that_then_ends_changes_nothing() -> None:
    @task(timeout_seconds=SOON)
    async def careful() -> str:
        await shielded(0.05)
        return "done"

    assert await careful() == "done"
    assert (await state_names())["careful"] == "Completed"
    await anyio.sleep(0.03)


async def test_a_shield_around_the_call_does_not_hold_its_deadline_up() -> None:
    @task(timeout_seconds=SOON)
    async def slow() -> None:
        await anyio.sleep(0.5)

    began = time.monotonic()
    with anyio.CancelScope(shield=True), pytest.raises(TimeoutError):
        await slow()
    assert time.monotonic() - began < 0.4


async def test_a_long_clean_up_after_a_deadline_costs_no_cpu() -> None:
    used: list[float] = []

    @task
    async def cleaning() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            cpu = time.process_time()
            await shielded(0.5)
            used.append(time.process_time() - cpu)

    @flow(timeout_seconds=0.05)
    async def fan_out() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(cleaning)
            group.start_soon(cleaning)

    with pytest.raises(TimeoutError):
        await fan_out()
    assert len(used) == 2
    assert max(used) < 0.5 * 0.2


@asyncio_only
async def test_a_long_clean_up_in_a_gather_after_a_deadline_is_undisturbed() -> None:
    used: list[float] = []

    @task
    async def cleaning(seconds: float) -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            cpu = time.process_time()
            await asyncio.sleep(seconds)
            used.append(time.process_time() - cpu)

    @flow(timeout_seconds=0.05)
    async def fan_out() -> None:
        await asyncio.gather(cleaning(0.05), cleaning(0.5))

    with pytest.raises(TimeoutError):
        await fan_out()
    assert len(used) == 2
    assert max(used) < 0.5 * 0.2


@asyncio_only
async def test_a_timeout_of_asyncio_within_the_body_near_the_deadline() -> None:
    async def inside(own: float) -> None:
        async with asyncio.timeout(own):
            await asyncio.sleep(LONG)

    for deadline, own in [(0.02, 0.02), (0.02, 0.0201), (0.0201, 0.02), (0.02, 1), (1, 0.02)]:
        timed = task(inside, timeout_seconds=deadline)
        with pytest.raises(TimeoutError):
            await timed(own)
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        await asyncio.sleep(0.001)
    names = [each.state.name for each in await get_client().read_task_runs()]
    assert names[0] == "Failed"  # newest first: its own was the shorter one
    assert names[1] == "TimedOut"


@asyncio_only
async def test_a_timeout_of_asyncio_around_the_call_wins() -> None:
    @task(timeout_seconds=0.02)
    async def slow() -> None:
        await asyncio.sleep(LONG)

    await runs()  # opens the store
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError) as caught:  # noqa: PT012  # the block is what is looked at
        async with asyncio.timeout(None) as around:
            around.reschedule(loop.time() + 0.02)
            await slow()
    assert around.expired() or "exceeded its timeout" in str(caught.value)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    await asyncio.sleep(0.001)


@asyncio_only
async def test_a_deadline_and_a_cancel_in_the_same_moment() -> None:
    """The caller's cancellation wins, and neither leaves anything behind."""
    started = asyncio.Event()

    @task(timeout_seconds=0.05)
    async def slow() -> None:
        started.set()
        await asyncio.sleep(LONG)

    running: asyncio.Task[Any] = asyncio.ensure_future(slow())
    await started.wait()
    time.sleep(0.1)  # the loop is held up: both are due when it goes on
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running.cancelled()
    state = (await runs())["slow"].state
    assert (state.type.value, state.message) == ("CANCELLED", "cancelled by its caller")


async def test_a_deadline_and_an_outer_deadline_in_the_same_moment() -> None:
    @task(timeout_seconds=0.03)
    async def slow() -> None:
        await anyio.sleep(LONG)

    await runs()
    outcome = "went on"
    with anyio.move_on_after(0.03) as scope:
        try:
            await slow()
        except TimeoutError:
            outcome = "timed out"
    assert scope.cancelled_caught or outcome == "timed out"
    state = (await runs())["slow"].state
    assert state.name == ("TimedOut" if outcome == "timed out" else "Cancelled")
    await anyio.sleep(0.001)


@trio_only  # on asyncio nobody can see an anyio cancellation that waits for a shield to end
async def test_the_caller_s_cancellation_during_the_clean_up_after_a_deadline_wins() -> None:
    cleaning = anyio.Event()

    @task(timeout_seconds=SOON)
    async def slow() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            cleaning.set()
            await shielded(0.05)

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:

            async def cancel() -> None:
                await cleaning.wait()
                scope.cancel()

            group.start_soon(cancel)
            await slow()
    assert scope.cancelled_caught
    assert (await state_names())["slow"] == "Cancelled"


@asyncio_only
async def test_a_native_cancellation_during_the_clean_up_after_a_deadline_wins() -> None:
    cleaning = asyncio.Event()

    @task(timeout_seconds=SOON)
    async def slow() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            cleaning.set()
            await asyncio.sleep(0.05)

    running: asyncio.Task[Any] = asyncio.ensure_future(slow())
    await cleaning.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert running.cancelling() == 1
    assert (await state_names())["slow"] == "Cancelled"


# --- nested deadlines ------------------------------------------------------------------------


async def nested(inner: float, outer: float) -> BaseException | None:
    @task(timeout_seconds=inner)
    async def child() -> None:
        await anyio.sleep(LONG)

    @flow(timeout_seconds=outer)
    async def parent() -> None:
        await child()

    try:
        await parent()
    except TimeoutError as error:
        return error
    return None


async def test_the_inner_deadline() -> None:
    error = await nested(SOON, LONG)
    assert "child" in str(error)
    assert await state_names() == {"child": "TimedOut", "parent": "Failed"}


async def test_the_outer_deadline() -> None:
    error = await nested(LONG, SOON)
    found = await runs()
    assert repr(found["parent"].name) in str(error)
    assert await state_names() == {"child": "Cancelled", "parent": "TimedOut"}
    assert found["child"].state.message == (
        f"cancelled because its flow run {found['parent'].name!r} exceeded its timeout of 0.02 seconds"
    )


async def test_both_deadlines_at_once() -> None:
    assert isinstance(await nested(0.03, 0.03), TimeoutError)
    names = await state_names()
    assert names["child"] in ("TimedOut", "Cancelled")
    assert names["parent"] in ("TimedOut", "Failed")
    await anyio.sleep(0.001)


@asyncio_only
async def test_a_parent_s_deadline_reaches_a_gather() -> None:
    @task
    async def child() -> None:
        await asyncio.sleep(LONG)

    @flow(timeout_seconds=0.2)  # long enough for all of them to begin on a busy machine
    async def parent() -> None:
        await asyncio.gather(child(), child(), child())

    with pytest.raises(TimeoutError):
        await parent()
    tasks = await get_client().read_task_runs()
    assert len(tasks) == 3
    assert {each.state.name for each in tasks} == {"Cancelled"}
    assert all("exceeded its timeout" in (each.state.message or "") for each in tasks)


async def test_a_deadline_reaches_what_a_returned_body_waits_for() -> None:
    started = anyio.Event()

    @task
    async def child() -> None:
        started.set()
        await anyio.sleep(LONG)

    async def hosted() -> None:
        with contextlib.suppress(RunCancelledError):
            await child()

    @flow(timeout_seconds=0.05)
    async def parent(group: Any) -> None:
        group.start_soon(hosted)
        await started.wait()

    async with anyio.create_task_group() as group:
        with pytest.raises(TimeoutError):
            await parent(group)
    assert await state_names() == {"child": "Cancelled", "parent": "TimedOut"}


async def test_a_body_that_ignores_its_deadline_is_given_up_after_the_grace_time(home: Path) -> None:
    @task(timeout_seconds=SOON)
    async def deaf() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.6)

    async with Runtime(home, grace_seconds=0.1), anyio.create_task_group() as group:

        async def call() -> None:
            with contextlib.suppress(Exception):
                await deaf()

        group.start_soon(call)
        await anyio.sleep(0.35)
        assert await state_names() == {"deaf": "Crashed"}


# --- sync bodies in worker threads -----------------------------------------------------------


async def test_a_thread_past_its_deadline_is_cancelling_until_it_returns() -> None:
    release = threading.Event()
    seen: list[str] = []

    @task(timeout_seconds=SOON)
    def blocking() -> str:
        release.wait(LONG)
        return "late"

    async def watch() -> None:
        while not await get_client().read_task_runs(state="CANCELLING"):
            await anyio.sleep(0.001)
        seen.append("cancelling")
        release.set()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        with pytest.raises(TimeoutError):
            await blocking.acall()
    assert seen == ["cancelling"]
    run = (await runs())["blocking"]
    names = [state.name for state in await get_client().read_states(run.id)]
    assert names == ["Pending", "Running", "Cancelling", "TimedOut"]


async def test_a_thread_that_does_not_return_is_left_at_the_grace_time(home: Path) -> None:
    release = threading.Event()

    @task(timeout_seconds=SOON)
    def blocking() -> None:
        release.wait(LONG)

    async with Runtime(home, grace_seconds=0.1):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await blocking.acall()
        assert 0.1 < time.monotonic() - began < 1
        assert await state_names() == {"blocking": "TimedOut"}
        release.set()


async def test_a_timed_out_thread_is_tried_again() -> None:
    release = threading.Event()

    @task(timeout_seconds=SOON, retries=1)
    def slow_once() -> int:
        if runtime.task_run.run_count == 1:
            release.wait(0.1)
        return runtime.task_run.run_count

    assert await slow_once.acall() == 2
    run = (await runs())["slow_once"]
    names = [state.name for state in await get_client().read_states(run.id)]
    assert names == ["Pending", "Running", "Cancelling", "AwaitingRetry", "Retrying", "Completed"]


async def test_what_a_left_thread_starts_is_refused(home: Path) -> None:
    release, done = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    @task
    def late() -> None:
        raised.append(AssertionError("it must not run"))

    @task(timeout_seconds=SOON)
    def blocking() -> None:
        release.wait(LONG)
        try:
            late()
        except BaseException as error:
            raised.append(error)
        done.set()

    async with Runtime(home, grace_seconds=0.05):
        with pytest.raises(TimeoutError):
            await blocking.acall()
        release.set()
        while not done.is_set():
            await anyio.sleep(0.001)
        assert [type(each).__name__ for each in raised] in (["RunEndedError"], ["InlineCancelled"])
        assert list(await runs()) == ["blocking"]


# --- sync bodies on their caller's thread ----------------------------------------------------


def test_a_sync_body_is_timed_out_at_its_end() -> None:
    @flow(timeout_seconds=0.01)
    def slow() -> str:
        time.sleep(0.03)
        return "late"

    with pytest.raises(TimeoutError, match="exceeded its timeout"):
        slow()
    assert anyio.run(state_names) == {"slow": "TimedOut"}


def test_a_sync_body_is_timed_out_at_a_call_of_ours() -> None:
    @task
    def child() -> None:
        raise AssertionError("it must not run")

    @flow(timeout_seconds=0.01)
    def slow() -> None:
        time.sleep(0.03)
        child()
        raise AssertionError("it must not go on")

    with pytest.raises(TimeoutError):
        slow()
    assert anyio.run(state_names) == {"slow": "TimedOut"}


def test_a_late_exception_of_a_sync_body_is_its_own() -> None:
    @task(timeout_seconds=0.01)
    def slow() -> None:
        time.sleep(0.03)
        raise LookupError("late")

    with pytest.raises(LookupError, match="late"):
        slow()
    assert anyio.run(state_names) == {"slow": "Failed"}


def test_nested_deadlines_in_a_script() -> None:
    @task(timeout_seconds=LONG)
    def child() -> None:
        time.sleep(0.03)

    @flow(timeout_seconds=0.01)
    def parent() -> None:
        child()

    with pytest.raises(TimeoutError):
        parent()
    assert anyio.run(state_names) == {"child": "Completed", "parent": "TimedOut"}


def test_a_timed_out_sync_body_is_tried_again() -> None:
    @task(timeout_seconds=0.02, retries=1)
    def slow_once() -> int:
        if runtime.task_run.run_count == 1:
            time.sleep(0.04)
        return runtime.task_run.run_count

    assert slow_once() == 2
