"""The contract of a host, on each of them: signals, waits that hold, scopes that deliver once, protected work."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from typing import Any

import anyio
import pytest
import trio

from asyncflow._backend.base import Host
from asyncflow._backend.detect import host_here, loop_is_running_here
from asyncflow._backend.inline import InlineCancelled, InlineHost, drive
from asyncflow._backend.threads import ThreadPool
from asyncflow.clock import SystemClock
from tests.conftest import BACKENDS

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
CLOCK = SystemClock()
LONG = 30.0


def cancellations() -> int:
    current = asyncio.current_task() if asyncio._get_running_loop() is not None else None
    return 0 if current is None else current.cancelling()


# --- where ---------------------------------------------------------------------------------


async def test_a_loop_has_one_host() -> None:
    host = host_here(CLOCK)
    assert host is host_here(CLOCK)
    assert host.here()
    assert loop_is_running_here()
    assert not host.is_inline
    seen: list[tuple[bool, bool, bool]] = []

    def elsewhere() -> None:
        seen.append((host.here(), loop_is_running_here(), host_here(CLOCK).is_inline))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, False, True)]


def test_each_loop_and_each_thread_has_its_own() -> None:
    async def mine() -> Host:
        return host_here(CLOCK)

    hosts = [asyncio.run(mine()), trio.run(mine), asyncio.run(mine()), host_here(CLOCK)]
    assert len(set(map(id, hosts))) == 4
    assert hosts[3] is host_here(CLOCK)
    hosts[0].post(lambda: None)  # its loop is closed: nothing happens
    hosts[1].post(lambda: None)


# --- signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["a task", "a thread", "before"])
async def test_a_signal_wakes_its_waiter(by: str) -> None:
    host = host_here(CLOCK)
    signal = host.signal()
    if by == "before":
        signal.set()
    elif by == "a thread":
        threading.Timer(0.01, signal.set).start()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(signal.wait)
            group.start_soon(signal.wait)
            await anyio.wait_all_tasks_blocked()
            if by == "a task":
                signal.set()
    signal.set()
    assert signal.is_set
    await signal.wait()


async def test_a_cancelled_wait_does_not_spoil_the_signal() -> None:
    signal = host_here(CLOCK).signal()
    with anyio.move_on_after(0.005) as scope:
        await signal.wait()
    assert scope.cancelled_caught
    assert not signal.is_set
    async with anyio.create_task_group() as group:
        group.start_soon(signal.wait)
        await anyio.wait_all_tasks_blocked()
        signal.set()


# --- settle --------------------------------------------------------------------------------


@pytest.mark.parametrize("breathing", [False, True])
async def test_settle_ends_with_the_signal_or_with_its_time(breathing: bool) -> None:
    host = host_here(CLOCK)
    signal = host.signal()
    began = time.monotonic()
    assert await host.settle(signal, 0.02, breathing=breathing) is None
    assert 0.015 < time.monotonic() - began < 2
    threading.Timer(0.01, signal.set).start()
    assert await host.settle(signal, LONG, breathing=breathing) is None
    assert time.monotonic() - began < 5


@asyncio_only
async def test_settle_holds_native_cancels_back() -> None:
    host = host_here(CLOCK)
    signal = host.signal()
    held: list[BaseException | None] = []

    async def wait() -> None:
        held.append(await host.settle(signal, LONG))

    task = asyncio.ensure_future(wait())
    for number in range(5):
        await asyncio.sleep(0)
        task.cancel(number)
    await asyncio.sleep(0.01)
    assert not task.done()
    signal.set()
    await task
    assert isinstance(held[0], asyncio.CancelledError)
    assert task.cancelling() == 5


async def test_settle_in_a_cancelled_scope_waits_and_costs_nothing() -> None:
    host = host_here(CLOCK)
    cpu = time.process_time()
    with anyio.CancelScope() as scope:
        scope.cancel()
        began = time.monotonic()
        await host.settle(host.signal(), 0.2)
        assert time.monotonic() - began > 0.19
    assert time.process_time() - cpu < 0.1


# --- scopes --------------------------------------------------------------------------------


async def test_a_cancelled_scope_catches_its_own() -> None:
    host, before = host_here(CLOCK), cancellations()
    async with anyio.create_task_group() as group:
        with host.scope(None) as scope:

            async def cancel() -> None:
                for _ in range(3):
                    scope.cancel()

            group.start_soon(cancel)
            await anyio.sleep(LONG)
    assert scope.caught
    assert not scope.expired
    assert cancellations() == before
    await anyio.sleep(0)


async def test_a_scope_expires() -> None:
    host, before = host_here(CLOCK), cancellations()
    with host.scope(0.01) as scope:
        await anyio.sleep(LONG)
    assert scope.caught
    assert scope.expired
    assert cancellations() == before
    await anyio.sleep(0.001)


async def test_cancelling_a_scope_after_its_end_does_nothing() -> None:
    host = host_here(CLOCK)
    with host.scope(0.01) as scope:
        pass
    scope.cancel()
    await anyio.sleep(0.03)
    assert not scope.caught


async def test_an_exception_goes_through_a_scope_that_was_cancelled() -> None:
    host, before = host_here(CLOCK), cancellations()
    with pytest.raises(LookupError), host.scope(0.01) as scope:  # noqa: PT012  # the block is what is looked at
        try:
            await anyio.sleep(LONG)
        finally:
            raise LookupError
    assert not scope.caught
    assert cancellations() == before
    await anyio.sleep(0)


async def test_scopes_within_scopes() -> None:
    host, before = host_here(CLOCK), cancellations()
    with host.scope(0.01) as outer, host.scope(LONG) as inner:
        await anyio.sleep(LONG)
    assert (outer.caught, inner.caught) == (True, False)
    with host.scope(LONG) as outer, host.scope(0.01) as inner:
        await anyio.sleep(LONG)
    assert (outer.caught, inner.caught) == (False, True)
    with host.scope(0.01) as outer, host.scope(0.01) as inner:
        await anyio.sleep(LONG)
    assert outer.caught or inner.caught
    assert cancellations() == before
    await anyio.sleep(0.02)


@asyncio_only
async def test_a_foreign_cancel_goes_through_a_scope() -> None:
    host = host_here(CLOCK)
    seen: list[bool] = []

    async def body() -> None:
        with host.scope(0.02) as scope:
            try:
                await asyncio.sleep(LONG)
            finally:
                seen.append(scope.caught)
        seen.append(True)

    task = asyncio.ensure_future(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [False]
    assert task.cancelling() == 1


async def test_a_deadline_that_never_comes() -> None:
    with host_here(CLOCK).scope(1e9) as scope:
        await anyio.sleep(0)
    assert not scope.expired
    assert math.isfinite(anyio.current_time())


# --- work ----------------------------------------------------------------------------------


async def test_protected_work_is_not_disturbed() -> None:
    host = host_here(CLOCK)
    done: list[str] = []

    async def work() -> None:
        await anyio.sleep(0.03)
        done.append("done")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await host.protect(work, LONG)
        assert done == ["done"]
    assert done == ["done"]


async def test_protected_work_has_its_time_and_no_more() -> None:
    async def work() -> None:
        await anyio.sleep(LONG)

    with anyio.fail_after(5):
        await host_here(CLOCK).protect(work, 0.02)


async def test_what_protected_work_raises_arrives() -> None:
    async def work() -> None:
        await anyio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        await host_here(CLOCK).protect(work, LONG)


async def test_blocking_calls_run_elsewhere() -> None:
    host = host_here(CLOCK)
    assert await host.run_blocking(threading.get_ident) != threading.get_ident()

    def fail() -> None:
        raise LookupError("there")

    with pytest.raises(LookupError, match="there"):
        await host.run_blocking(fail)


async def test_spawned_work_has_the_given_context() -> None:
    variable = contextvars.ContextVar("variable", default="none")
    context = contextvars.Context()
    context.run(variable.set, "given")
    seen: list[str] = []
    signal = host_here(CLOCK).signal()

    async def work() -> None:
        seen.append(variable.get())
        signal.set()

    host_here(CLOCK).spawn(work, context)
    with anyio.fail_after(5):
        await signal.wait()
    assert seen == ["given"]


# --- inline --------------------------------------------------------------------------------


def test_an_inline_host_never_suspends() -> None:
    host = host_here(CLOCK)
    assert isinstance(host, InlineHost)
    signal = host.signal()
    threading.Timer(0.01, signal.set).start()
    drive(signal.wait())
    drive(host.sleep(0.001))
    assert drive(host.settle(host.signal(), 0.01)) is None
    assert drive(host.run_blocking(threading.get_ident)) == threading.get_ident()

    async def suspends() -> None:
        await host.sleep(0)
        await Suspended()

    class Suspended:
        def __await__(self) -> Any:
            yield

    with pytest.raises(AssertionError, match="suspended"):
        drive(suspends())


def test_an_inline_scope_acts_when_it_is_asked() -> None:
    host = host_here(CLOCK)
    with host.scope(0.001) as scope:
        time.sleep(0.005)
        assert not scope.caught
    assert scope.caught
    assert scope.expired
    with host.scope(None) as scope:
        scope.cancel()
        scope.check()
        raise AssertionError
    assert scope.caught
    with pytest.raises(InlineCancelled), host.scope(None):
        raise InlineCancelled  # of a scope around this one


def test_async_work_of_a_thread_without_a_loop_runs_on_the_process_s_own() -> None:
    async def where() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    host = host_here(CLOCK)
    first = drive(host.run_async(where))
    assert first != threading.get_ident()
    assert drive(host.run_async(where)) == first


async def test_a_thread_pool_without_threads_left_queues() -> None:
    """`call_sync` on a full pool waits for its turn, and gives it up when it is cancelled."""
    host, pool, release = host_here(CLOCK), ThreadPool(1), threading.Event()
    cancelled: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(host.call_sync, release.wait, pool, LONG, lambda: None, lambda: None)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await host.call_sync(lambda: None, pool, LONG, lambda: cancelled.append("told"), lambda: None)
        assert scope.cancelled_caught
        assert cancelled == []
        release.set()
