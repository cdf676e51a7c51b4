"""Cancelling a flow run and everything below it: from anywhere, whatever its runs are doing at that moment."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncflow import (
    FlowRun,
    Runtime,
    State,
    TaskRun,
    as_completed,
    cancel_flow_run,
    checkpoint,
    concurrency,
    flow,
    get_client,
    runtime,
    task,
)
from asyncflow.exceptions import (
    CannotCancelNestedRunError,
    CrashedRunError,
    RunCancelledError,
    RunElsewhereError,
    RunNotFoundError,
)
from asyncflow.stores.memory import MemoryStore
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import Backend
from tests.sync_flows import everywhere, in_sync_flow

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be cancelled."""


@pytest.fixture(autouse=True)
def in_memory() -> Iterator[None]:
    with Runtime(store=MemoryStore(), grace_seconds=5, tag_limits={"one": 1}):
        yield


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not is_so():
            await anyio.sleep(0.001)


def own_flow_run() -> UUID:
    found = runtime.flow_run.id
    assert found is not None
    return found


async def all_runs() -> list[FlowRun | TaskRun]:
    """Every run, without the task runs that stand for nested flows."""
    client = get_client()
    task_runs = [run for run in await client.read_task_runs(limit=10_000) if run.child_flow_run_id is None]
    return [*await client.read_flow_runs(limit=10_000), *task_runs]


async def states_by_function() -> dict[str, str]:
    return {getattr(run, "flow_name", getattr(run, "task_name", "")): run.state.type.value for run in await all_runs()}


class Counts:
    """What a tree's bodies have done."""

    def __init__(self) -> None:
        self.root: UUID | None = None
        self.started = 0
        self.cleaned = 0

    async def body(self) -> None:
        self.started += 1
        try:
            await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
            self.cleaned += 1


def tree(counts: Counts, fan_out: str, *, inside: Callable[[], Coroutine[Any, Any, object]] | None = None) -> Any:
    """A flow with a nested flow with 50 tasks that sleep."""
    sleeps = task(counts.body, name="sleeps")

    @flow
    async def inner() -> None:
        try:
            if fan_out == "submit":
                futures = [sleeps.submit() for _ in range(50)]
                for future in futures:
                    await future
            elif fan_out == "left":
                for _ in range(50):
                    sleeps.submit()
            else:
                async with anyio.create_task_group() as group:
                    for _ in range(50):
                        group.start_soon(sleeps)
        finally:
            counts.cleaned += 1

    @flow
    async def root() -> str:
        counts.root = own_flow_run()
        try:
            async with anyio.create_task_group() as group:
                if inside is not None:
                    group.start_soon(inside)
                await inner()
        finally:
            counts.cleaned += 1
        return "never"

    return root


async def assert_all_cancelled(counts: Counts) -> None:
    runs = await all_runs()
    assert len(runs) == 52
    assert {run.state.type.value for run in runs} == {"CANCELLED"}
    assert (counts.started, counts.cleaned) == (50, 52)
    (stand_in,) = [run for run in await get_client().read_task_runs() if run.child_flow_run_id is not None]
    assert stand_in.state.is_cancelled()


def in_a_thread_of_its_own(fn: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=fn)
    thread.start()
    return thread


# --- from where ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fan_out", ["gathered", "submit", "left"])
@pytest.mark.parametrize("how", [str, UUID])
async def test_from_another_task(fan_out: str, how: type) -> None:
    counts = Counts()
    answers: list[State[Any]] = []

    async def cancel_it() -> None:
        await until(lambda: counts.started == 50)
        answers.append(await cancel_flow_run(how(str(counts.root)), reason="enough"))

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it)
        with pytest.raises(RunCancelledError, match="cancelled through cancel_flow_run: enough") as caught:
            await tree(counts, fan_out)()
        await assert_all_cancelled(counts)
    assert answers[0].is_cancelled()
    assert answers[0] == caught.value.state
    messages = {run.state.message for run in await all_runs()}
    assert messages <= {"cancelled through cancel_flow_run: enough"}


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
async def test_from_another_thread(loop: str) -> None:
    counts = Counts()
    answers: list[State[Any]] = []
    client = get_client()

    async def cancel_it() -> None:
        assert counts.root is not None
        answers.append(await cancel_flow_run(counts.root, client=client))
        assert counts.cleaned == 52  # it came back when every `finally` was done

    async def helper() -> None:
        await until(lambda: counts.started == 50)
        thread = in_a_thread_of_its_own(partial(anyio.run, cancel_it, backend=loop))
        await anyio.to_thread.run_sync(thread.join, LONG)

    async with anyio.create_task_group() as group:
        group.start_soon(helper)
        with pytest.raises(RunCancelledError, match="through cancel_flow_run"):
            await tree(counts, "gathered")()
    assert answers[0].is_cancelled()
    await assert_all_cancelled(counts)


