"""Generators: items as they are made, and every way in which a stream ends."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import FlowRun, Runtime, TaskRun, flow, get_client, runtime, task
from asyncflow.exceptions import RunEndedError, SyncCallOnEventLoopError
from tests.conftest import BACKENDS, RunPython

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
LONG = 30.0
CLOSED = ("CANCELLED", "closed by its consumer")

mark = contextvars.ContextVar("mark", default="outside")


async def runs() -> dict[str, FlowRun | TaskRun]:
    client = get_client()
    found: dict[str, FlowRun | TaskRun] = {each.flow_name: each for each in await client.read_flow_runs()}
    found |= {each.task_name: each for each in await client.read_task_runs() if not each.child_flow_run_id}
    return found


async def state_of(name: str) -> tuple[str, str | None]:
    found = (await runs())[name].state
    return found.type.value, found.message


Declare = Callable[[Callable[..., Any]], Any]
EACH_KIND = pytest.mark.parametrize("declare", [flow, task], ids=["flow", "task"])


def counting(log: list[str], last: int = 3) -> Callable[[], AsyncIterator[int]]:
    async def count() -> AsyncIterator[int]:
        log.append("begin")
        try:
            for number in range(1, last + 1):
                log.append(f"make {number}")
                yield number
        finally:
            await _moment()
            log.append("finally")

    return count


def counting_sync(log: list[str], last: int = 3) -> Callable[[], Iterator[int]]:
    def count() -> Iterator[int]:
        log.append("begin")
        try:
            for number in range(1, last + 1):
                log.append(f"make {number}")
                yield number
        finally:
            log.append("finally")

    return count


def agrees_and_sets(event: anyio.Event) -> Callable[..., bool]:
    def condition(*_: Any) -> bool:
        event.set()
        return True

    return condition


async def _moment() -> None:
    with anyio.CancelScope(shield=True):
        await anyio.sleep(0.01)


# --- items ---------------------------------------------------------------------------------


@EACH_KIND
@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_items_come_as_they_are_made(declare: Declare, make: Any) -> None:
    log: list[str] = []
    stream: Any = declare(make(log)).stream()
    assert log == []
    assert stream.state is None
    async for item in stream:
        log.append(f"take {item}")
        await anyio.wait_all_tasks_blocked()
    # The body does not run ahead: it makes an item when one is asked for.
    assert log == ["begin", "make 1", "take 1", "make 2", "take 2", "make 3", "take 3", "finally"]
    assert await state_of("count") == ("COMPLETED", None)
    assert stream.state is not None
    assert stream.state.is_completed()  # type: ignore[unreachable]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@EACH_KIND
async def test_calling_an_async_generator_streams(declare: Declare) -> None:
    assert [item async for item in declare(counting([]))()] == [1, 2, 3]


async def test_a_sync_generator_is_not_called_on_a_loop() -> None:
    with pytest.raises(SyncCallOnEventLoopError):
        flow(counting_sync([]))()


async def test_items_need_not_be_json() -> None:
    things = [object(), {1, 2}, lambda: 0]

    @flow
    async def anything() -> AsyncIterator[Any]:
        for thing in things:
            yield thing

    assert [item async for item in anything()] == things
    assert await state_of("anything") == ("COMPLETED", None)


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_what_is_sent_is_what_yield_gives(colour: str) -> None:
    async def echo() -> AsyncIterator[Any]:
        got: Any = "first"
        for _ in range(3):
            got = yield got

    def echo_sync() -> Iterator[Any]:
        got: Any = "first"
        for _ in range(3):
            got = yield got

    stream: Any = flow(echo if colour == "async" else echo_sync).stream()  # type: ignore[misc]
    assert await anext(stream) == "first"
    assert await stream.asend("second") == "second"
    assert await anext(stream) is None
    with pytest.raises(StopAsyncIteration):
        await stream.asend("last")


async def test_one_item_at_a_time() -> None:
    @flow
    async def slow() -> AsyncIterator[int]:
        await anyio.sleep(LONG)
        yield 1

    stream: Any = slow()
    async with anyio.create_task_group() as group:
        group.start_soon(anext, stream)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="already waiting"):
            await anext(stream)
        group.cancel_scope.cancel()


# --- ends ----------------------------------------------------------------------------------


@EACH_KIND
@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_aclose_returns_after_the_finally(declare: Declare, make: Any) -> None:
    log: list[str] = []
    stream: Any = declare(make(log)).stream()
    assert await anext(stream) == 1
    await stream.aclose()
    assert log == ["begin", "make 1", "finally"]
    assert await state_of("count") == CLOSED
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@EACH_KIND
@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_async_with_returns_after_the_finally(declare: Declare, make: Any) -> None:
    log: list[str] = []
    async with declare(make(log)).stream() as items:
        async for item in items:
            if item == 2:
                break
    assert log == ["begin", "make 1", "make 2", "finally"]
    assert await state_of("count") == CLOSED


@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_the_run_around_a_bare_break_waits_for_the_finally(make: Any) -> None:
    log: list[str] = []
    counted = task(make(log))

    @flow
    async def around() -> None:
        async for item in counted.stream():
            if item == 2:
                break
        log.append("left")

    await around()
    assert sorted(log) == ["begin", "finally", "left", "make 1", "make 2"]
    assert await state_of("count") == CLOSED
    assert await state_of("around") == ("COMPLETED", None)


@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_an_exception_of_the_consumer_closes(make: Any) -> None:
    log: list[str] = []
    counted = task(make(log))

    @flow
    async def around() -> None:
        async with counted.stream() as items:
            async for _ in items:
                raise LookupError("of the consumer")

    with pytest.raises(LookupError, match="of the consumer"):
        await around()
    assert log[-1] == "finally"
    assert await state_of("count") == CLOSED
    assert await state_of("around") == ("FAILED", "LookupError: of the consumer")


@EACH_KIND
@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_an_exception_of_the_body_arrives_and_is_recorded(declare: Declare, colour: str) -> None:
    error = LookupError("of the body")

    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise error

    def breaks_sync() -> Iterator[int]:
        yield 1
        raise error

    breaks_sync.__name__ = breaks_sync.__qualname__ = "breaks"
    got: list[int] = []
    with pytest.raises(LookupError) as caught:  # noqa: PT012  # the block is what is looked at
        async for item in declare(breaks if colour == "async" else breaks_sync).stream():
            got.append(item)  # noqa: PERF401  # what came before an end counts
    assert got == [1]
    assert caught.value is error
    assert await state_of("breaks") == ("FAILED", "LookupError: of the body")


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_an_exception_in_the_clean_up_arrives_at_aclose(colour: str) -> None:
    async def untidy() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("in the clean-up")

    def untidy_sync() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise LookupError("in the clean-up")

    untidy_sync.__name__ = untidy_sync.__qualname__ = "untidy"
    stream: Any = task(untidy if colour == "async" else untidy_sync).stream()  # type: ignore[misc]
    await anext(stream)
    with pytest.raises(LookupError, match="in the clean-up"):
        await stream.aclose()
    type_, message = await state_of("untidy")
    assert type_ == "FAILED"
    assert message is not None
    assert "LookupError: in the clean-up" in message
    assert "closed by its consumer" in message


async def test_a_thrown_exception_is_the_consumer_s() -> None:
    log: list[str] = []
    stream: Any = flow(counting(log))()
    await anext(stream)
    with pytest.raises(LookupError, match="mine"):
        await stream.athrow(LookupError("mine"))
    assert log[-1] == "finally"
    assert await state_of("count") == CLOSED


async def test_two_tasks_may_close_one_stream() -> None:
    log: list[str] = []
    stream: Any = flow(counting(log))()
    await anext(stream)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(stream.aclose)
            group.start_soon(stream.aclose)
    assert log.count("finally") == 1


async def test_a_stream_that_was_never_started_leaves_no_run() -> None:
    stream: Any = flow(counting([]))()
    await stream.aclose()
    flow(counting([]))()
    task(counting_sync([])).stream()
    gc.collect()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert await runs() == {}


async def test_a_body_that_yields_while_it_is_stopped_must_end() -> None:
    log: list[str] = []

    @task
    async def goes_on() -> AsyncIterator[int]:
        try:
            yield 1
        except BaseException:
            log.append("stopped")
            yield 2
        log.append("went on")

    stream: Any = goes_on()
    await anext(stream)
    with anyio.fail_after(5):
        await stream.aclose()
    assert log == ["stopped"]
    assert (await state_of("goes_on"))[0] == "CANCELLED"


# --- cancelling ----------------------------------------------------------------------------


async def test_a_consumer_cancelled_while_it_waits_waits_for_the_finally() -> None:
    log: list[str] = []
    waiting = anyio.Event()

    @task
    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
            waiting.set()
            await anyio.sleep(LONG)
        finally:
            await _moment()
            log.append("finally")

    @flow
    async def around() -> None:
        async for _ in slow():
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(around)
        await waiting.wait()
        group.cancel_scope.cancel()
    assert log == ["finally"]
    assert await state_of("slow") == ("CANCELLED", "cancelled by its caller")
    assert await state_of("around") == ("CANCELLED", "cancelled by its caller")


async def test_a_consumer_cancelled_at_its_first_item() -> None:
    begun: list[str] = []

    @task
    async def first() -> AsyncIterator[int]:
        begun.append("body")
        await anyio.sleep(LONG)
        yield 1

    with anyio.fail_after(5):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(first())
    found = await runs()
    assert all(each.state.type.value == "CANCELLED" for each in found.values())


async def test_a_consumer_cancelled_while_a_thread_makes_the_item() -> None:
    log: list[str] = []
    inside, release = threading.Event(), threading.Event()

    @task
    def slow() -> Iterator[int]:
        try:
            yield 1
            inside.set()
            release.wait(LONG)
            yield 2
        finally:
            log.append(threading.current_thread().name)

    async def free() -> None:
        while not inside.is_set():
            await anyio.sleep(0.001)
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.02)
        release.set()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(free)
        with scope:
            async for _ in slow.stream():
                pass
    assert len(log) == 1
    assert log[0].startswith("asyncflow-worker")
    assert (await state_of("slow"))[0] == "CANCELLED"


async def test_a_consumer_cancelled_in_async_with_waits_for_the_finally() -> None:
    log: list[str] = []
    with anyio.CancelScope() as scope:
        async with task(counting(log)).stream() as items:
            await anext(items)
            scope.cancel()
            await anyio.sleep(LONG)
    assert log == ["begin", "make 1", "finally"]
    assert await state_of("count") == CLOSED


@asyncio_only
async def test_a_coroutine_closed_while_it_waits_for_an_item() -> None:
    log: list[str] = []

    @task
    async def slow() -> AsyncIterator[int]:
        log.append("begin")
        try:
            await anyio.sleep(LONG)
            yield 1
        finally:
            log.append("finally")

    async def consume() -> None:
        await anext(stream)

    await runs()  # opens the store
    stream: Any = slow()
    coroutine = consume()
    coroutine.send(None)
    await anyio.wait_all_tasks_blocked()
    coroutine.close()
    with anyio.fail_after(5):
        await stream.aclose()
    assert log == ["begin", "finally"]
    assert (await state_of("slow"))[0] == "CANCELLED"


async def test_an_open_stream_does_not_hold_up_the_flow_that_holds_it() -> None:
    log: list[str] = []
    held: list[Any] = []

    @flow
    async def around() -> str:
        stream: Any = task(counting(log)).stream()
        held.append(stream)
        await anext(stream)
        return "value"

    with anyio.fail_after(5):
        assert await around() == "value"
    assert log == ["begin", "make 1", "finally"]
    assert await state_of("count") == CLOSED
    assert await state_of("around") == ("COMPLETED", None)
    with pytest.raises(StopAsyncIteration):
        await anext(held[0])


async def test_an_open_stream_is_closed_when_its_flow_fails() -> None:
    log: list[str] = []
    held: list[Any] = []

    @flow
    async def around() -> None:
        held.append(task(counting(log)).stream())
        await anext(held[0])
        raise LookupError("broke")

    with pytest.raises(LookupError):
        await around()
    assert log[-1] == "finally"
    type_, message = await state_of("count")
    assert type_ == "CANCELLED"
    assert message is not None
    assert "broke" in message


async def test_a_stream_begun_after_its_flow_ended_is_refused() -> None:
    held: list[Any] = []

    @flow
    async def around() -> None:
        held.append(task(counting([])).stream())

    await around()
    with pytest.raises(RunEndedError):
        await anext(held[0])


@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_a_dropped_stream_is_closed(make: Any) -> None:
    log: list[str] = []
    stream: Any = task(make(log)).stream()
    await anext(stream)
    del stream
    gc.collect()
    with anyio.fail_after(5):
        while "finally" not in log:
            await anyio.sleep(0.001)
        while not await get_client().read_task_runs(state="CANCELLED"):
            await anyio.sleep(0.005)
    assert await state_of("count") == CLOSED


# --- retries and deadlines -----------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_retried_generator_begins_anew(colour: str) -> None:
    async def flaky() -> AsyncIterator[str]:
        count = runtime.task_run.run_count
        yield f"{count}a"
        if count == 1:
            raise LookupError("first")
        yield f"{count}b"

    def flaky_sync() -> Iterator[str]:
        count = runtime.task_run.run_count
        yield f"{count}a"
        if count == 1:
            raise LookupError("first")
        yield f"{count}b"

    flaky_sync.__name__ = flaky_sync.__qualname__ = "flaky"
    retried = task(flaky if colour == "async" else flaky_sync, retries=1)
    assert [item async for item in retried.stream()] == ["1a", "2a", "2b"]  # type: ignore[misc, var-annotated]
    found = (await runs())["flaky"]
    assert found.run_count == 2
    assert found.state.is_completed()


async def test_closing_a_stream_that_waits_to_try_again() -> None:
    tried = anyio.Event()

    @task(retries=1, retry_delay_seconds=LONG, retry_condition_fn=agrees_and_sets(tried))
    async def flaky() -> AsyncIterator[int]:
        raise LookupError("first")
        yield 1  # type: ignore[unreachable]

    stream: Any = flaky()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:

            async def consume() -> None:
                async for _ in stream:
                    pass

            group.start_soon(consume)
            await tried.wait()
            await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert (await state_of("flaky"))[0] == "CANCELLED"


async def test_a_deadline_stops_a_body_at_work() -> None:
    log: list[str] = []

    @task(timeout_seconds=0.05)
    async def slow() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep(LONG)
        finally:
            log.append("finally")

    got: list[int] = []
    with pytest.raises(TimeoutError, match="slow"):  # noqa: PT012  # the block is what is looked at
        async for item in slow():
            got.append(item)  # noqa: PERF401  # what came before an end counts
    assert (got, log) == ([1], ["finally"])
    found = (await runs())["slow"].state
    assert (found.type.value, found.name) == ("FAILED", "TimedOut")


@pytest.mark.parametrize("make", [counting, counting_sync], ids=["async", "sync"])
async def test_a_deadline_while_the_consumer_is_busy_is_not_the_end_of_the_items(make: Any) -> None:
    log: list[str] = []
    stream: Any = task(make(log), timeout_seconds=0.03).stream()
    assert await anext(stream) == 1
    while "finally" not in log:
        await anyio.sleep(0.005)
    await anyio.sleep(0.05)
    with pytest.raises(TimeoutError):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    found = (await runs())["count"].state
    assert (found.type.value, found.name) == ("FAILED", "TimedOut")


# --- context -------------------------------------------------------------------------------


@task
async def inner_task() -> str:
    return str(runtime.task_run.id)


@task
def inner_sync_task() -> str:
    return str(runtime.task_run.id)


async def test_body_and_consumer_each_have_their_own_run() -> None:
    inside: list[Any] = []

    @task
    async def items() -> AsyncIterator[int]:
        for number in range(2):
            inside.append(runtime.task_run.id)
            await inner_task()
            yield number

    @flow
    async def around() -> tuple[Any, Any]:
        own = runtime.flow_run.id
        async for _ in items():
            assert runtime.task_run.id is None
            assert runtime.flow_run.id == own
            await inner_task()
        return str(own), str(inside[0])

    flow_id, stream_id = await around()
    others = [each for each in await get_client().read_task_runs() if each.task_name != "items"]
    parents = [str(each.parent_task_run_id) for each in others]
    assert sorted(parents) == sorted(["None", "None", stream_id, stream_id])
    assert inside[0] == inside[1]
    assert str((await runs())["items"].id) == stream_id
    assert flow_id != stream_id


async def test_tasks_called_in_a_sync_generator_s_body_are_its_children() -> None:
    @flow
    def items() -> Iterator[str]:
        yield inner_sync_task()
        yield inner_sync_task()

    ids = [item async for item in items.stream()]
    parent = (await runs())["items"].id
    for each in ids:
        assert (await get_client().read_task_run(each)).flow_run_id == parent


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_context_variables_of_the_body_stay_there(colour: str) -> None:
    async def sets() -> AsyncIterator[str]:
        yield mark.get()
        mark.set("body")
        yield mark.get()
        yield mark.get()

    def sets_sync() -> Iterator[str]:
        yield mark.get()
        mark.set("body")
        yield mark.get()
        yield mark.get()

    mark.set("consumer")
    got: list[str] = []
    async for item in flow(sets if colour == "async" else sets_sync).stream():  # type: ignore[misc, var-annotated]
        got.append(item)
        assert mark.get() == "consumer"
        mark.set("consumer")
    assert got == ["consumer", "body", "body"]


async def test_a_sync_body_makes_its_items_in_worker_threads() -> None:
    here = threading.get_ident()

    @flow
    def where() -> Iterator[bool]:
        yield threading.get_ident() == here
        yield threading.get_ident() == here

    assert [item async for item in where.stream()] == [False, False]


async def test_streams_within_streams() -> None:
    @task
    async def inner(start: int) -> AsyncIterator[int]:
        for number in range(start, start + 2):
            yield number

    @flow
    async def outer() -> AsyncIterator[int]:
        for start in (0, 10):
            async with inner.stream(start) as numbers:
                async for number in numbers:
                    yield number

    assert [item async for item in outer()] == [0, 1, 10, 11]
    stream: Any = outer()
    assert await anext(stream) == 0
    with anyio.fail_after(5):
        await stream.aclose()
    found = [*await get_client().read_flow_runs(), *await get_client().read_task_runs()]
    assert all(each.state.is_final() for each in found)
    assert sorted(each.state.type.value for each in found) == ["CANCELLED"] * 2 + ["COMPLETED"] * 3


async def test_many_streams_at_once(home: Path) -> None:
    totals: list[int] = []

    @task
    def numbers(start: int) -> Iterator[int]:
        yield from range(start, start + 5)

    async def consume(start: int) -> None:
        totals.append(sum([item async for item in numbers.stream(start)]))

    async with Runtime(home, max_threads=3):

        @flow
        async def around() -> None:
            async with anyio.create_task_group() as group:
                for start in range(40):
                    group.start_soon(consume, start)

        await around()
    assert sorted(totals) == [5 * start + 10 for start in range(40)]


# --- in scripts ----------------------------------------------------------------------------


@EACH_KIND
def test_a_script_takes_items_as_they_are_made(declare: Declare) -> None:
    log: list[str] = []
    stream: Any = declare(counting_sync(log))()
    assert stream.state is None
    for item in stream:
        log.append(f"take {item}")  # noqa: PERF401  # what came before an end counts
    assert log == ["begin", "make 1", "take 1", "make 2", "take 2", "make 3", "take 3", "finally"]
    assert stream.state.is_completed()  # type: ignore[attr-defined]
    assert list(stream) == []


@EACH_KIND
def test_a_break_in_a_script_closes_at_once(declare: Declare) -> None:
    log: list[str] = []
    for item in declare(counting_sync(log))():
        if item == 2:
            break
    assert log == ["begin", "make 1", "make 2", "finally"]
    assert anyio.run(state_of, "count") == CLOSED


def test_a_script_sends_and_closes() -> None:
    @flow
    def echo() -> Iterator[Any]:
        got: Any = "first"
        while True:
            got = yield got

    stream: Any = echo()
    assert next(stream) == "first"
    assert stream.send("second") == "second"
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.state.is_cancelled()
    assert stream.state.message == "closed by its consumer"


def test_exceptions_in_a_script() -> None:
    log: list[str] = []

    @task
    def breaks() -> Iterator[int]:
        yield 1
        raise LookupError("of the body")

    stream: Any = breaks()
    assert next(stream) == 1
    with pytest.raises(LookupError, match="of the body"):
        next(stream)
    assert stream.state is not None
    assert stream.state.is_failed()
    other: Any = task(counting_sync(log))()
    next(other)
    with pytest.raises(LookupError, match="mine"):
        other.throw(LookupError("mine"))
    assert log[-1] == "finally"
    assert anyio.run(state_of, "count") == CLOSED


def test_a_stream_in_a_sync_flow() -> None:
    log: list[str] = []
    held: list[Any] = []
    ids: list[Any] = []

    @task
    def items() -> Iterator[str]:
        ids.append(runtime.task_run.id)
        try:
            yield inner_sync_task()
            yield inner_sync_task()
        finally:
            log.append("finally")

    @flow
    def around() -> str:
        own = runtime.flow_run.id
        stream: Any = items()
        held.append(stream)
        child = next(stream)
        assert runtime.flow_run.id == own
        assert runtime.task_run.id is None
        return child  # type: ignore[no-any-return]

    child = around()
    assert log == ["finally"]

    async def check() -> None:
        assert await state_of("items") == CLOSED
        assert await state_of("around") == ("COMPLETED", None)
        assert (await get_client().read_task_run(child)).parent_task_run_id == ids[0]

    anyio.run(check)
    assert list(held[0]) == []


def test_a_never_started_stream_of_a_script_leaves_no_run() -> None:
    flow(counting_sync([]))()
    gc.collect()
    assert anyio.run(runs) == {}


SCRIPT = """
import sys, anyio, gc
from asyncflow import flow, task

@task
async def numbers():
    try:
        for number in range(100):
            yield number
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        print("finally")

@task
def plain():
    try:
        yield from range(100)
    finally:
        print("finally")

@flow
async def main():
    async for number in numbers():
        if number == 3: break
    async for number in plain.stream():
        if number == 3: break
    kept.append(numbers())
    await anext(kept[0])

kept = []

async def outermost():
    await main()
    async for number in numbers():
        if number == 3: break
    async for number in plain.stream():
        if number == 3: break
    global left
    left = numbers()
    await anext(left)
    numbers(); plain.stream()

anyio.run(outermost, backend=sys.argv[1])
for number in plain():
    if number == 3: break
gc.collect()
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_development_mode_has_nothing_to_say(run_python: RunPython, backend: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_python(script, backend, env={"PYTHONDEVMODE": "1", "PYTHONTRACEMALLOC": "5"})
    # asyncio's debug mode tells of slow steps, of which a busy machine has some.
    assert [line for line in done.stderr.splitlines() if not line.startswith("Executing ")] == []
    assert done.stdout.count("finally") == 7  # lines of two threads may run into one another
