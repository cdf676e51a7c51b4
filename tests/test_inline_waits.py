"""Waits on a thread without a loop: what ends them, that no wake-up is missed, and that no slot is held meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import signal as signals
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import anyio.to_thread
import pytest

from asyncflow import flow, get_client, task
from asyncflow._backend.base import Host, RunScope
from asyncflow._backend.detect import host_here
from asyncflow._backend.inline import InlineCancelled, InlineHost, drive
from asyncflow._backend.threads import Job, ThreadPool
from asyncflow.clock import SystemClock
from tests.conftest import RunPython

CLOCK = SystemClock()
LONG = 30.0
SOON = 10.0

Wait = Callable[[Host], Any]


def wait_for_signal(host: Host) -> Any:
    return drive(host.signal().wait())


def sleep(host: Host) -> Any:
    return drive(host.sleep(LONG))


def wait_for_signal_or_time(host: Host) -> Any:
    return drive(host.wait_for(host.signal(), LONG))


WAITS = pytest.mark.parametrize("wait", [wait_for_signal, sleep, wait_for_signal_or_time])


class Thread(threading.Thread):
    """A thread that hands over what it raised."""

    def __init__(self, body: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._body()
        except BaseException as error:  # for the test
            self._error = error

    def end(self) -> None:
        self.join(SOON)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error


def until_blocked(host: Host) -> None:
    assert isinstance(host, InlineHost)
    until(lambda: host.sleeper._blocked_on is not None)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


class Entered:
    """A thread in a scope around another, and what becomes of both."""

    def __init__(self, wait: Wait, outer: float | None = None, inner: float | None = None) -> None:
        self._ready = threading.Event()
        self._wait = wait
        self._seconds = outer, inner
        self.host: Host | None = None
        self.outer: RunScope | None = None
        self.inner: RunScope | None = None
        self.reached: list[str] = []
        self.thread = Thread(self._body)
        assert self._ready.wait(SOON)

    def _body(self) -> None:
        self.host = host = host_here(CLOCK)
        with host.scope(self._seconds[0]) as self.outer:
            with host.scope(self._seconds[1]) as self.inner:
                self._ready.set()
                self._wait(host)
            self.reached.append("after inner")
        self.reached.append("after outer")

    @property
    def caught(self) -> tuple[bool, bool]:
        assert self.outer is not None
        assert self.inner is not None
        return self.outer.caught, self.inner.caught


# --- what ends a wait --------------------------------------------------------------------------------


@WAITS
@pytest.mark.parametrize("which", ["outer", "inner"])
def test_a_scope_cancelled_by_another_thread_ends_the_wait(wait: Wait, which: str) -> None:
    entered = Entered(wait)
    assert entered.host is not None
    until_blocked(entered.host)
    scope: RunScope = getattr(entered, which)
    scope.cancel()
    entered.thread.end()
    assert entered.caught == (which == "outer", which == "inner")
    assert entered.reached == (["after outer"] if which == "outer" else ["after inner", "after outer"])


@WAITS
def test_a_cancel_at_any_moment_of_a_wait_is_not_missed(wait: Wait) -> None:
    for _ in range(300):
        entered = Entered(wait)
        assert entered.outer is not None
        entered.outer.cancel()
        entered.thread.end()
        assert entered.caught == (True, False)


def test_a_signal_at_any_moment_of_a_wait_is_not_missed() -> None:
    ready, handed = threading.Semaphore(0), list[Any]()

    def body() -> None:
        host = host_here(CLOCK)
        for _ in range(2000):
            handed.append(host.signal())
            ready.release()
            drive(handed[-1].wait())

    thread = Thread(body)
    for _ in range(2000):
        assert ready.acquire(timeout=SOON)
        handed[-1].set()
    thread.end()


@WAITS
@pytest.mark.parametrize("which", ["outer", "inner"])
def test_a_deadline_ends_the_wait(wait: Wait, which: str) -> None:
    began = time.monotonic()
    entered = Entered(wait, *((0.02, LONG) if which == "outer" else (LONG, 0.02)))
    entered.thread.end()
    assert entered.caught == (which == "outer", which == "inner")
    assert entered.outer is not None
    assert entered.inner is not None
    assert (entered.outer.expired, entered.inner.expired) == entered.caught
    assert 0.02 <= time.monotonic() - began < SOON


@WAITS
def test_a_wait_in_a_scope_that_was_cancelled_before_does_not_begin(wait: Wait) -> None:
    host = host_here(CLOCK)
    scope = host.scope(None)
    scope.cancel()
    with scope:
        wait(host)
    assert scope.caught


def test_what_has_happened_already_is_not_waited_for() -> None:
    host = host_here(CLOCK)
    signal = host.signal()
    signal.set()
    with host.scope(None) as scope:
        scope.cancel()
        drive(signal.wait())
        drive(host.sleep(0))
        assert not scope.caught
    assert scope.caught


def test_a_scope_that_has_ended_ends_no_wait() -> None:
    host, kept = host_here(CLOCK), list[contextvars.Context]()
    with host.scope(None) as cancelled, host.scope(0.01):
        kept.append(copy_context())
    cancelled.cancel()
    drive(host.sleep(0.02))
    kept[0].run(drive, host.sleep(0.02))  # long past the deadline


def test_a_wait_of_another_thread_in_the_same_context_goes_on() -> None:
    host, ended = host_here(CLOCK), list[str]()
    with host.scope(0.01) as scope:
        context, other_signal, ready = copy_context(), list[Any](), threading.Event()

        def elsewhere() -> None:
            other_signal.append(host_here(CLOCK).signal())
            ready.set()
            drive(other_signal[0].wait())
            ended.append("by its signal")

        thread = Thread(lambda: context.run(elsewhere))
        assert ready.wait(SOON)
        scope.cancel()
        time.sleep(0.02)  # past the deadline
        assert ended == []
        other_signal[0].set()
        thread.end()
    assert ended == ["by its signal"]


def test_the_consumer_of_a_stream_is_not_in_its_scopes() -> None:
    host = host_here(CLOCK)

    def produce() -> Iterator[RunScope]:
        with host.scope(0.01) as scope:
            yield scope
            drive(host.sleep(LONG))

    context, stream = copy_context(), produce()
    scope = context.run(next, stream)
    drive(host.sleep(0.02))  # past the stream's deadline, and not the consumer's business
    scope.cancel()
    drive(host.sleep(0.001))
    assert context.run(next, stream, None) is None
    assert scope.caught


def test_a_run_whose_parent_is_hosted_elsewhere_needs_a_scope() -> None:
    host, others = host_here(CLOCK), list[object]()
    Thread(lambda: others.append(host_here(CLOCK).current_task())).end()
    assert not host.needs_scope(host.current_task(), host.current_task())
    assert host.needs_scope(others[0], host.current_task())


def test_two_clocks_on_one_thread_see_the_same_scopes() -> None:
    one, other = host_here(SystemClock()), host_here(SystemClock())
    assert one is not other
    with one.scope(0.02) as scope:
        drive(other.sleep(LONG))
    assert scope.expired


# --- waits that nothing ends ------------------------------------------------------------------------


def test_settle_is_not_ended_by_a_cancellation() -> None:
    signal: list[Any] = []
    held: list[object] = []

    def settle(host: Host) -> None:
        signal.append(host.signal())
        held.append(drive(host.settle(signal[0], LONG)))

    entered = Entered(settle, 0.01, None)
    assert entered.host is not None
    assert entered.inner is not None
    until_blocked(entered.host)
    for _ in range(3):
        entered.inner.cancel()
        time.sleep(0.01)  # past the deadline as well
    assert held == []
    signal[0].set()
    entered.thread.end()
    assert held == [None]


def test_protected_work_waits_in_a_cancelled_scope() -> None:
    host, done = host_here(CLOCK), list[str]()

    async def work() -> None:
        await host.sleep(0.01)
        done.append("done")

    with host.scope(None) as scope:
        scope.cancel()
        drive(host.protect(work, LONG))
        assert done == ["done"]
        drive(host.sleep(LONG))
    assert scope.caught


def test_protected_work_has_its_time_and_no_more() -> None:
    host, done = host_here(CLOCK), list[str]()

    async def work() -> None:
        await host.sleep(LONG)
        done.append("done")

    with host.scope(None) as scope:
        drive(host.protect(work, 0.01))
    assert not scope.caught
    assert done == []


# --- time --------------------------------------------------------------------------------------------


class VirtualClock:
    """Time passes only where somebody waits."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> bool:
        assert seconds > 0
        if not event.is_set():
            self.time += seconds
        return event.is_set()


