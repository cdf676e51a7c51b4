"""`concurrency` and `rate_limit`, as users write them: in flows, in tasks, in threads, and outside of any run."""

from __future__ import annotations

import asyncio
import os
import pickle
import selectors
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import Context, copy_context
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from asyncflow import Runtime, flow, get_client, task
from asyncflow.clock import SystemClock
from asyncflow.concurrency import _held, concurrency, rate_limit
from asyncflow.exceptions import (
    AsyncflowError,
    LimitConflictError,
    LimitDeadlockError,
    LimitTimeoutError,
    OptionError,
    WaitOnEventLoopError,
)
from asyncflow.runtime import HOME
from asyncflow.stores.memory import MemoryStore
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import RunPython

LONG = 30.0


class Gauge:
    """How many are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = self.total = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.inside -= 1


@pytest.fixture
def runtime() -> Any:
    with Runtime(store=MemoryStore()) as opened:
        yield opened


def in_use(runtime: Runtime) -> int:
    """Names of concurrency limits that somebody holds or waits for."""
    return len(runtime.open().limits.concurrency)


# --- what can be asked for -----------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1, True, 2.0, "2", None])
def test_a_limit_is_a_whole_number_from_1(limit: Any) -> None:
    with pytest.raises(OptionError, match="limit="):
        concurrency("x", limit)


@pytest.mark.parametrize("occupy", [0, -1, True, 1.0, 4])
def test_what_is_occupied_is_at_most_the_limit(occupy: Any) -> None:
    with pytest.raises(OptionError, match=r"occupy=.*from 1 to 3"):
        concurrency("x", 3, occupy=occupy)
    with pytest.raises(OptionError, match=r"occupy=.*from 1 to 3"):
        rate_limit("x", 2.5, occupy=occupy)


@pytest.mark.parametrize("rate", [0, -1, True, float("nan"), float("inf"), "2", None])
def test_a_rate_is_a_number_above_0(rate: Any) -> None:
    with pytest.raises(OptionError, match="per_second="):
        rate_limit("x", rate)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(OptionError, match="name="):
        concurrency(name, 1)
    with pytest.raises(OptionError, match="name="):
        rate_limit(name, 1)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "1"])
def test_a_timeout_is_a_length_of_time(seconds: Any) -> None:
    with pytest.raises(OptionError, match="timeout_seconds="):
        concurrency("x", 1, timeout_seconds=seconds)
    with pytest.raises(OptionError, match="timeout_seconds="):
        rate_limit("x", 1, timeout_seconds=seconds)
    assert concurrency("x", 1, timeout_seconds=timedelta(minutes=1)).timeout_seconds == 60


def test_they_show_what_they_are() -> None:
    assert repr(concurrency("db", 3)) == "concurrency('db', 3)"
    assert repr(rate_limit("api", 0.5)) == "rate_limit('api', 0.5)"


# --- in flows ------------------------------------------------------------------------------


async def test_flows_and_tasks_share_a_limit(runtime: Runtime) -> None:
    gauge = Gauge()

    @task
    async def work() -> None:
        async with concurrency("db", 3):
            with gauge:
                await anyio.sleep(0)

    @flow
    async def one() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(work)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
    assert (gauge.total, gauge.most, gauge.inside) == (100, 3, 0)
    assert in_use(runtime) == 0


async def test_branches_of_one_run_wait_for_each_other(runtime: Runtime) -> None:
    gauge, api = Gauge(), concurrency("api", 1)

    @task
    async def other() -> None:
        async with api:
            with gauge:
                await anyio.sleep(0)

    @flow
    async def one() -> None:
        async def branch() -> None:
            async with api:  # one object, entered by all of them
                with gauge:
                    await anyio.sleep(0)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(branch)
                group.start_soon(other)

    await one()
    assert (gauge.total, gauge.most) == (20, 1)


async def test_sync_bodies_and_the_loop_share_a_limit(runtime: Runtime) -> None:
    gauge = Gauge()

    @task
    def in_thread() -> None:
        with concurrency("db", 2), gauge:
            pass

    @task
    async def on_loop() -> None:
        async with concurrency("db", 2):
            with gauge:
                await anyio.sleep(0)

    @flow
    async def both() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(in_thread.acall)
                group.start_soon(on_loop)

    with anyio.fail_after(LONG):
        await both()
    assert gauge.total == 100
    assert gauge.most <= 2
    assert in_use(runtime) == 0


def test_a_script(runtime: Runtime) -> None:
    gauge = Gauge()

    @task
    def work() -> int:
        with concurrency("db", 1), rate_limit("api", 1000), gauge:
            return gauge.inside

    @flow
    def script() -> int:
        return sum(work() for _ in range(10))

    assert script() == 10
    with concurrency("db", 1), gauge:
        assert gauge.inside == 1
    assert in_use(runtime) == 0


async def test_weights(runtime: Runtime) -> None:
    inside = most = 0

    async def use(count: int) -> None:
        nonlocal inside, most
        async with concurrency("memory", 10, occupy=count):
            inside += count
            most = max(most, inside)
            await anyio.sleep(0)
            inside -= count

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(use, 1 + number * 7 % 10)
    assert most == 10
    assert in_use(runtime) == 0


async def test_an_error_in_the_block_frees_it(runtime: Runtime) -> None:
    limit = concurrency("db", 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with limit:
                raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        async with rate_limit("api", 1000):
            raise ZeroDivisionError
    assert in_use(runtime) == 0


async def test_a_cancelled_wait_leaves_nothing(runtime: Runtime) -> None:
    entered = anyio.Event()

    async def hold() -> None:
        async with concurrency("db", 1):
            entered.set()
            await anyio.sleep(LONG)

    @flow
    async def waits() -> None:
        async with concurrency("db", 1):
            raise AssertionError("it is held")

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await entered.wait()
        with anyio.move_on_after(0.3):
            await waits()
        with anyio.move_on_after(0.3):
            async with anyio.create_task_group() as waiters:
                for _ in range(10):
                    waiters.start_soon(waits)
        group.cancel_scope.cancel()
    assert in_use(runtime) == 0
    (run, *others) = await get_client().read_flow_runs()
    assert len(others) == 10
    assert {each.state.name for each in (run, *others)} == {"Cancelled"}


async def test_a_timeout_of_the_run_ends_its_wait(runtime: Runtime) -> None:
    @flow(timeout_seconds=0.02)
    async def waits() -> None:
        async with concurrency("db", 1):
            raise AssertionError("it is held")

    async with concurrency("db", 1):
        with pytest.raises(TimeoutError) as caught:
            await elsewhere(waits)
        assert not isinstance(caught.value, AsyncflowError)
    assert in_use(runtime) == 0


@pytest.mark.parametrize("make", [lambda: concurrency("db", 1), lambda: rate_limit("api", 0.01)])
async def test_a_cancelled_thread_stops_waiting(runtime: Runtime, make: Callable[[], Any]) -> None:
    waiting = threading.Event()
    ended: list[str] = []

    @task
    def in_thread() -> None:
        waiting.set()
        try:
            with make():
                ended.append("got it")
        finally:
            ended.append("ended")

    @flow
    async def waits() -> None:
        await in_thread.acall()

    async def run_and_cancel() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            while not waiting.is_set():
                await anyio.sleep(0.001)
            await anyio.sleep(0.02)
            group.cancel_scope.cancel()

    async with make():
        with anyio.fail_after(5):  # not the grace time of 10 seconds
            await elsewhere(run_and_cancel)
    assert ended == ["ended"]
    assert in_use(runtime) == 0


@pytest.mark.parametrize("make", [lambda: concurrency("db", 1), lambda: rate_limit("api", 0.01)])
def test_a_deadline_ends_the_wait_of_a_script(runtime: Runtime, make: Callable[[], Any]) -> None:
    ended: list[str] = []

    @flow(timeout_seconds=0.05)
    def waits() -> None:
        try:
            with make():
                ended.append("got it")
        finally:
            ended.append("ended")

    context = copy_context()
    with make(), pytest.raises(TimeoutError):
        context.run(waits)
    assert ended == ["ended"]
    assert in_use(runtime) == 0


async def test_a_body_that_waits_for_a_limit_has_no_place_in_its_runner(runtime: Runtime) -> None:
    holds = anyio.Event()
    order: list[str] = []

    @task
    async def child() -> None:
        order.append("child")

    @task
    async def holder() -> None:
        async with concurrency("db", 1):
            holds.set()
            await anyio.wait_all_tasks_blocked()
            await child.submit()  # needs the one place, which `other` would have
            order.append("holder")

    @task
    async def other() -> None:
        async with concurrency("db", 1):
            order.append("other")

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def both() -> None:
        first = holder.submit()
        await holds.wait()
        second = other.submit()
        await first
        await second

    with anyio.fail_after(5):
        await both()
    assert order == ["child", "holder", "other"]
    assert in_use(runtime) == 0


async def elsewhere(fn: Callable[[], Any]) -> Any:
    """Await `fn()` in a task that knows nothing of the blocks around."""
    context = copy_context()
    context.run(_held.set, ())
    outcome: list[Any] = []
    done = anyio.Event()

    async def run() -> None:
        try:
            outcome.append(await fn())
        except BaseException as error:
            outcome.append(error)
        done.set()

    if asyncio._get_running_loop() is not None:
        await asyncio.get_running_loop().create_task(run(), context=context)
    else:
        trio.lowlevel.spawn_system_task(run, context=context)
        await done.wait()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


# --- waits that cannot end well ------------------------------------------------------------


async def test_no_room_in_time(runtime: Runtime) -> None:
    @flow(flow_run_name="the-holder")
    async def holder() -> None:
        async with concurrency("db", 2, occupy=2):
            await ask()

    async def ask() -> None:
        for seconds in (0, 0.01):
            with pytest.raises(LimitTimeoutError) as caught:
                await elsewhere(wait(seconds))
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.seconds == seconds
            assert caught.value.waiting == 0
            (name,) = caught.value.holders
            assert name == "run 'the-holder'"
            assert f"concurrency('db', 2) could not be had within {seconds:g} seconds" in str(caught.value)
            assert name in str(caught.value)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def wait(seconds: float) -> Callable[[], Any]:
        async def enter() -> None:
            async with concurrency("db", 2, timeout_seconds=seconds):
                raise AssertionError("it is held")

        return enter

    await holder()
    assert in_use(runtime) == 0


def test_no_room_in_time_on_a_thread(runtime: Runtime) -> None:
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            with concurrency("db", 1, timeout_seconds=0.01):
                raise AssertionError("it is held")
        except LimitTimeoutError as error:
            seen.append(error)

    context = copy_context()
    with concurrency("db", 1):
        thread = threading.Thread(target=context.run, args=(wait,))
        thread.start()
        thread.join(LONG)
    (error,) = seen
    assert "held by code outside of any run" in str(error)
    assert in_use(runtime) == 0


async def test_no_permit_in_time(runtime: Runtime) -> None:
    async with rate_limit("api", 0.01):
        pass
    with anyio.fail_after(5):  # it is known at once
        with pytest.raises(LimitTimeoutError, match=r"rate_limit\('api', 0.01\) could not be had within 30 seconds"):
            async with rate_limit("api", 0.01, timeout_seconds=30):
                raise AssertionError("there is none for 100 seconds")


async def test_a_block_inside_of_itself_is_refused(runtime: Runtime) -> None:
    limit = concurrency("db", 2)

    @task
    async def inner() -> None:
        async with concurrency("db", 2):
            raise AssertionError("it could never be had")

    @task
    def inner_sync() -> None:
        with concurrency("db", 2):
            raise AssertionError("it could never be had")

    async def refused() -> None:
        with pytest.raises(LimitDeadlockError):
            await inner()

    @flow(flow_run_name="outermost")
    async def outer() -> None:
        async with limit:
            async with limit:  # there is room for two
                for call in (inner, inner_sync.acall):
                    with pytest.raises(LimitDeadlockError) as caught:
                        await call()
                    assert (caught.value.asked, caught.value.held, caught.value.limit) == (1, 2, 2)
                    assert "run 'outermost'" in str(caught.value)
                async with anyio.create_task_group() as group:
                    group.start_soon(refused)
            with pytest.raises(LimitDeadlockError):
                async with concurrency("db", 2, occupy=2):
                    raise AssertionError("it could never be had")
        async with concurrency("db", 2, occupy=2):
            pass

    with anyio.fail_after(LONG):
        await outer()
    assert in_use(runtime) == 0


async def test_what_was_started_in_a_block_may_ask_when_it_is_over(runtime: Runtime) -> None:
    over = anyio.Event()
    got: list[int] = []

    async def later() -> None:
        await over.wait()
        async with concurrency("db", 1):
            got.append(1)

    async with anyio.create_task_group() as group:
        async with concurrency("db", 1):
            group.start_soon(later)
            await anyio.wait_all_tasks_blocked()
        over.set()
    assert got == [1]


async def test_a_name_has_one_limit_while_it_is_used(runtime: Runtime) -> None:
    async with concurrency("db", 2):
        with pytest.raises(LimitConflictError) as caught:
            async with concurrency("db", 3):
                raise AssertionError("it is in use with 2")
        assert "concurrency('db', 3)" in str(caught.value)
        assert "concurrency('db', 2)" in str(caught.value)
        async with rate_limit("db", 3):  # another kind of limit, another name
            pass
    async with concurrency("db", 3):
        pass
    assert in_use(runtime) == 0
    async with rate_limit("api", 1):
        pass
    async with anyio.create_task_group() as group:
        group.start_soon(rate_limit("api", 1).__aenter__)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(LimitConflictError, match=r"rate_limit\('api', 2\)"):
            async with rate_limit("api", 2):
                raise AssertionError("somebody waits at a rate of 1")
        group.cancel_scope.cancel()
    async with rate_limit("api", 2):  # nobody does; what was granted before still counts
        with pytest.raises(LimitTimeoutError):
            async with rate_limit("api", 2, timeout_seconds=0):
                raise AssertionError("one before and one now is two")


async def test_with_on_a_loop_says_what_to_write(runtime: Runtime) -> None:
    for limit in (concurrency("db", 1), rate_limit("api", 1)):
        with pytest.raises(WaitOnEventLoopError) as caught, limit:
            raise AssertionError("it would block the loop")
        assert f"async with {limit!r}:" in str(caught.value)
    assert in_use(runtime) == 0


# --- where a name counts -------------------------------------------------------------------


async def test_each_runtime_has_its_own_names() -> None:
    outer, inner = Runtime(store=MemoryStore()), Runtime(store=MemoryStore())
    async with outer, concurrency("db", 1), inner, concurrency("db", 2, occupy=2):
        assert (in_use(outer), in_use(inner)) == (1, 1)


async def test_without_a_runtime_and_without_a_home(home: Path) -> None:
    async with concurrency("db", 1):
        with pytest.raises(LimitDeadlockError, match="outside of any run"):
            async with concurrency("db", 1):
                raise AssertionError("it could never be had")
    async with rate_limit("api", 1):
        pass
    assert HOME.in_force() is None
    assert not home.exists()


async def test_names_are_forgotten(runtime: Runtime) -> None:
    limits = runtime.open().limits
    for number in range(1000):
        async with concurrency(f"user {number}", 1):
            assert len(limits.concurrency) == 1
        async with rate_limit(f"user {number}", 1e6):  # a permit of this one counts for a second
            pass
    assert len(limits.concurrency) == 0
    assert len(limits.rates) <= 1000
    await anyio.sleep(1.05)
    for number in range(1001):
        async with rate_limit(f"customer {number}", 1e6):
            pass
    assert len(limits.rates) <= 1100


async def test_the_limits_a_run_used_do_not_keep_it(runtime: Runtime) -> None:
    contexts: list[Context] = []
    limit = concurrency("db", 1)

    @flow
    async def one() -> None:
        async with limit:
            contexts.append(copy_context())  # as a callback or a background task does
        async with rate_limit("api", 1000):
            pass

    await one()
    (use,) = contexts[0][_held]
    assert (use.holds, use.holder, use.named) == (False, None, None)
    assert in_use(runtime) == 0


async def test_a_block_may_be_left_in_another_context(runtime: Runtime) -> None:
    limit = concurrency("db", 2)

    async def numbers() -> AsyncIterator[int]:
        async with limit:
            yield 1

    first, second = numbers(), numbers()
    assert await anext(first) == 1
    await elsewhere(second.__anext__)
    assert in_use(runtime) == 1
    await elsewhere(first.aclose)  # type: ignore[attr-defined]
    await second.aclose()  # type: ignore[attr-defined]
    assert in_use(runtime) == 0
    async with concurrency("db", 2, occupy=2):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_process_begins_anew(run_python: RunPython) -> None:
    done = run_python("""