@pytest.mark.parametrize("fan_out", ["gathered", "submit"])
async def test_from_inside(fan_out: str) -> None:
    counts = Counts()
    answers: list[State[Any]] = []

    async def inside() -> None:
        await until(lambda: counts.started == 50)
        assert counts.root is not None
        answers.append(await cancel_flow_run(counts.root))
        await anyio.sleep(LONG)

    with pytest.raises(RunCancelledError, match=r"cancelled by flow run '.*' through cancel_flow_run"):
        await tree(counts, fan_out, inside=inside)()
    assert not answers[0].is_final()
    await assert_all_cancelled(counts)


@pytest.mark.parametrize("declare", ["task", "submitted task", "nested flow"])
async def test_from_a_run_below(declare: str) -> None:
    counts = Counts()

    async def below() -> None:
        await until(lambda: counts.started == 50)
        assert counts.root is not None
        assert not (await cancel_flow_run(counts.root)).is_final()
        try:
            await anyio.sleep(LONG)
        finally:
            counts.cleaned += 100

    async def inside() -> None:
        await (flow if declare == "nested flow" else task)(below)()

    async def inside_submitted() -> None:
        await task(below).submit().wait_async()  # its outcome would be another error in the group: see above
        await anyio.sleep(LONG)

    place = inside_submitted if declare == "submitted task" else inside
    with pytest.raises(RunCancelledError, match=r"cancelled by (task|flow) run '.*' through cancel_flow_run"):
        await tree(counts, "gathered", inside=place)()
    assert (counts.started, counts.cleaned) == (50, 152)
    assert {run.state.type.value for run in await all_runs()} == {"CANCELLED"}


async def test_a_group_child_that_awaits_a_submitted_run() -> None:
    ids: list[UUID] = []

    async def waits() -> None:
        await sleeps.submit()

    @flow
    async def nested() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(sleeps)

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            ids.append(own_flow_run())
            await nested()

    async def cancel_it() -> None:
        await until(lambda: ids)
        await until_running("sleeps", 3)
        await cancel_flow_run(ids[0])

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it)
        with pytest.raises((RunCancelledError, ExceptionGroup)) as caught:
            await main()
    assert isinstance(caught.value, RunCancelledError)
    assert {run.state.type.value for run in await all_runs()} == {"CANCELLED"}


async def until_running(name: str, count: int) -> None:
    found: list[TaskRun] = []
    while len(found) < count:
        found = await get_client().read_task_runs(state="RUNNING")
        found = [run for run in found if run.task_name == name]
        await anyio.sleep(0.001)


async def test_from_another_flow_run() -> None:
    counts = Counts()

    @flow
    async def supervisor() -> str:
        await until(lambda: counts.started == 50)
        state = await cancel_flow_run(str(counts.root), reason="by the supervisor")
        return state.type.value

    async with anyio.create_task_group() as group:
        found: list[str] = []

        async def supervise() -> None:
            found.append(await supervisor())

        group.start_soon(supervise)
        with pytest.raises(RunCancelledError, match=r"cancelled by flow run .* through cancel_flow_run: by the superv"):
            await tree(counts, "submit")()
    assert found == ["CANCELLED"]
    assert (await states_by_function())["supervisor"] == "COMPLETED"
    assert (counts.started, counts.cleaned) == (50, 52)