def test_time_comes_from_the_clock() -> None:
    clock = VirtualClock()
    host = InlineHost(clock)
    drive(host.sleep(3600))
    assert clock.time == 4600
    with host.scope(10) as scope:
        drive(host.sleep(3600))
    assert scope.expired
    assert clock.time == 4610
    with host.scope(10), host.scope(5) as scope:
        drive(host.signal().wait())
    assert scope.expired
    assert clock.time == 4615
    assert drive(host.settle(host.signal(), 100)) is None
    assert clock.time == 4715
    signal = host.signal()
    assert drive(host.wait_for(signal, 0)) is False
    assert drive(host.wait_for(signal, 100)) is False
    assert clock.time == 4815
    signal.set()
    assert drive(host.wait_for(signal, 100)) is True
    assert clock.time == 4815


def test_a_clock_that_returns_early_is_asked_again() -> None:
    class Impatient(SystemClock):
        def wait(self, event: threading.Event, seconds: float) -> bool:
            return event.wait(seconds / 2)

    host, began = InlineHost(Impatient()), time.monotonic()
    drive(host.sleep(0.02))
    assert time.monotonic() - began >= 0.02
    drive(host.settle(host.signal(), 0.02))
    assert time.monotonic() - began >= 0.04


def test_times_longer_than_the_system_knows() -> None:
    event = threading.Event()
    event.set()
    assert CLOCK.wait(event, 1e300)
    entered = Entered(lambda host: drive(host.sleep(1e300)), 1e200, 1e100)
    assert entered.outer is not None
    entered.outer.cancel()
    entered.thread.end()