import os
from asyncflow.concurrency import concurrency
with concurrency("db", 1):
    pid = os.fork()
    if pid == 0:
        import contextvars
        def child():
            with concurrency("db", 2, timeout_seconds=0):
                print("free", flush=True)
        contextvars.Context().run(child)
        os._exit(0)
    os.waitpid(pid, 0)
""")
    assert done.stdout == "free\n"


def test_two_loops_share_the_names_of_a_runtime(runtime: Runtime) -> None:
    gauge = Gauge()

    async def main() -> None:
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                for _ in range(30):
                    group.start_soon(one)

    async def one() -> None:
        for _ in range(10):
            async with concurrency("db", 2):
                with gauge:
                    await anyio.sleep(0)

    runs: list[Callable[[], object]] = [lambda: asyncio.run(main()), lambda: trio.run(main)]
    threads = [threading.Thread(target=copy_context().run, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert gauge.total == 600
    assert gauge.most == 2
    assert in_use(runtime) == 0


# --- rates, in virtual time ----------------------------------------------------------------


class _VirtualSelector(selectors.DefaultSelector):
    """Never waits: tells the loop how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """What is ready; the time that nothing is passes in no time."""
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += max(timeout, 0.0)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._virtual.now


class LoopClock(SystemClock):
    """The loop's own time, which in these tests is virtual."""

    monotonic = staticmethod(anyio.current_time)