async def test_one_that_was_submitted_in_a_runtime() -> None:
    counts = Counts()
    async with Runtime(store=MemoryStore()):
        future = tree(counts, "submit").submit()
        await until(lambda: counts.started == 50)
        assert (await cancel_flow_run(future.flow_run_id)).is_cancelled()
        assert future.done()
        with pytest.raises(RunCancelledError, match="through cancel_flow_run"):
            await future
        await assert_all_cancelled(counts)


async def test_the_first_cause_is_everybody_s() -> None:
    counts = Counts()
    answers: list[str | None] = []

    async def cancel_it(reason: str) -> None:
        assert counts.root is not None
        answers.append((await cancel_flow_run(counts.root, reason=reason)).message)

    async def cancel_it_often() -> None:
        await until(lambda: counts.started == 50)
        async with anyio.create_task_group() as group:
            await group.start(first)
            for number in range(5):
                group.start_soon(cancel_it, str(number))

    async def first(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        cancelled = anyio.Event()

        async def say() -> None:
            await anyio.lowlevel.checkpoint()
            cancelled.set()

        async with anyio.create_task_group() as group:
            group.start_soon(say)
            task_status.started()
            await cancel_it("the first")

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it_often)
        with pytest.raises(RunCancelledError):
            await tree(counts, "gathered")()
    assert len(answers) == 6
    assert len(set(answers)) == 1
    assert {run.state.message for run in await all_runs()} == set(answers)
    await assert_all_cancelled(counts)


async def test_cancelling_the_wait_takes_nothing_back() -> None:
    counts = Counts()

    async def cancel_it() -> None:
        await until(lambda: counts.started == 50)
        assert counts.root is not None
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cancel_flow_run(counts.root)
        with anyio.move_on_after(0):
            await cancel_flow_run(counts.root)

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it)
        group.start_soon(cancel_in_earnest, counts)
        with pytest.raises(RunCancelledError):
            await tree(counts, "gathered")()
    await assert_all_cancelled(counts)


async def cancel_in_earnest(counts: Counts) -> None:
    # A scope that is cancelled before the call may end it at its first await, which cancels nothing.
    await until(lambda: counts.started == 50)
    await anyio.sleep(0.05)
    assert counts.root is not None
    await cancel_flow_run(counts.root)


# --- sync flows -----------------------------------------------------------------------------------


@task
async def sleeps() -> None:
    await anyio.sleep(LONG)


@task
def until_cancelled(started: Callable[[], object] = lambda: None) -> None:
    started()
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        checkpoint()
        time.sleep(0.001)


def wait_by_checkpoint() -> None:
    until_cancelled()


def wait_for_a_result() -> None:
    sleeps.submit().result()


def wait_for_a_thread() -> None:
    until_cancelled.submit().wait()


def wait_in_as_completed() -> None:
    for _ in as_completed([sleeps.submit(), sleeps.submit()]):
        raise AssertionError("none of them ends")


def wait_in_a_map() -> None:
    list(echo.map_stream(range(3), limit=2))


@task
async def echo(_item: int) -> None:
    await anyio.sleep(LONG)


def wait_for_a_limit() -> None:
    with concurrency("held by the test", 1), concurrency("held by the test too", 1):
        held = holds_it.submit("the third")
        while not held.state.is_running():
            time.sleep(0.001)
        time.sleep(0.02)
        with concurrency("the third", 1):
            raise AssertionError("somebody else has it")


@task
async def holds_it(name: str) -> None:
    async with concurrency(name, 1):
        await anyio.sleep(LONG)


def wait_to_try_again() -> None:
    @task(retries=1, retry_delay_seconds=LONG)
    def fails() -> None:
        raise LookupError

    fails()


def wait_for_the_rest() -> None:
    sleeps.submit()


SYNC_WAITS = [
    wait_by_checkpoint,
    wait_for_a_result,
    wait_for_a_thread,
    wait_in_as_completed,
    wait_in_a_map,
    wait_for_a_limit,
    wait_to_try_again,
    wait_for_the_rest,
]


