"""Waiting for several futures: `as_completed` and `wait`, in async code, in threads, and over each other's heads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from asyncflow import Runtime, TaskFuture, as_completed, flow, task, wait
from asyncflow.exceptions import OptionError, WaitCycleError, WaitOnEventLoopError
from asyncflow.futures import RunFuture
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import Backend
from tests.sync_flows import everywhere, in_sync_flow

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be stopped."""


class Gates:
    """Runs that end one by one, when they are let."""

    def __init__(self) -> None:
        self.events: dict[Any, threading.Event] = {}

    def submit(self, name: Any, *, fails: bool = False) -> TaskFuture[Any]:
        event = self.events[name] = threading.Event()

        @task
        async def gated(name: Any) -> Any:
            while not event.is_set():
                await anyio.sleep(0.0005)
            if fails:
                raise ValueError(name)
            return name

        return gated.submit(name)

    def open(self, name: Any) -> None:
        self.events[name].set()


@task
async def give(value: Any) -> Any:
    return value


@task
async def sleep(seconds: float = LONG) -> float:
    await anyio.sleep(seconds)
    return seconds


@task
async def fail() -> None:
    raise ValueError("because")


def in_flow(body: Callable[[], Any]) -> Any:
    """A call of `body` as an async flow."""
    return flow(body, persist_result=False)()


def cancel_all(futures: Any) -> None:
    for future in futures:
        future.cancel()


# --- as_completed ---------------------------------------------------------------------------------


async def test_they_come_in_the_order_they_end() -> None:
    async def body() -> None:
        gates = Gates()
        futures = [gates.submit(name) for name in "abcd"]
        order = ["c", "a", "d", "b"]
        gates.open(order[0])
        came: list[str] = []
        async for future in as_completed(futures):
            assert future.done()
            came.append(await future)
            if len(came) < 4:
                gates.open(order[len(came)])
        assert came == order

    await in_flow(body)


@everywhere
def test_in_sync_code_they_come_in_the_order_they_end(place: Backend | None) -> None:
    def body() -> None:
        gates = Gates()
        futures = [gates.submit(name) for name in "abcd"]
        order = ["c", "a", "d", "b"]
        gates.open(order[0])
        came: list[str] = []
        for future in as_completed(futures):
            came.append(future.result())
            if len(came) < 4:
                gates.open(order[len(came)])
        assert came == order

    in_sync_flow(place, body)


async def test_what_is_done_comes_at_once_and_doubles_come_once() -> None:
    async def body() -> None:
        first, second = give.submit(1), give.submit(2)
        await first
        await second
        futures = [first, second, first, first]
        assert [await each async for each in as_completed(futures)] == [1, 2]
        assert [each async for each in as_completed(iter(futures))] == [first, second]
        nothing: list[RunFuture[Any]] = []
        assert [each async for each in as_completed(nothing)] == []
        late = sleep.submit(0.01)
        assert [await each async for each in as_completed([late, first, late])] == [1, 0.01]

    await in_flow(body)


async def test_failed_and_cancelled_ones_come_like_the_others() -> None:
    async def body() -> None:
        failed, cancelled = fail.submit(), sleep.submit()
        cancelled.cancel()
        came = {each async for each in as_completed([failed, cancelled])}
        assert came == {failed, cancelled}
        assert failed.state.is_failed()

    await in_flow(body)


async def test_the_time_is_for_all_together_and_the_runs_go_on() -> None:
    async def body() -> None:
        quick, slow = give.submit(1), sleep.submit(0.3)
        came: list[Any] = []
        began = time.monotonic()
        completions = as_completed([slow, quick], timeout=0.05)
        came.append(await anext(completions))
        with pytest.raises(TimeoutError, match=r"1 \(of 2\) runs had not ended"):
            await anext(completions)
        assert time.monotonic() - began < 0.29
        assert came == [quick]
        assert await slow == 0.3

    await in_flow(body)


@everywhere
def test_in_sync_code_the_time_is_for_all_together(place: Backend | None) -> None:
    def body() -> None:
        quick, slow = give.submit(1), sleep.submit()
        came: list[Any] = []
        completions = iter(as_completed([slow, quick], timeout=0.05))
        came.append(next(completions))
        with pytest.raises(TimeoutError):
            next(completions)
        assert came == [quick]
        with pytest.raises(TimeoutError):
            next(iter(as_completed([slow], timeout=0)))
        slow.cancel()

    in_sync_flow(place, body)


@pytest.mark.parametrize("timeout", [True, float("nan"), "1"])
async def test_a_time_that_is_none_is_refused(timeout: Any) -> None:
    async def body() -> None:
        future = give.submit(1)
        with pytest.raises(OptionError, match="timeout"):
            await anext(as_completed([future], timeout=timeout))
        with pytest.raises(OptionError, match="timeout"):
            await wait([future], timeout=timeout)
        with pytest.raises(OptionError, match="timeout"):
            await future.wait_async(timeout)

    await in_flow(body)