VIRTUAL = [
    pytest.param(("asyncio", {"loop_factory": _VirtualLoop}), id="asyncio"),
    pytest.param(("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}), id="trio"),
]
in_virtual_time = pytest.mark.parametrize("anyio_backend", VIRTUAL, indirect=True)


@in_virtual_time
async def test_three_flows_share_a_hundred_per_second() -> None:
    began: list[float] = []

    @task
    async def call() -> None:
        async with rate_limit("api", 100):
            began.append(anyio.current_time())

    @flow(validate_parameters=False)  # pydantic is loaded in a thread, and virtual time would not wait for it
    async def calls(number: int, pause: float) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(number):
                group.start_soon(call)
                await anyio.sleep(pause)

    async with Runtime(store=MemoryStore(), clock=LoopClock()), anyio.create_task_group() as group:
        for number, pause in ((500, 0), (200, 0.003), (300, 0.017)):
            group.start_soon(calls, number, pause)
    assert len(began) == 1000
    assert began == sorted(began)
    # Any window of a second: the hundredth call after a call is a second later.
    gaps = [later - earlier for earlier, later in zip(began, began[100:], strict=False)]
    assert min(gaps) >= 1 - 1e-6
    assert began[-1] - began[0] == pytest.approx(9, abs=0.1), "and it is not slower than it must be"


@in_virtual_time
async def test_permits_come_in_the_order_they_were_asked_for() -> None:
    asked: list[int] = []
    given: list[int] = []

    async def ask(number: int) -> None:
        asked.append(number)
        async with rate_limit("api", 2, occupy=1 + number % 2):
            given.append(number)

    async with Runtime(store=MemoryStore(), clock=LoopClock()), anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, number)
            if number % 5 == 0:
                await anyio.sleep(0.01)
    assert given == asked