@pytest.mark.parametrize("wait", SYNC_WAITS)
@everywhere
def test_a_sync_flow_wherever_its_thread_waits(place: Backend | None, wait: Callable[[], None]) -> None:
    ids: list[UUID] = []
    answers: list[State[Any]] = []
    cleaned: list[str] = []
    client = get_client()

    def body() -> None:
        ids.append(own_flow_run())
        try:
            wait()
        finally:
            cleaned.append("yes")

    async def cancel_it() -> None:
        await anyio.sleep(0.06)  # by then the thread waits; before, it would be told at its next call
        answers.append(await cancel_flow_run(ids[0], client=client))

    def helper() -> None:
        end = time.monotonic() + LONG
        while not ids and time.monotonic() < end:
            time.sleep(0.001)
        anyio.run(cancel_it)

    began = time.monotonic()
    thread = in_a_thread_of_its_own(helper)
    with pytest.raises(RunCancelledError, match="through cancel_flow_run") as caught:
        in_sync_flow(place, body)
    thread.join(LONG)
    assert time.monotonic() - began < 4  # less than the grace time
    assert answers[0].is_cancelled()
    assert caught.value.state == answers[0]
    assert cleaned == ["yes"]
    runs = anyio.run(all_runs)
    assert {run.state.type.value for run in runs} == {"CANCELLED"}


def test_a_sync_flow_that_cancels_itself() -> None:
    after: list[str] = []

    @flow
    def main() -> None:
        cancel_in_its_thread()
        after.append("before the next checkpoint")
        checkpoint()
        after.append("after it")

    with pytest.raises(RunCancelledError):
        main()
    assert after == ["before the next checkpoint"]


def cancel_in_its_thread() -> None:
    me, client = own_flow_run(), get_client()

    async def cancel_me() -> None:
        assert not (await cancel_flow_run(me, client=client)).is_final()

    anyio.run(cancel_me)


async def test_a_thread_that_cancels_its_own_flow_stops_at_its_next_checkpoint() -> None:
    after: list[str] = []
    begun, blocked, cancelled = threading.Event(), threading.Event(), threading.Event()

    @flow
    def main() -> None:
        begun.set()
        assert blocked.wait(LONG)
        cancel_in_its_thread()
        cancelled.set()
        after.append("before the next checkpoint")
        checkpoint()
        after.append("after it")

    async def keep_the_loop_busy() -> None:
        await until(begun.is_set)
        blocked.set()
        cancelled.wait(1)
        time.sleep(0.05)

    async with anyio.create_task_group() as group:
        group.start_soon(keep_the_loop_busy)
        with pytest.raises(RunCancelledError):
            await main.acall()
    assert after == ["before the next checkpoint"]


# --- which runs -----------------------------------------------------------------------------------


async def test_a_run_that_has_ended_keeps_its_state() -> None:
    @flow
    async def quick(fails: bool) -> UUID:
        if fails:
            raise LookupError(str(own_flow_run()))
        return own_flow_run()

    done = await quick(False)
    state = await cancel_flow_run(done, reason="too late")
    assert state.is_completed()
    with pytest.raises(LookupError) as caught:
        await quick(True)
    assert (await cancel_flow_run(caught.value.args[0])).is_failed()
    assert {run.state.type.value for run in await all_runs()} == {"COMPLETED", "FAILED"}


async def test_an_unknown_run() -> None:
    with pytest.raises(RunNotFoundError):
        await cancel_flow_run(uuid4())
    with pytest.raises(RunNotFoundError):
        await cancel_flow_run(str(uuid4()))

    @flow
    async def one() -> None:
        with pytest.raises(RunNotFoundError):
            await cancel_flow_run(uuid4())

    await one()


async def test_the_id_of_a_task_run_is_none_of_a_flow_run() -> None:
    @flow
    async def main() -> None:
        future = sleeps.submit()
        await until(lambda: future.state.is_running())
        with pytest.raises(RunNotFoundError):
            await cancel_flow_run(future.task_run_id)
        assert future.state.is_running()
        future.cancel()

    await main()