def test_call_later() -> None:
    host, called = host_here(CLOCK), threading.Event()
    assert isinstance(host, InlineHost)
    missed: list[int] = []
    stop = host.call_later(1e300, lambda: missed.append(1))
    host.call_later(0.001, called.set)
    assert called.wait(SOON)
    stop()
    stop()
    assert missed == []


# --- Ctrl-C and other signals -------------------------------------------------------------------------

on_signals = pytest.mark.skipif(sys.platform == "win32", reason="setitimer")


@pytest.fixture
def on_alarm() -> Iterator[Callable[[float, Callable[[], object]], None]]:
    """Runs a handler on the main thread in so many seconds, whatever this is blocked on."""
    before = signals.getsignal(signals.SIGALRM)

    def arrange(seconds: float, handler: Callable[[], object]) -> None:
        signals.signal(signals.SIGALRM, lambda *_: handler())
        signals.setitimer(signals.ITIMER_REAL, seconds)

    yield arrange
    signals.setitimer(signals.ITIMER_REAL, 0)
    signals.signal(signals.SIGALRM, before)


Arrange = Callable[[float, Callable[[], object]], None]


@on_signals
@WAITS
def test_a_ctrl_c_ends_the_wait(on_alarm: Arrange, wait: Wait) -> None:
    on_alarm(0.02, lambda: signals.raise_signal(signals.SIGINT))
    host = host_here(CLOCK)
    with pytest.raises(KeyboardInterrupt), host.scope(LONG):
        wait(host)
    with host.scope(0.01) as scope:  # and leaves nothing behind
        wait(host)
    assert scope.expired


@on_signals
@WAITS
def test_a_signal_handler_may_cancel_what_its_own_thread_waits_in(on_alarm: Arrange, wait: Wait) -> None:
    host = host_here(CLOCK)
    with host.scope(None) as scope:
        on_alarm(0.02, scope.cancel)
        wait(host)
    assert scope.caught


@on_signals
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_wait_within_a_wait_loses_nothing(on_alarm: Arrange, when: str) -> None:
    host = host_here(CLOCK)
    outer, inner, seen = host.signal(), host.signal(), list[str]()

    def handler() -> None:
        if when == "before":
            outer.set()
        else:
            threading.Timer(0.01, outer.set).start()
        threading.Timer(0.02, inner.set).start()
        drive(inner.wait())
        seen.append("inner")

    on_alarm(0.02, handler)
    with host.scope(SOON) as scope:
        drive(outer.wait())
        seen.append("outer")
    assert seen == ["inner", "outer"]
    assert not scope.caught


# --- async work of a thread without a loop --------------------------------------------------------------


@pytest.mark.parametrize("ending", ["cancelled", "LookupError", "a value"])
def test_a_cancellation_reaches_the_loop_of_the_process_and_waits_for_its_end(ending: str) -> None:
    began, steps = threading.Event(), list[str]()

    async def work() -> str:
        began.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            steps.append("cleaned up")
            if ending == "LookupError":
                raise LookupError("in the clean-up") from None
            if ending == "cancelled":
                raise
        return ending

    results: list[object] = []

    def wait(host: Host) -> None:
        try:
            results.append(drive(host.run_async(work)))
        except BaseException as error:
            results.append(type(error))
            raise
        finally:
            steps.append("left")

    entered = Entered(wait)
    assert entered.inner is not None
    assert began.wait(SOON)
    entered.inner.cancel()
    if ending == "LookupError":
        with pytest.raises(LookupError, match="in the clean-up"):
            entered.thread.end()
    else:
        entered.thread.end()
        assert entered.caught == (False, True)
    assert steps == ["cleaned up", "left"]
    assert results == [{"cancelled": InlineCancelled, "LookupError": LookupError, "a value": "a value"}[ending]]