async def test_leaving_the_loop_early_leaves_nothing_behind() -> None:
    async def body() -> None:
        first, slow = give.submit(1), sleep.submit()
        async for future in as_completed([slow, first]):
            assert future is first
            break
        gc.collect()
        assert not slow.run.waiters
        slow.cancel()

    await in_flow(body)


async def test_a_cancelled_wait_can_be_taken_up_again() -> None:
    async def body() -> None:
        gates = Gates()
        futures = [gates.submit(1), gates.submit(2)]
        completions = as_completed(futures)
        with anyio.move_on_after(0.01) as scope:
            await anext(completions)
        assert scope.cancelled_caught
        gates.open(2)
        assert await (await anext(completions)) == 2
        gates.open(1)
        assert [await each async for each in completions] == [1]
        with pytest.raises(StopAsyncIteration):
            await anext(completions)

    await in_flow(body)


async def test_two_consumers_share_it() -> None:
    async def body() -> None:
        completions = as_completed(sleep.map([0.01, 0.02, 0.03, 0.04, 0.05]))
        came: list[float] = []

        async def consume() -> None:
            came.extend([await future async for future in completions])

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(consume)
        assert sorted(came) == [0.01, 0.02, 0.03, 0.04, 0.05]

    await in_flow(body)


async def test_on_the_thread_of_a_loop_a_plain_for_is_refused() -> None:
    async def body() -> None:
        with pytest.raises(WaitOnEventLoopError, match="async for future in as_completed"):
            iter(as_completed([give.submit(1)]))

    await in_flow(body)


async def test_threads_may_iterate_over_futures_of_a_loop() -> None:
    async def body() -> None:
        futures = sleep.map([0.03, 0.01, 0.02])

        def consume() -> list[float]:
            return [each.result() for each in as_completed(futures)]

        assert await anyio.to_thread.run_sync(consume) == [0.01, 0.02, 0.03]

    await in_flow(body)


async def test_what_arrives_at_the_same_moment_from_many_threads_all_comes() -> None:
    @task
    def body_in_thread(number: int) -> int:
        return number

    async def body() -> None:
        for _ in range(5):
            futures = body_in_thread.map(range(50))
            assert sorted([await each async for each in as_completed(futures)]) == list(range(50))

    await in_flow(body)


# --- wait -----------------------------------------------------------------------------------------


async def test_wait_for_all() -> None:
    async def body() -> None:
        futures: list[RunFuture[Any]] = [give.submit(1), sleep.submit(0.01), fail.submit()]
        done, not_done = await wait(futures)
        assert (done, not_done) == (set(futures), set())
        found = await wait(iter(futures))
        assert found.done == set(futures)
        assert found.not_done == set()
        assert await wait([]) == (set(), set())
        assert (await wait([futures[0], futures[0]])).done == {futures[0]}
        assert isinstance(futures[2].result(raise_on_failure=False), ValueError)

    await in_flow(body)


@pytest.mark.parametrize("constant", ["FIRST_COMPLETED", asyncio.FIRST_COMPLETED, concurrent.futures.FIRST_COMPLETED])
async def test_wait_for_the_first(constant: Any) -> None:
    async def body() -> None:
        slow, quick = sleep.submit(), give.submit(1)
        done, not_done = await wait([slow, quick], return_when=constant)
        assert (done, not_done) == ({quick}, {slow})
        assert not slow.run.waiters
        done, not_done = await wait([slow, quick], return_when=constant)  # one is done already
        assert (done, not_done) == ({quick}, {slow})
        slow.cancel()

    await in_flow(body)


async def test_wait_for_the_first_exception() -> None:
    async def body() -> None:
        gates = Gates()
        good, bad, slow = gates.submit("good"), gates.submit("bad", fails=True), sleep.submit()
        gates.open("good")
        await good
        gates.open("bad")
        done, not_done = await wait([good, bad, slow], return_when="FIRST_EXCEPTION")
        assert (done, not_done) == ({good, bad}, {slow})
        other = sleep.submit()
        other.cancel()
        done, not_done = await wait([good, other, slow], return_when="FIRST_EXCEPTION")
        assert (done, not_done) == ({good, other}, {slow})  # cancelled did not complete either
        done, not_done = await wait([good, give.submit(1)], return_when="FIRST_EXCEPTION")
        assert (len(done), not_done) == (2, set())
        slow.cancel()
        assert bad.state.is_failed()

    await in_flow(body)