@pytest.mark.parametrize("where", ["inside", "beside", "outside"])
@pytest.mark.parametrize("submitted", [False, True])
async def test_a_nested_run_is_refused(where: str, submitted: bool) -> None:
    ids: dict[str, UUID] = {}
    refused: list[CannotCancelNestedRunError] = []
    done = anyio.Event()

    async def try_it() -> None:
        await until(lambda: "nested" in ids)
        with pytest.raises(CannotCancelNestedRunError, match="part of") as caught:
            await cancel_flow_run(ids["nested"])
        refused.append(caught.value)
        done.set()

    @flow
    async def nested() -> str:
        ids["nested"] = own_flow_run()
        if where == "inside":
            await try_it()
        await done.wait()
        return "undisturbed"

    @flow
    async def root() -> str:
        ids["root"] = own_flow_run()
        async with anyio.create_task_group() as group:
            if where == "beside":
                group.start_soon(try_it)
            answer = await (nested.submit() if submitted else nested())
        return answer  # noqa: RET504  # for checkers: a group may end its block early

    async with anyio.create_task_group() as group:
        if where == "outside":
            group.start_soon(try_it)
        assert await root() == "undisturbed"
    assert str(ids["nested"]) in str(refused[0])
    assert str(ids["root"]) in str(refused[0])
    assert {run.state.type.value for run in await all_runs()} == {"COMPLETED"}


async def test_many_runs_come_and_go_while_ids_are_looked_up() -> None:
    """The open runs are shared by all threads: looking through them must stand others that begin and end meanwhile."""
    over = threading.Event()

    @flow
    def comes_and_goes() -> None:
        pass

    def come_and_go() -> None:
        while not over.is_set():
            comes_and_goes()

    threads = [anyio_thread(come_and_go) for _ in range(3)]
    try:
        for _ in range(60):
            with pytest.raises(RunNotFoundError):
                await cancel_flow_run(uuid4())
    finally:
        over.set()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, LONG)


def anyio_thread(fn: Callable[[], object]) -> threading.Thread:
    """A thread in a copy of this context: its runs are in the runtime of the test."""
    import contextvars

    return in_a_thread_of_its_own(partial(contextvars.copy_context().run, fn))


# --- what the run is doing ------------------------------------------------------------------------