@on_signals
def test_a_ctrl_c_cancels_the_async_work_and_does_not_wait(on_alarm: Arrange) -> None:
    cancelled = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            cancelled.set()

    on_alarm(0.02, lambda: signals.raise_signal(signals.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        drive(host_here(CLOCK).run_async(work))
    assert cancelled.wait(SOON)


# --- in a pool's threads --------------------------------------------------------------------------------


@WAITS
def test_a_thread_that_waits_here_holds_no_slot(wait: Wait) -> None:
    """And one that is cancelled goes on at once, while another body has the only slot."""
    pool, ended = ThreadPool(1), threading.Semaphore(0)
    scopes: list[RunScope] = []

    def body() -> None:
        host = host_here(CLOCK)
        with host.scope(None) as scope:
            scopes.append(scope)
            wait(host)

    holds, release = threading.Event(), threading.Event()

    def holder() -> None:
        holds.set()
        assert release.wait(LONG)

    jobs = [Job(contextvars.Context(), each, ended.release) for each in (body, holder)]
    for job in jobs:
        pool.start(job)
    assert holds.wait(SOON)
    scopes[0].cancel()
    assert ended.acquire(timeout=SOON)
    assert [job.ended for job in jobs] == [True, False]
    assert jobs[0].error is None
    assert scopes[0].caught
    release.set()
    assert ended.acquire(timeout=SOON)
    until(lambda: pool.busy == 0)


@pytest.mark.parametrize("how", ["cancelled", "deadline", "settle", "nothing"])
def test_a_thread_that_waits_for_its_slot_can_be_interrupted(how: str) -> None:
    pool, ended = ThreadPool(1), threading.Semaphore(0)
    scopes, handed, reached = list[RunScope](), list[Any](), list[str]()

    def body() -> None:
        host = host_here(CLOCK)
        with host.scope(0.1 if how == "deadline" else None) as scope:
            scopes.append(scope)
            handed.append(host.signal())
            if how == "settle":
                drive(host.settle(handed[0], 0.1))
            else:
                drive(handed[0].wait())
            reached.append("after the wait")

    holds, release = threading.Event(), threading.Event()

    def holder() -> None:
        holds.set()
        assert release.wait(LONG)

    jobs = [Job(contextvars.Context(), each, ended.release) for each in (body, holder)]
    for job in jobs:
        pool.start(job)
    assert holds.wait(SOON)
    handed[0].set()
    if how in ("cancelled", "nothing"):
        until(lambda: len(pool._returning) == 1)
    if how == "cancelled":
        scopes[0].cancel()
    elif how == "nothing":
        release.set()
    assert ended.acquire(timeout=SOON)
    if how != "nothing":
        assert [job.ended for job in jobs] == [True, False]
    release.set()
    assert ended.acquire(timeout=SOON)
    assert [job.error for job in jobs] == [None, None]
    assert scopes[0].caught == (how in ("cancelled", "deadline"))
    assert reached == ([] if scopes[0].caught else ["after the wait"])
    until(lambda: pool.busy == 0)


# --- as people meet it ------------------------------------------------------------------------------------


def test_a_deadline_ends_a_retry_delay() -> None:
    @task(retries=3, retry_delay_seconds=LONG)
    def fails() -> None:
        raise LookupError

    @flow(timeout_seconds=0.1)
    def parent() -> None:
        fails()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        parent()
    assert time.monotonic() - began < SOON


async def test_the_runs_of_a_flow_past_its_deadline_are_on_record() -> None:
    def call() -> None:
        with pytest.raises(TimeoutError):
            late()

    @task(retries=3, retry_delay_seconds=LONG)
    def fails() -> None:
        raise LookupError

    @flow(timeout_seconds=0.1)
    def late() -> None:
        fails()

    await anyio.to_thread.run_sync(call)
    client = get_client()
    assert [each.state.name for each in await client.read_flow_runs()] == ["TimedOut"]
    assert all(each.state.is_final() for each in await client.read_task_runs())


def test_a_consumer_outlives_its_stream_s_deadline() -> None:
    calls: list[int] = []

    @task(timeout_seconds=0.02)
    def items() -> Iterator[int]:
        yield from range(3)

    @task(retries=1, retry_delay_seconds=0.05)
    def fails_once() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError
        return "done"

    @flow
    def parent() -> str:
        stream = iter(items())
        next(stream)
        answer = fails_once()
        with pytest.raises(TimeoutError):
            list(stream)
        return answer

    assert parent() == "done"


CTRL_C = """
import os, signal, threading
from asyncflow import task

@task(retries=1, retry_delay_seconds=60)
def fails():
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    raise LookupError

try:
    fails()
except KeyboardInterrupt:
    print("interrupted")
"""


@on_signals
def test_a_real_ctrl_c_ends_a_retry_delay(run_python: RunPython) -> None:
    assert run_python(CTRL_C).stdout == "interrupted\n"