@pytest.mark.parametrize("return_when", ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"])
async def test_when_the_time_is_over_wait_gives_what_is_done(return_when: Any) -> None:
    async def body() -> None:
        slow = sleep.submit()
        for timeout in (0.01, 0):
            assert await wait([slow], timeout=timeout, return_when=return_when) == (set(), {slow})
        assert not slow.run.waiters
        quick = give.submit(1)
        assert (await wait([quick], timeout=LONG, return_when=return_when)).done == {quick}
        assert (await wait([quick], timeout=0, return_when=return_when)).done == {quick}
        cancel_all([slow])

    await in_flow(body)


async def test_what_wait_does_not_know_is_refused() -> None:
    async def body() -> None:
        future = give.submit(1)
        with pytest.raises(OptionError, match="return_when"):
            await wait([future], return_when="SOON")  # type: ignore[arg-type]
        assert not future.run.waiters
        await future

    await in_flow(body)


async def test_a_cancelled_wait_cancels_nothing_and_leaves_nothing() -> None:
    async def body() -> None:
        futures = [sleep.submit(0.05), sleep.submit(0.05)]
        with anyio.move_on_after(0.005) as scope:
            await wait(futures)
        assert scope.cancelled_caught
        assert not any(each.run.waiters for each in futures)
        assert [await each for each in futures] == [0.05, 0.05]

    await in_flow(body)


# --- cycles and places ----------------------------------------------------------------------------


class Box:
    """Something that asyncflow does not look into."""

    def __init__(self) -> None:
        self.futures: dict[str, RunFuture[Any]] = {}
        self.ready = anyio.Event()


async def collect(futures: list[RunFuture[Any]], how: str) -> None:
    if how == "wait":
        await wait(futures)
    else:
        async for _ in as_completed(futures):
            pass


@pytest.mark.parametrize("how", ["wait", "as_completed"])
async def test_a_cycle_through_either_is_told_at_once(how: str) -> None:
    box = Box()

    @task
    async def waits(others: str) -> None:
        await box.ready.wait()
        await collect([box.futures[name] for name in others], how)

    async def body() -> None:
        slow = box.futures["s"] = sleep.submit()
        for name, others in (("a", "sb"), ("b", "c"), ("c", "sa")):
            box.futures[name] = waits.submit(others)
        box.futures["i"] = waits.submit("si")
        box.ready.set()
        with anyio.fail_after(5):
            await box.futures["i"].wait_async(60)
            assert isinstance(box.futures["i"].result(raise_on_failure=False), WaitCycleError)
            refused = 0
            while not refused:
                refused = sum(
                    isinstance(box.futures[name].result(raise_on_failure=False), WaitCycleError)
                    for name in "abc"
                    if box.futures[name].done()
                )
                await anyio.sleep(0.001)
        assert not slow.done()
        slow.cancel()

    await in_flow(body)


@pytest.mark.parametrize("how", ["wait", "as_completed"])
async def test_a_refused_cycle_leaves_nothing_behind(how: str) -> None:
    box = Box()
    refused = anyio.Event()
    go_on = anyio.Event()

    @task
    async def first() -> str:
        await box.ready.wait()
        with pytest.raises(WaitCycleError):
            await collect([box.futures["second"], box.futures["first"]], how)
        refused.set()
        await go_on.wait()
        return "first"

    @task
    async def second() -> Any:
        await refused.wait()
        return await box.futures["first"]  # no cycle: the first does not wait for it

    async def body() -> None:
        box.futures.update(first=first.submit(), second=second.submit())
        box.ready.set()
        await refused.wait()
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        assert await box.futures["second"] == "first"

    await in_flow(body)


async def test_waiting_for_the_first_of_several_is_no_cycle() -> None:
    box = Box()

    @task
    async def waits() -> int:
        await box.ready.wait()
        done, _ = await wait(box.futures.values(), return_when="FIRST_COMPLETED")
        return len(done)

    async def body() -> None:
        box.futures.update(itself=waits.submit(), other=give.submit(1))
        box.ready.set()
        assert await box.futures["itself"] == 1

    await in_flow(body)


@pytest.mark.parametrize("how", ["wait", "as_completed"])
async def test_a_body_that_waits_holds_no_place(how: str) -> None:
    @task
    async def parent() -> str:
        await collect(list(sleep.map([0.01, 0.001])), how)
        return "done"

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def main() -> Any:
        return [await each for each in [parent.submit(), parent.submit()]]

    with anyio.fail_after(5):
        assert await main() == ["done", "done"]


@everywhere
def test_in_sync_code_a_body_that_iterates_holds_no_place(place: Backend | None) -> None:
    @task
    def parent() -> list[float]:
        return [each.result() for each in as_completed(sleep.map([0.02, 0.001]))]

    def main() -> Any:
        return [each.result(LONG) for each in [parent.submit(), parent.submit()]]

    assert [sorted(each) for each in in_sync_flow(place, main, workers=1)] == [[0.001, 0.02]] * 2


async def test_outside_of_any_run(home: Any) -> None:
    async with Runtime(home):
        futures = give.map([1, 2])
        assert len((await wait(futures)).done) == 2
        assert sorted([await each async for each in as_completed(futures)]) == [1, 2]