class Busy:
    """A submitted run in some state of its life, and what its body saw."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.bodies: list[str] = []
        self.upstream: list[Any] = []

    async def body(self, *_: Any) -> None:
        self.bodies.append("began")
        try:
            await anyio.sleep(LONG)
        finally:
            self.bodies.append("ended")


async def hook_that_waits(busy: Busy, *_: object) -> None:
    busy.ready.set()
    try:
        await anyio.sleep(LONG)
    finally:
        busy.bodies.append("hook ended")


def started(busy: Busy, situation: str, declare: Any) -> Any:
    """Submit a run that will be in this situation when `busy.ready` is set, or at once."""
    if situation == "in a hook":
        return declare(busy.body, name="busy", on_running=[partial(hook_that_waits, busy)]).submit()
    if situation == "in a retry delay":

        def fails() -> None:
            busy.bodies.append("began")
            busy.bodies.append("ended")
            raise LookupError

        return declare(fails, name="busy", retries=1, retry_delay_seconds=LONG).submit()
    if situation == "waits for upstream":
        busy.upstream.append(sleeps.submit())
        return declare(busy.body, name="busy").submit(busy.upstream[0])
    if situation == "waits for order":
        busy.upstream.append(sleeps.submit())
        return declare(busy.body, name="busy").submit(wait_for=busy.upstream)
    if situation == "in a thread":

        def in_thread() -> None:
            busy.ready.set()
            busy.bodies.append("began")
            try:
                until_cancelled.fn()
            finally:
                busy.bodies.append("ended")

        return declare(in_thread, name="busy").submit()
    if situation == "in a thread that waits":

        def waits() -> None:
            busy.bodies.append("began")
            try:
                wait_for_a_result()
            finally:
                busy.bodies.append("ended")

        return declare(waits, name="busy").submit()
    return declare(busy.body, name="busy", **({"tags": ["one"]} if situation == "waits for its tag" else {})).submit()


# What its body had done when the run was cancelled, and what its state was.
SITUATIONS: dict[str, tuple[list[str], str]] = {
    "at once": ([], "Pending"),
    "waits for a place": ([], "Pending"),
    "waits for its tag": ([], "Pending"),
    "waits for upstream": ([], "Pending"),
    "waits for order": ([], "Pending"),
    "in its body": (["began", "ended"], "Running"),
    "in a hook": (["hook ended"], "Running"),
    "in a retry delay": (["began", "ended"], "AwaitingRetry"),
    "in a thread": (["began", "ended"], "Running"),
    "in a thread that waits": (["began", "ended"], "Running"),
}


@pytest.mark.parametrize("by", ["future", "future in a thread", "its flow's end", "cancel_flow_run"])
@pytest.mark.parametrize("declare", [task, flow])
@pytest.mark.parametrize("situation", SITUATIONS)
async def test_a_submitted_run_whatever_it_does(  # noqa: C901  # one story
    situation: str, declare: Any, by: str
) -> None:
    if situation == "waits for its tag" and declare is flow:
        pytest.skip("tag limits are for tasks")
    busy = Busy()
    kept: list[Any] = []
    done, name = SITUATIONS[situation]

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1 if situation == "waits for a place" else None))
    async def main() -> None:
        if situation == "waits for a place":
            kept.append(holder := sleeps.submit())
            await until(lambda: holder.state.is_running())
        elif situation == "waits for its tag":
            kept.append(holder := sleeps.with_options(tags=["one"]).submit())
            await until(lambda: holder.state.is_running())
        future = started(busy, situation, declare)
        kept.append(future)
        if situation != "at once":
            await until(lambda: future.state.name == name)
            await anyio.wait_all_tasks_blocked()
            if situation in ("in a thread", "in a thread that waits", "in a hook"):
                await anyio.sleep(0.02)
        if by == "its flow's end":
            raise LookupError
        if by == "cancel_flow_run":
            await cancel_flow_run(own_flow_run())
            await anyio.sleep(LONG)
        assert await (anyio.to_thread.run_sync(future.cancel) if by == "future in a thread" else call(future.cancel))
        with anyio.fail_after(4), pytest.raises(RunCancelledError) as caught:
            await future
        assert caught.value.state == future.state
        for each in kept + busy.upstream:
            each.cancel()

    ends = {"its flow's end": LookupError, "cancel_flow_run": RunCancelledError}
    with pytest.raises(ends[by]) if by in ends else contextlib.nullcontext():
        await main()
    assert kept[-1].state.is_cancelled()
    if situation == "at once":
        assert busy.bodies in ([], ["began", "ended"])
    else:
        assert busy.bodies == done
    assert (await states_by_function())["busy"] == "CANCELLED"


async def call(fn: Callable[[], Any]) -> Any:
    return fn()


@pytest.mark.parametrize("declare", [task, flow])
async def test_a_body_in_an_anyio_shield_is_told_when_the_shield_ends(declare: Any) -> None:
    seen: list[str] = []
    shielded = anyio.Event()

    async def body() -> None:
        with anyio.CancelScope(shield=True):
            shielded.set()
            await anyio.sleep(0.1)
            seen.append("the shield ended")
        await anyio.sleep(LONG)

    @flow
    async def main() -> None:
        future = declare(body, name="shields").submit()
        await shielded.wait()
        began = time.monotonic()
        assert future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        assert 0.05 < time.monotonic() - began < 2

    await main()
    assert seen == ["the shield ended"]
    assert (await states_by_function())["shields"] == "CANCELLED"


@pytest.mark.parametrize("place", ["in a hook", "in a retry delay", "in a shield", "in its body"])
async def test_an_outermost_flow_whatever_it_does(place: str) -> None:
    ids: list[UUID] = []
    seen: list[str] = []

    async def waits(*_: object) -> None:
        ids.append(own_flow_run())
        try:
            await anyio.sleep(LONG)
        finally:
            seen.append("hook ended")

    @flow(retries=1, retry_delay_seconds=LONG, on_running=[waits] if place == "in a hook" else [])
    async def main() -> None:
        ids.append(own_flow_run())
        if place == "in a retry delay":
            raise LookupError
        with anyio.CancelScope(shield=place == "in a shield"):
            await anyio.sleep(0.1 if place == "in a shield" else LONG)
            seen.append("the shield ended")
        await anyio.sleep(LONG)

    async def cancel_it() -> None:
        await until(lambda: ids)
        await anyio.wait_all_tasks_blocked()
        assert (await cancel_flow_run(ids[0])).is_cancelled()

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it)
        with anyio.fail_after(4), pytest.raises(RunCancelledError):
            await main()
    assert seen == {"in a hook": ["hook ended"], "in a shield": ["the shield ended"]}.get(place, [])
    assert (await states_by_function()) == {"main": "CANCELLED"}


async def test_streams_and_maps_below_are_cancelled_too() -> None:
    ids: list[UUID] = []
    closed: list[str] = []

    @task
    async def counts() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep(LONG)
        finally:
            closed.append("stream")

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(consume, counts())
            group.start_soon(consume, echo.map_stream(range(10), limit=3))
            group.start_soon(anyio.sleep, LONG)
            await anyio.wait_all_tasks_blocked()
            ids.append(own_flow_run())

    async def consume(items: Any) -> None:
        async for _ in items:
            pass

    async def cancel_it() -> None:
        await until(lambda: ids)
        await cancel_flow_run(ids[0])

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it)
        with pytest.raises(RunCancelledError):
            await main()
    assert closed == ["stream"]
    assert await states_by_function() == {"main": "CANCELLED", "counts": "CANCELLED", "echo": "CANCELLED"}


# --- what callers get -----------------------------------------------------------------------------


@pytest.mark.parametrize("caller", ["await", "another task", "wait"])
async def test_a_caller_that_was_not_cancelled_gets_an_error_with_the_state(caller: str) -> None:
    @task
    async def waits_for(future: Any) -> Any:
        return await future[0]

    @flow
    async def main() -> str:
        future = sleeps.submit()
        await until(lambda: future.state.is_running())
        if caller == "another task":
            box = type("Box", (), {"__getitem__": lambda _self, _index: future})()
            waiting = waits_for.submit(box)
            await until(lambda: waiting.state.is_running())
            await anyio.wait_all_tasks_blocked()
            future.cancel()
            awaited: Any = waiting
        else:
            future.cancel()
            awaited = future
        if caller == "wait":
            assert await future.wait_async()
        with pytest.raises(RunCancelledError, match="cancelled through its future") as caught:
            await awaited
        assert caught.value.state is not None
        assert caught.value.state.is_cancelled()
        assert caught.value.state == future.state
        await anyio.sleep(0.002)  # nothing stray
        return "went on"

    assert await main() == "went on"
    found = await states_by_function()
    assert found["main"] == "COMPLETED"
    if caller == "another task":
        assert found["waits_for"] == "FAILED"


async def test_a_caller_that_asked_for_the_state_gets_it() -> None:
    counts = Counts()

    async def cancel_it() -> None:
        await until(lambda: counts.started == 50)
        assert counts.root is not None
        await cancel_flow_run(counts.root)

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it)
        state = await tree(counts, "submit")(return_state=True)
    assert state.is_cancelled()
    with pytest.raises(RunCancelledError) as caught:
        state.result()
    assert caught.value.state is not None
    assert caught.value.state.id == state.id


# --- deaf bodies ----------------------------------------------------------------------------------


class Deaf:
    """A body that ignores every cancellation until it is told to end."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.release = anyio.Event()
        self.ended = anyio.Event()

    async def body(self) -> str:
        self.started.set()
        while not self.release.is_set():
            with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
                await self.release.wait()
        self.ended.set()
        return "too late"

    async def let_go(self) -> None:
        """Have it end, so that nothing of it outlives the test."""
        self.release.set()
        await self.ended.wait()
        await anyio.sleep(0.01)

    @asynccontextmanager
    async def let_go_after(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.let_go()


@pytest.mark.parametrize("declare", [task, flow])
@pytest.mark.parametrize("way", ["future", "cancel_flow_run", "its flow fails"])
async def test_a_deaf_body_is_crashed_after_the_grace_time_and_nobody_else_waits(declare: Any, way: str) -> None:
    deaf = Deaf()
    cleaned: list[str] = []
    ids: list[UUID] = []

    @task
    async def polite() -> None:
        try:
            await anyio.sleep(LONG)
        finally:
            cleaned.append("polite")

    @flow
    async def nested() -> None:
        declare(deaf.body, name="deaf").submit()
        await polite()

    @flow
    async def main() -> None:
        future = nested.submit()
        polite.submit()
        await deaf.started.wait()
        await anyio.wait_all_tasks_blocked()
        ids.append(own_flow_run())
        if way == "its flow fails":
            raise LookupError
        if way == "future":
            future.cancel()
            await future.wait_async()
            assert future.state.is_cancelled()
            raise LookupError
        await anyio.sleep(LONG)

    async def cancel_it() -> None:
        await until(lambda: ids)
        assert (await cancel_flow_run(ids[0])).is_cancelled()

    async with Runtime(store=MemoryStore(), grace_seconds=0.3), deaf.let_go_after():
        async with anyio.create_task_group() as group:
            if way == "cancel_flow_run":
                group.start_soon(cancel_it)
            began = time.monotonic()
            with pytest.raises(RunCancelledError if way == "cancel_flow_run" else LookupError):
                await main()
        assert 0.25 < time.monotonic() - began < 1.2
        found = {getattr(run, "flow_name", getattr(run, "task_name", "")): run.state for run in await all_runs()}
        assert found["deaf"].is_crashed()
        assert (found["deaf"].message or "").startswith("ignored cancellation for 0.3 seconds (")
        assert found["nested"].is_cancelled()
        assert cleaned == ["polite", "polite"]
        polite_ends = [run.end_time for run in await get_client().read_task_runs() if run.task_name == "polite"]
        first = min(end for end in polite_ends if end is not None)  # the other's flow ends later
        assert (found["deaf"].timestamp - first).total_seconds() > 0.2
        await deaf.let_go()
        again = {getattr(run, "flow_name", getattr(run, "task_name", "")): run.state for run in await all_runs()}
        assert again["deaf"] == found["deaf"]


async def test_who_waits_for_a_deaf_run_gets_an_error() -> None:
    deaf = Deaf()

    @flow
    async def main() -> None:
        future = task(deaf.body, name="deaf").submit()
        waits = echo.submit(future)
        await deaf.started.wait()
        future.cancel()
        with pytest.raises(CrashedRunError, match="ignored cancellation") as caught:
            await future
        assert caught.value.state == future.state
        await waits.wait_async()
        assert waits.state.name == "NotReady"

    async with Runtime(store=MemoryStore(), grace_seconds=0.1), deaf.let_go_after():
        await main()


@everywhere
def test_a_deaf_thread_is_crashed_after_the_grace_time(place: Backend | None) -> None:
    release = threading.Event()
    began = threading.Event()

    @task
    def deaf() -> None:
        began.set()
        release.wait(LONG)

    def body() -> tuple[str, str | None]:
        future = deaf.submit()
        assert began.wait(LONG)
        future.cancel()
        assert future.wait(LONG)
        assert isinstance(future.result(raise_on_failure=False), CrashedRunError)
        state = future.state
        return state.type.value, state.message

    with Runtime(store=MemoryStore(), grace_seconds=0.2):
        try:
            type_, message = in_sync_flow(place, body)
        finally:
            release.set()
    assert type_ == "CRASHED"
    assert (message or "").startswith("ignored cancellation for 0.2 seconds")


# --- runs that are elsewhere ------------------------------------------------------------------------


async def test_a_run_of_another_process_is_refused(run_python: Any, tmp_path: Any) -> None:
    """As far as this process can see: its record is open, and nobody here runs it."""
    home = tmp_path / "shared"
    code = """
import asyncflow, os, sys
@asyncflow.flow
async def main():
    print(asyncflow.runtime.flow_run.id, flush=True)
    import anyio
    await anyio.sleep(0.5)  # the record of its beginning is written
    os._exit(0)
import anyio
async def go():
    async with asyncflow.Runtime(sys.argv[1]):
        await main()
anyio.run(go)
"""
    done = await anyio.to_thread.run_sync(partial(run_python, code, str(home)))
    run_id = done.stdout.strip()
    async with Runtime(home):
        state = (await get_client().read_flow_run(run_id)).state
        if state.is_final():
            pytest.skip("runs of dead processes are marked when a runtime opens")
        with pytest.raises(RunElsewhereError, match=run_id):
            await cancel_flow_run(run_id)
