"""Places: how many bodies a flow run's task runner and the limits of tags let run at once, and in which order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncflow import Runtime, flow, get_client, quote, tags, task
from asyncflow.context import current_run
from asyncflow.exceptions import OptionError, RunCancelledError
from asyncflow.futures import RunFuture
from asyncflow.runtime import HOME
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import Backend
from tests.sync_flows import everywhere, in_sync_flow

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be stopped."""


class Counter:
    """How many bodies run, how many did at most, and in which order they began."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.order: list[Any] = []
        self._lock = threading.Lock()

    @contextmanager
    def body(self, name: Any = None) -> Iterator[None]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(name)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1


def in_flow(body: Callable[[], Any], workers: int | None) -> Any:
    """A call of `body` as an async flow whose runner has that many places."""
    main = flow(body, persist_result=False, task_runner=ConcurrentTaskRunner(workers))

    async def call() -> Any:
        with anyio.fail_after(20):
            return await main()

    return call()


def places_in_use() -> tuple[int, int]:
    """Of the flow run around: places that somebody holds, and who waits for one."""
    run: Any = current_run.get()
    while run.parent is not None and not run.spec.is_flow:
        run = run.parent
    return (0, 0) if run.workers is None else (run.workers.in_use, run.workers.waiting)


async def until_free() -> None:
    with anyio.fail_after(5):
        while places_in_use() != (0, 0):
            await anyio.sleep(0.001)


@task
async def give(value: Any = None) -> Any:
    await anyio.lowlevel.checkpoint()
    return value


# --- the option -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_max_workers_is_a_whole_number_from_1(bad: Any) -> None:
    with pytest.raises(OptionError, match="max_workers"):
        ConcurrentTaskRunner(max_workers=bad)
    assert ConcurrentTaskRunner().max_workers is None
    assert ConcurrentTaskRunner(3) == ConcurrentTaskRunner(max_workers=3)


# --- at most so many ------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync", "nested flows", "mixed"])
async def test_at_most_so_many_bodies_run_and_all_places_are_used(colour: str) -> None:
    counter = Counter()
    workers = 1

    @task
    async def body() -> None:
        with counter.body():
            while counter.most < workers:
                await anyio.sleep(0.001)
            await anyio.sleep(0.001)

    @task
    def body_sync() -> None:
        with counter.body():
            while counter.most < workers:
                time.sleep(0.001)
            time.sleep(0.001)

    @flow
    async def nested() -> None:
        with counter.body():
            while counter.most < workers:
                await anyio.sleep(0.001)
            await anyio.sleep(0.001)

    every: dict[str, list[Any]] = {"async": [body], "sync": [body_sync], "nested flows": [nested]}
    kinds = every.get(colour, [body, body_sync, nested])

    async def main() -> None:
        for future in [kinds[number % len(kinds)].submit() for number in range(workers * 5)]:
            await future
        assert places_in_use() == (0, 0)

    for workers in (1, 2, 7):
        counter.most = 0
        await in_flow(main, workers)
        assert counter.most == workers


async def test_without_a_limit_all_run_at_once() -> None:
    counter = Counter()
    everybody = anyio.Event()

    @task
    async def body() -> None:
        with counter.body():
            if counter.now == 500:
                everybody.set()
            await everybody.wait()

    async def main() -> None:
        for future in [body.submit() for _ in range(500)]:
            await future

    await in_flow(main, None)


@everywhere
def test_in_sync_code_at_most_so_many_bodies_run(place: Backend | None) -> None:
    counter = Counter()

    @task
    async def body(number: int) -> None:
        with counter.body(number):
            await anyio.sleep(0.002)

    @task
    def body_sync(number: int) -> None:
        with counter.body(number):
            time.sleep(0.002)

    def main() -> None:
        futures = [(body, body_sync)[number % 2].submit(number) for number in range(12)]
        for future in futures:
            future.result(LONG)

    in_sync_flow(place, main, workers=2)
    assert counter.most == 2


async def test_direct_calls_need_no_place() -> None:
    counter = Counter()

    @task
    async def inner() -> None:
        with counter.body():
            await anyio.sleep(0.001)

    @task
    async def outer() -> None:
        await inner()

    async def main() -> None:
        await outer.submit()
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(inner)

    await in_flow(main, 1)
    assert counter.most == 5


async def test_each_flow_run_has_places_of_its_own() -> None:
    counter = Counter()
    both = anyio.Event()

    @task
    async def body() -> None:
        with counter.body():
            if counter.now == 2:
                both.set()
            await both.wait()

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def one() -> None:
        await body.submit()

    async with anyio.create_task_group() as group:  # two runs of one flow
        group.start_soon(one)
        group.start_soon(one)

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def outer() -> None:
        first = body.submit()
        await one()
        await first

    both = anyio.Event()
    with anyio.fail_after(5):
        await outer()


async def test_tasks_in_a_task_use_the_places_of_the_flow_run() -> None:
    counter = Counter()

    @task
    async def leaf() -> None:
        with counter.body():
            await anyio.sleep(0.001)

    @task
    async def parent() -> None:
        for future in [leaf.submit() for _ in range(4)]:
            await future

    async def main() -> None:
        for future in [parent.submit() for _ in range(3)]:
            await future

    await in_flow(main, 2)
    assert counter.most == 2


async def test_a_nested_flow_without_a_runner_has_no_limit_of_its_caller() -> None:
    counter = Counter()
    everybody = anyio.Event()

    @task
    async def leaf() -> None:
        with counter.body():
            if counter.now == 3:
                everybody.set()
            await everybody.wait()

    @flow
    async def inner() -> None:
        for future in [leaf.submit() for _ in range(3)]:
            await future

    async def main() -> None:
        await inner.submit()

    await in_flow(main, 1)


# --- the order ------------------------------------------------------------------------------------


async def test_first_come_first_served() -> None:
    counter = Counter()

    @task
    async def body(number: int) -> None:
        with counter.body(number):
            for _ in range(number % 3):
                await anyio.lowlevel.checkpoint()

    async def main() -> None:
        for _ in range(3):
            counter.order.clear()
            for future in [body.submit(number) for number in range(50)]:
                await future
            assert counter.order == list(range(50))

    await in_flow(main, 1)


async def test_who_waits_for_a_future_takes_no_place_in_the_line() -> None:
    counter = Counter()
    release = anyio.Event()

    @task
    async def upstream() -> None:
        await release.wait()

    @task
    async def body(name: str, _: Any = None) -> None:
        with counter.body(name):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        first = upstream.submit()
        late = body.submit("late", first)
        early = [body.submit(f"early {number}") for number in range(3)]
        await anyio.wait_all_tasks_blocked()
        release.set()
        for future in (late, *early):
            await future

    await in_flow(main, 2)
    assert sorted(counter.order[:3]) == ["early 0", "early 1", "early 2"]


async def test_who_gave_its_place_back_while_it_waited_is_first_in_line() -> None:
    order: list[str] = []

    @task
    async def child() -> None:
        order.append("child")

    @task
    async def parent() -> None:
        order.append("parent begins")
        await child.submit()
        order.append("parent goes on")

    @task
    async def other(number: int) -> None:
        order.append(f"other {number}")
        await anyio.sleep(0.005)

    async def main() -> None:
        futures: list[RunFuture[Any]] = [parent.submit()]
        while "parent begins" not in order:
            await anyio.lowlevel.checkpoint()
        for number in range(3):
            futures.append(other.submit(number))
            await anyio.wait_all_tasks_blocked()
        for future in futures:
            await future

    await in_flow(main, 1)
    # The child may end before the first of the others is there, and its parent comes back before the second.
    assert order.index("parent goes on") <= order.index("other 1")


# --- no deadlock ----------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_chain_of_bodies_that_each_wait_for_the_next_needs_one_place(colour: str) -> None:
    counter = Counter()

    @task
    async def link(left: int) -> int:
        with counter.body():
            pass
        found = 0 if left == 0 else 1 + await link.submit(left - 1)
        with counter.body():
            return found

    @task
    def link_sync(left: int) -> int:
        with counter.body():
            pass
        found = 0 if left == 0 else 1 + link_sync.submit(left - 1).result()
        with counter.body():
            return found

    async def main() -> Any:
        body: Any = link if colour == "async" else link_sync
        return await body.submit(40), places_in_use()

    assert await in_flow(main, 1) == (40, (0, 0))
    assert counter.most == 1


@everywhere
def test_in_sync_code_a_chain_needs_one_place(place: Backend | None) -> None:
    @task
    def link(left: int) -> int:
        return 0 if left == 0 else 1 + link.submit(left - 1).result()

    def main() -> int:
        return link.submit(20).result()

    assert in_sync_flow(place, main, workers=1) == 20


@task
async def leaf(value: Any = 0) -> Any:
    await anyio.sleep(0.001)
    return value


@task
async def waits() -> int:
    return int(await leaf.submit(1))


@flow
async def inner() -> int:
    return int(await leaf.submit(1)) + await waits.submit()


async def gathers() -> int:
    found: list[int] = []

    async def wait() -> None:
        found.append(await waits.submit())

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
    return sum(found)


async def leaves_its_children() -> int:
    for _ in range(3):
        waits.submit()
    return 5


async def has_nested_flows() -> int:
    return await inner() + await inner.submit() + 1


async def calls() -> int:
    return sum([await waits() for _ in range(5)])


async def passes_futures() -> int:
    passed: Any = leaf.submit(2)
    return int(await leaf(passed)) + int(await leaf(await leaf.submit(3)))


async def maps() -> int:
    return sum(await leaf.map(leaf.map([1, 2, 2])))


@pytest.mark.parametrize("body", [gathers, leaves_its_children, has_nested_flows, calls, passes_futures, maps])
async def test_with_one_place_whatever_waits_for_others_goes_on(body: Any) -> None:
    async def main() -> Any:
        waiting = task(body)
        first, second = waiting.submit(), waiting.submit()
        return await first, await second, places_in_use()

    assert await in_flow(main, 1) == (5, 5, (0, 0))


def test_a_thousand_threads_that_wait_for_each_other_need_four(home: Any) -> None:
    @task(persist_result=False)
    def link(_: int, before: Any) -> int:
        return 0 if before is None else 1 + before[0].result()

    @flow(persist_result=False)
    def main() -> int:
        future: Any = None
        for number in range(1_000):
            future = link.submit(number, quote(None if future is None else [future]))
        found: int = future.result()
        return found

    with Runtime(home, max_threads=4):
        assert main() == 999


async def test_bodies_wait_for_each_other_in_every_pattern() -> None:
    """Each waits for some that were submitted before it, at once or one after the other."""
    counter = Counter()

    @task
    async def body(number: int, before: list[RunFuture[Any]], at_once: bool) -> int:
        with counter.body():
            await anyio.lowlevel.checkpoint()
        if at_once:
            async with anyio.create_task_group() as group:
                for future in before:
                    group.start_soon(future.wait_async)
        else:
            for future in before:
                await future
        with counter.body():
            await anyio.lowlevel.checkpoint()
        return number

    async def main() -> Any:
        futures: list[RunFuture[Any]] = []
        for number in range(60):
            before = [futures[(number * 7 + step) % number] for step in range(min(number, 4))] if number else []
            futures.append(body.submit(number, quote(before), number % 2 == 0))
        return sum([await each for each in futures]), places_in_use()

    assert await in_flow(main, 3) == (sum(range(60)), (0, 0))
    assert counter.most <= 3


# --- nothing is left ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["future", "flow"])
async def test_who_is_cancelled_while_waiting_for_a_place_holds_none(how: str) -> None:  # noqa: C901
    release = anyio.Event()
    holds = anyio.Event()
    began: list[int] = []

    @task
    async def holder() -> None:
        holds.set()
        await release.wait()

    @task
    async def body(number: int) -> None:
        began.append(number)

    async def main() -> Any:
        first = holder.submit()
        await holds.wait()
        waiting: list[RunFuture[Any]] = []
        for number in range(5):
            waiting.append(body.submit(number))
            while places_in_use() != (1, len(waiting)):
                await anyio.sleep(0.001)
        assert places_in_use() == (1, 5)
        for future in waiting[1:4]:
            future.cancel()
        for future in waiting[1:4]:
            await future.wait_async()
            assert future.state.is_cancelled()
        assert places_in_use() == (1, 2)
        if how == "flow":
            raise LookupError
        release.set()
        for future in (first, waiting[0], waiting[4]):
            await future
        assert began == [0, 4]
        await until_free()
        return "done"

    if how == "flow":
        with pytest.raises(LookupError):
            await in_flow(main, 1)
        runs = await get_client().read_task_runs()
        assert {run.state.type.value for run in runs} == {"CANCELLED"}
        assert began == []
    else:
        assert await in_flow(main, 1) == "done"


async def test_who_is_cancelled_at_the_moment_of_its_turn_passes_it_on() -> None:
    @task
    async def body(number: int) -> int:
        await anyio.sleep(0.0005)
        return number

    async def main() -> None:
        for turn in range(60):
            futures = [body.submit(number) for number in range(4)]
            await anyio.sleep(turn / 30_000)
            futures[turn % 4].cancel()
            futures[(turn + 1) % 4].cancel()
            for future in futures:
                with anyio.fail_after(5):
                    await future.wait_async()
        await until_free()

    await in_flow(main, 1)


@pytest.mark.parametrize("ending", ["value", "error", "cancel", "timeout", "cancelled while aside"])
async def test_after_its_end_a_body_holds_no_place(ending: str) -> None:
    began = anyio.Event()

    @task
    async def slow() -> None:
        await anyio.sleep(LONG)

    @task(timeout_seconds=0.01 if ending == "timeout" else None)
    async def body() -> None:
        began.set()
        if ending == "error":
            raise ValueError
        if ending in ("cancel", "timeout"):
            await anyio.sleep(LONG)
        if ending == "cancelled while aside":
            await slow.submit()

    async def main() -> None:
        future = body.submit()
        await began.wait()
        if ending.startswith("cancel"):
            await anyio.wait_all_tasks_blocked()
            future.cancel()
        await future.wait_async()
        await until_free()
        await give.submit()
        _ = future.state

    await in_flow(main, 1)


async def test_a_retry_delay_holds_no_place() -> None:
    order: list[str] = []
    began = anyio.Event()

    @task(retries=1, retry_delay_seconds=0.2)
    async def fails_once() -> None:
        order.append("attempt")
        began.set()
        if len(order) == 1:
            raise ValueError

    @task
    async def other() -> None:
        order.append("other")

    async def main() -> None:
        first = fails_once.submit()
        await began.wait()
        await other.submit()
        assert not first.done()
        await first
        assert places_in_use() == (0, 0)

    await in_flow(main, 1)
    assert order == ["attempt", "other", "attempt"]


@pytest.mark.parametrize("how", ["once", "twice"])
async def test_a_body_whose_wait_was_cut_short_goes_on_at_once_and_one_more_at_most_runs(how: str) -> None:
    counter = Counter()
    ready = anyio.Event()

    @task
    async def slow() -> None:
        with counter.body():
            await anyio.sleep(0.1)

    @task
    async def impatient(box: list[RunFuture[Any]]) -> None:
        await ready.wait()
        with anyio.move_on_after(0.01):
            await box[0]
        if how == "twice":
            with anyio.move_on_after(0.01):
                await box[0]
        with counter.body():
            await anyio.sleep(0.1)

    async def main() -> None:
        box: list[RunFuture[Any]] = []
        first = impatient.submit(quote(box))
        await anyio.wait_all_tasks_blocked()  # it is the first to have the place
        box.append(slow.submit())
        ready.set()
        await box[0]
        await first
        await until_free()

    await in_flow(main, 1)
    assert counter.most == 2  # a cancelled wait cannot wait for a place: its clean-up would be stuck


async def test_a_wait_with_a_time_limit_ends_in_time_although_its_place_is_taken() -> None:
    """Who it waits for has the only place, until after the time limit."""
    ready = anyio.Event()
    release = anyio.Event()

    @task
    async def slow() -> None:
        await release.wait()

    @task
    async def impatient(box: list[RunFuture[Any]]) -> bool:
        await ready.wait()
        found = await box[0].wait_async(0.01)
        release.set()
        return found

    async def main() -> bool:
        box: list[RunFuture[Any]] = []
        first = impatient.submit(quote(box))
        await anyio.wait_all_tasks_blocked()
        box.append(slow.submit())
        ready.set()
        found = bool(await first)
        await box[0]
        await until_free()
        return found

    assert await in_flow(main, 1) is False


async def test_deaf_bodies_keep_their_places_only_as_long_as_they_run(home: Any) -> None:
    began = threading.Event()
    release = threading.Event()

    @task
    def deaf() -> None:
        began.set()
        release.wait(LONG)

    async def main() -> None:
        future = deaf.submit()
        await anyio.to_thread.run_sync(began.wait, LONG)
        future.cancel()
        after = give.submit("after")
        await anyio.sleep(0.1)
        release.set()
        assert await after == "after"
        with pytest.raises(Exception):  # noqa: B017, PT011  # Cancelled in time, or given up as deaf
            await future
        await until_free()

    async with Runtime(home, grace_seconds=0.05):
        await in_flow(main, 1)


# --- tags -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["direct", "submitted", "mixed", "sync"])
async def test_a_limited_tag_holds_for_direct_and_submitted_calls(how: str, home: Any) -> None:
    counter = Counter()

    @task(tags=["db"])
    async def query(number: int) -> None:
        with counter.body(number):
            await anyio.sleep(0.002)

    @task(tags=["db", "other"])
    def query_sync(number: int) -> None:
        with counter.body(number):
            time.sleep(0.002)

    async def call(number: int) -> None:
        if how == "sync":
            await query_sync.acall(number)
        elif how == "submitted" or (how == "mixed" and number % 2):
            await query.submit(number)
        else:
            await query(number)

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(call, number)

    async with Runtime(home, tag_limits={"db": 2, "unused": 1}):
        async with anyio.create_task_group() as group:  # flow runs share them
            group.start_soon(main)
            group.start_soon(main)
        services: Any = main_services()
        assert all(limiter.is_spent() for limiter in services.tag_limits.values())
    assert counter.most == 2


def main_services() -> Any:
    return HOME.in_force()


@everywhere
def test_in_sync_code_a_limited_tag_holds(place: Backend | None, home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCFLOW_TAG_LIMITS", '{"db": 1}')
    counter = Counter()

    @task(tags=["db"])
    def query() -> None:
        with counter.body():
            time.sleep(0.001)

    def main() -> None:
        futures = [query.submit() for _ in range(4)]
        query()
        for future in futures:
            future.result(LONG)

    in_sync_flow(place, main)
    assert counter.most == 1


async def test_tags_from_around_count_too(home: Any) -> None:
    counter = Counter()

    @task
    async def query() -> None:
        with counter.body():
            await anyio.sleep(0.001)

    @flow
    async def main() -> None:
        with tags("db"):
            futures = [query.submit() for _ in range(4)]
        for future in futures:
            await future

    async with Runtime(home, tag_limits={"db": 1}):
        await main()
    assert counter.most == 1


@pytest.mark.parametrize("how", ["direct", "submitted", "nested flow", "sync"])
async def test_the_same_tag_inside_of_itself_does_not_deadlock(how: str, home: Any) -> None:
    @task(tags=["db"])
    async def query(left: int = 3) -> int:
        if not left:
            return 0
        if how == "direct":
            return 1 + await query(left - 1)
        if how == "nested flow":
            return 1 + await through_a_flow(left - 1)
        return 1 + await query.submit(left - 1)

    @flow
    async def through_a_flow(left: int) -> int:
        return await query(left)

    @task(tags=["db"])
    def query_sync(left: int = 3) -> int:
        return 0 if not left else 1 + query_sync(left - 1) + query_sync.submit(0).result()

    @flow
    async def main() -> int:
        if how == "sync":
            return await query_sync.acall()
        return await query() + await query.submit() - 3

    async with Runtime(home, tag_limits={"db": 1}):
        with anyio.fail_after(5):
            assert await main() == 3
        assert all(limiter.is_spent() for limiter in main_services().tag_limits.values())


async def test_a_tagged_call_in_a_submitted_body_and_a_tagged_submit(home: Any) -> None:
    order: list[str] = []

    @task(tags=["db"])
    async def query(name: str) -> None:
        order.append(name)

    @task
    async def outer() -> None:
        await anyio.wait_all_tasks_blocked()  # the other one has the tag's place now, and waits for ours
        await query("direct")

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def main() -> None:
        first, second = outer.submit(), query.submit("submitted")
        await first
        await second

    async with Runtime(home, tag_limits={"db": 1}):
        with anyio.fail_after(5):
            await main()
    assert sorted(order) == ["direct", "submitted"]


@pytest.mark.parametrize("submitted", [False, True])
async def test_two_tags_taken_in_opposite_orders_do_not_deadlock(submitted: bool, home: Any) -> None:
    both = anyio.Event()
    began: list[str] = []

    async def meet(name: str) -> None:
        began.append(name)
        if len(began) == 2:
            both.set()
        await both.wait()

    @task(tags=["a"])
    async def inner_a() -> None:
        pass

    @task(tags=["b"])
    async def inner_b() -> None:
        pass

    @task(tags=["a"])
    async def outer_a() -> None:
        await meet("a")
        await (inner_b.submit() if submitted else inner_b())

    @task(tags=["b"])
    async def outer_b() -> None:
        await meet("b")
        await (inner_a.submit() if submitted else inner_a())

    @flow
    async def main() -> None:
        first, second = outer_a.submit(), outer_b.submit()
        await first
        await second

    async with Runtime(home, tag_limits={"a": 1, "b": 1}):
        with anyio.fail_after(5):
            await main()
        assert all(limiter.is_spent() for limiter in main_services().tag_limits.values())


async def test_a_cancelled_wait_for_a_tag_leaks_nothing(home: Any) -> None:
    began: list[str] = []
    release = anyio.Event()

    @task(tags=["db"])
    async def query(name: str) -> None:
        began.append(name)
        await release.wait()

    @flow
    async def main() -> None:
        first = query.submit("first")
        while not began:
            await anyio.sleep(0.001)
        with anyio.move_on_after(0.005) as scope:
            await query("direct")
        assert scope.cancelled_caught
        submitted = query.submit("submitted")
        await anyio.wait_all_tasks_blocked()
        submitted.cancel()
        with pytest.raises(RunCancelledError):
            await submitted
        release.set()
        await first
        await query("last")

    async with Runtime(home, tag_limits={"db": 1}):
        await main()
        assert all(limiter.is_spent() for limiter in main_services().tag_limits.values())
    assert began == ["first", "last"]


# --- threads --------------------------------------------------------------------------------------


async def test_threads_are_daemons_and_used_again() -> None:
    seen: set[int] = set()
    daemons: set[bool] = set()

    @task
    def body() -> None:
        seen.add(threading.get_ident())
        daemons.add(threading.current_thread().daemon)

    async def main() -> None:
        for _ in range(30):
            await body.submit()

    await in_flow(main, None)
    assert daemons == {True}
    assert len(seen) <= 3
    assert threading.get_ident() not in seen


async def test_no_more_threads_than_the_setting_run(home: Any) -> None:
    counter = Counter()

    @task
    def body() -> None:
        with counter.body():
            time.sleep(0.002)

    async def main() -> None:
        for future in [body.submit() for _ in range(20)]:
            await future

    async with Runtime(home, max_threads=3):
        await in_flow(main, None)
    assert counter.most == 3
