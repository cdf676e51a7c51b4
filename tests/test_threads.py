"""Worker threads for sync bodies: how many, in which order, in which context, and that none outlives its use."""

from __future__ import annotations

import contextvars
import gc
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow import Runtime, flow, get_client, runtime, task
from asyncflow._backend import threads
from asyncflow._backend.threads import Job, ThreadPool, waiting
from tests.conftest import RunPython

LONG = 30.0
variable = contextvars.ContextVar("variable", default="default")


class Gate:
    """Jobs that tell when they run and wait to be let go."""

    def __init__(self, pool: ThreadPool) -> None:
        self.pool = pool
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.order: list[object] = []
        self.names: list[str] = []

    def start(self, name: object) -> Job:
        def body() -> object:
            self.order.append(name)
            self.names.append(threading.current_thread().name)
            self.began.release()
            assert self.go.acquire(timeout=LONG)
            return name

        job = Job(copy_context(), body, self.ended.release)
        self.pool.start(job)
        return job

    def wait(self, which: threading.Semaphore, count: int) -> None:
        for _ in range(count):
            assert which.acquire(timeout=10)

    def finish(self, count: int) -> None:
        for _ in range(count):
            self.go.release()
        self.wait(self.ended, count)


def test_jobs_beyond_the_limit_wait_their_turn() -> None:
    gate = Gate(ThreadPool(2))
    jobs = [gate.start(number) for number in range(6)]
    gate.wait(gate.began, 2)
    assert gate.pool.busy == 2
    assert [job.started for job in jobs] == [True, True, False, False, False, False]
    gate.finish(6)
    assert sorted(gate.order[:2]) == [0, 1]  # type: ignore[type-var]
    assert sorted(gate.order[2:4]) == [2, 3]  # type: ignore[type-var]
    assert [job.value for job in jobs] == list(range(6))
    assert len(set(gate.names)) == 2


def test_first_come_first_served() -> None:
    gate = Gate(ThreadPool(1))
    for number in range(20):
        gate.start(number)
    gate.finish(20)
    assert gate.order == list(range(20))


def test_a_thread_is_used_again() -> None:
    gate = Gate(ThreadPool(4))
    for number in range(5):
        gate.start(number)
        gate.finish(1)
        while gate.pool.busy:
            time.sleep(0.0005)
    assert len(set(gate.names)) == 1


def test_a_job_that_has_not_begun_can_be_taken_back() -> None:
    gate = Gate(ThreadPool(1))
    first, second, third = (gate.start(number) for number in range(3))
    gate.wait(gate.began, 1)
    assert gate.pool.discard(second)
    assert not gate.pool.discard(first)
    gate.finish(2)
    assert gate.order == [0, 2]
    assert third.ended
    assert not second.ended
    assert not gate.pool.discard(third)


def test_idle_threads_retire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE_SECONDS", 0.02)
    gate = Gate(ThreadPool(3))
    for number in range(3):
        gate.start(number)
    gate.finish(3)
    workers = [each for each in threading.enumerate() if each.name in gate.names]
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
    assert gate.pool.busy == 0
    gate.start("again")
    gate.finish(1)
    assert gate.order[-1] == "again"


def test_jobs_that_come_while_threads_retire_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE_SECONDS", 0.0005)
    pool = ThreadPool(2)
    ended = threading.Semaphore(0)
    for number in range(300):
        pool.start(Job(copy_context(), int, ended.release))
        if number % 3:
            time.sleep(0.0005)
    for _ in range(300):
        assert ended.acquire(timeout=10)


@pytest.mark.parametrize(
    "error", [LookupError("x"), StopIteration(1), StopAsyncIteration(), SystemExit(3), KeyboardInterrupt()]
)
def test_whatever_a_job_raises_is_kept(error: BaseException) -> None:
    pool, ended = ThreadPool(1), threading.Event()

    def body() -> None:
        raise error

    job = Job(copy_context(), body, ended.set)
    pool.start(job)
    assert ended.wait(10)
    assert job.error is error
    ended.clear()
    pool.start(Job(copy_context(), int, ended.set))
    assert ended.wait(10)


def test_an_idle_thread_keeps_nothing_alive() -> None:
    class Thing:
        pass

    pool, ended = ThreadPool(1), threading.Event()
    thing = Thing()
    reference = weakref.ref(thing)

    def use(given: Thing) -> Callable[[], None]:
        return lambda: print(given)

    context = contextvars.Context()
    job = Job(context, use(thing), ended.set)
    pool.start(job)
    assert ended.wait(10)
    while pool.busy:
        time.sleep(0.0005)
    del thing, job, context
    gc.collect()
    assert reference() is None


# --- waiting ---------------------------------------------------------------------------------------


class Counter:
    """How many bodies run at once: each says when it runs and when it does not."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def add(self, count: int) -> None:
        with self.lock:
            self.now += count
            self.most = max(self.most, self.now)


def end_all(pool: ThreadPool, bodies: list[Callable[[], object]]) -> list[Job]:
    """Run the bodies, started in this order, to their ends; what one of them raised is raised."""
    ended = threading.Semaphore(0)
    jobs = [Job(copy_context(), body, ended.release) for body in bodies]
    for job in jobs:
        pool.start(job)
    for _ in jobs:
        assert ended.acquire(timeout=LONG)
    for job in jobs:
        if job.error is not None:
            raise job.error
    return jobs


def when_idle(pool: ThreadPool) -> None:
    """A worker gives back its slot just after its job has told that it ended."""
    deadline = time.monotonic() + 10
    while pool.busy:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def test_a_thousand_bodies_that_wait_for_one_another_need_four_slots() -> None:
    count, pool, counter = 1000, ThreadPool(4), Counter()
    results = [threading.Event() for _ in range(count)]

    def make(number: int) -> Callable[[], int]:
        def body() -> int:
            counter.add(1)
            if number + 1 < count:
                counter.add(-1)
                with waiting():
                    assert results[number + 1].wait(LONG)
                counter.add(1)
            results[number].set()
            counter.add(-1)
            return number

        return body

    jobs = end_all(pool, [make(number) for number in range(count)])
    assert [job.value for job in jobs] == list(range(count))
    assert counter.most <= 4
    when_idle(pool)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 4),
    plans=st.lists(st.lists(st.integers(1, 12), max_size=4), min_size=1, max_size=12),
)
def test_whoever_waits_for_whom_all_end_and_no_more_than_size_run(size: int, plans: list[list[int]]) -> None:
    """Each body waits for some that come after it, one by one."""
    pool, counter = ThreadPool(size), Counter()
    began: list[int] = []
    results = [threading.Event() for _ in plans]

    def make(number: int) -> Callable[[], None]:
        def body() -> None:
            counter.add(1)
            began.append(number)
            for distance in plans[number]:
                if number + distance < len(plans):
                    counter.add(-1)
                    with waiting():
                        assert results[number + distance].wait(LONG)
                    counter.add(1)
                    time.sleep(0)
            results[number].set()
            counter.add(-1)

        return body

    end_all(pool, [make(number) for number in range(len(plans))])
    assert counter.most <= size
    assert sorted(began) == list(range(len(plans)))
    if size == 1:
        assert began == sorted(began)
    when_idle(pool)


def test_a_storm_of_waits_keeps_to_the_size() -> None:
    size, bodies, waits = 3, 40, 50
    pool, counter, chance = ThreadPool(size), Counter(), random.Random(3)
    ticks = [threading.Semaphore(0) for _ in range(bodies)]
    moments = [[chance.random() < 0.5 for _ in range(waits)] for _ in range(bodies)]

    def make(number: int) -> Callable[[], None]:
        def body() -> None:
            counter.add(1)
            for early in moments[number]:
                if early:  # the wait is over before it begins
                    ticks[number].release()
                counter.add(-1)
                with waiting():
                    if not early:
                        ticks[number].release()
                    assert ticks[number].acquire(timeout=LONG)
                counter.add(1)
            counter.add(-1)

        return body

    end_all(pool, [make(number) for number in range(bodies)])
    assert counter.most <= size
    when_idle(pool)


class Line:
    """One slot, who holds it when, and who waits for what."""

    def __init__(self) -> None:
        self.pool = ThreadPool(1)
        self.order: list[str] = []
        self.ended = threading.Semaphore(0)

    def start(self, body: Callable[[], None]) -> Job:
        job = Job(copy_context(), body, self.ended.release)
        self.pool.start(job)
        return job

    def until_returning(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.pool._returning) < count:
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def waiter(self, name: str, wake: threading.Event, **interrupt: Any) -> tuple[Job, threading.Event]:
        """A job that waits for `wake`, and an event that says it has begun to."""
        waits = threading.Event()

        def body() -> None:
            with waiting(**interrupt):
                waits.set()
                assert wake.wait(LONG)
            self.order.append(name)

        return self.start(body), waits

    def holder(self, name: str) -> tuple[threading.Event, threading.Event]:
        """A job that holds its slot; gives what says that it has it, and what lets it go."""
        holds, release = threading.Event(), threading.Event()

        def body() -> None:
            holds.set()
            assert release.wait(LONG)
            self.order.append(name)

        self.start(body)
        return holds, release


def test_who_comes_back_is_first_in_line_in_the_order_of_coming_back() -> None:
    line = Line()
    wakes = [threading.Event() for _ in range(3)]
    for number, wake in enumerate(wakes):
        _, waits = line.waiter(f"waiter {number}", wake)
        assert waits.wait(10)
    holds, release = line.holder("holder")
    assert holds.wait(10)
    line.start(lambda: line.order.append("late"))
    for count, number in enumerate((2, 0, 1), 1):
        wakes[number].set()
        line.until_returning(count)
    assert line.order == []
    release.set()
    for _ in range(5):
        assert line.ended.acquire(timeout=10)
    assert line.order == ["holder", "waiter 2", "waiter 0", "waiter 1", "late"]


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_who_is_interrupted_while_it_waits_for_a_slot_goes_on_without_one(how: str) -> None:
    line, wake, interrupt = Line(), threading.Event(), threading.Event()

    def wait_for_turn(turn: threading.Event) -> None:
        assert interrupt.wait(LONG)
        if how == "raises":
            raise LookupError

    job, waits = line.waiter("waiter", wake, wait_for_turn=wait_for_turn)
    assert waits.wait(10)
    holds, release = line.holder("holder")
    assert holds.wait(10)
    _, last_release = line.holder("last")
    wake.set()
    line.until_returning(1)
    interrupt.set()
    assert line.ended.acquire(timeout=10)
    assert isinstance(job.error, LookupError if how == "raises" else type(None))
    # The slot it never had was not handed on when it ended: the holder still has the only one.
    deadline = time.monotonic() + 10
    while line.pool.busy > 1:
        assert time.monotonic() < deadline
    assert line.order == (["waiter"] if how == "returns" else [])
    release.set()
    last_release.set()
    for _ in range(2):
        assert line.ended.acquire(timeout=10)
    assert line.order[-2:] == ["holder", "last"]
    when_idle(line.pool)


def test_a_wait_that_raises_goes_on_at_once() -> None:
    line = Line()
    waits, fail = threading.Event(), threading.Event()

    def body() -> None:
        with waiting():
            waits.set()
            assert fail.wait(LONG)
            raise LookupError

    job = line.start(body)
    assert waits.wait(10)
    holds, release = line.holder("holder")
    assert holds.wait(10)
    fail.set()
    assert line.ended.acquire(timeout=10)
    assert isinstance(job.error, LookupError)
    release.set()
    assert line.ended.acquire(timeout=10)
    when_idle(line.pool)


def test_waits_within_waits_give_one_slot_back() -> None:
    pool, counter = ThreadPool(2), Counter()

    def body() -> None:
        with waiting():
            with waiting():
                pass
            counter.add(pool.busy)
        counter.add(pool.busy)

    end_all(pool, [body])
    assert counter.now == 1
    with waiting(), waiting():  # on no thread of a pool: nothing happens
        assert pool.busy <= 1
    when_idle(pool)


NO_THREADS = """
import threading
from contextvars import copy_context
from asyncflow._backend.threads import Job, ThreadPool, waiting

pool, ended, blocked, go = ThreadPool(1), threading.Semaphore(0), threading.Event(), threading.Event()

def first():
    assert go.wait(30)
    with waiting():  # here the next one would begin
        assert ended.acquire(timeout=30)
        assert ended.acquire(timeout=30)

jobs = [Job(copy_context(), body, ended.release) for body in (first, int, int)]
for job in jobs:
    pool.start(job)
threading.stack_size(1 << 46)  # more than there is: the system refuses the thread
go.set()
assert ended.acquire(timeout=30)
print([type(job.error).__name__ for job in jobs], [job.ended for job in jobs])
while pool.busy:
    pass
pool._idle.clear()
try:
    pool.start(Job(copy_context(), int, ended.release))
except RuntimeError:
    print("refused")
assert pool.busy == 0
threading.stack_size(0)
pool.start(Job(copy_context(), int, ended.release))
assert ended.acquire(timeout=30)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how a system refuses a thread is its own")
def test_when_the_system_gives_no_thread_the_waiters_are_told(run_python: RunPython) -> None:
    assert run_python(NO_THREADS).stdout == (
        "['NoneType', 'RuntimeError', 'RuntimeError'] [True, True, True]\nrefused\n"
    )


# --- through acall -----------------------------------------------------------------------------


async def test_a_thousand_calls_in_four_threads(home: Path) -> None:
    lock = threading.Lock()
    now = most = 0
    names: set[str] = set()

    @task
    def square(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            names.add(threading.current_thread().name)
        time.sleep(0.0001)
        with lock:
            now -= 1
        return number * number

    results: dict[int, int] = {}

    async def call(number: int) -> None:
        results[number] = await square.acall(number)

    @flow
    async def many() -> None:
        async with anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(call, number)

    async with Runtime(home, max_threads=4):
        await many()
        assert results == {number: number * number for number in range(1000)}
        assert most <= 4
        assert len(names) <= 4
        found = await get_client().read_task_runs(limit=2000)
        assert len(found) == 1000
        assert {each.state.name for each in found} == {"Completed"}


async def test_context_variables_are_copied_in_and_do_not_come_back() -> None:
    @task
    def body() -> str:
        before = variable.get()
        variable.set("thread")
        return before

    variable.set("caller")
    assert await body.acall() == "caller"
    assert variable.get() == "caller"


async def test_a_body_in_a_thread_is_in_its_run_and_can_call_tasks() -> None:
    @task
    def inner() -> str:
        return threading.current_thread().name

    @task
    def body() -> tuple[str, str, Any]:
        return threading.current_thread().name, inner(), runtime.task_run.name

    own, called, name = await body.acall()
    assert own == called
    assert own.startswith("asyncflow-worker")
    found = {each.task_name: each for each in await get_client().read_task_runs()}
    assert found["body"].name == name
    assert found["inner"].parent_task_run_id == found["body"].id


async def test_a_thread_reaches_the_loop() -> None:
    @task
    async def on_the_loop() -> int:
        return threading.get_ident()

    @task
    def body() -> int:
        return anyio.from_thread.run(on_the_loop)

    assert await body.acall() == threading.get_ident()


@pytest.mark.parametrize("error", [LookupError("x"), SystemExit(3)])
async def test_exceptions_come_back_as_they_are(error: BaseException) -> None:
    @task
    def body() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await body.acall()
    assert caught.value is error


async def test_stop_iteration_comes_back() -> None:
    @task
    def body() -> None:
        raise StopIteration(3)

    # A coroutine cannot raise it: Python itself makes a RuntimeError of it.
    with pytest.raises(RuntimeError, match="StopIteration"):
        await body.acall()
    state = (await get_client().read_task_runs())[0].state
    assert state.is_failed()
    assert "StopIteration" in (state.message or "")


async def test_a_call_cancelled_before_a_thread_is_free_never_runs(home: Path) -> None:
    release, begun = threading.Event(), threading.Event()
    ran: list[int] = []

    @task
    def blocking() -> None:
        begun.set()
        release.wait(LONG)

    @task
    def later() -> None:
        ran.append(1)

    async with Runtime(home, max_threads=1):
        async with anyio.create_task_group() as group:
            group.start_soon(blocking.acall)
            while not begun.is_set():
                await anyio.sleep(0.001)
            async with anyio.create_task_group() as inner:
                inner.start_soon(later.acall)
                await anyio.wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
            release.set()
        assert ran == []
        names = {each.task_name: each.state.name for each in await get_client().read_task_runs()}
        assert names == {"blocking": "Completed", "later": "Cancelled"}


STUCK = """
import sys, threading, time, anyio
from asyncflow import Runtime, task

@task(timeout_seconds=0.05)
def stuck():
    threading.Event().wait(60)

async def main():
    async with Runtime(grace_seconds=0.05):
        try:
            await stuck.acall()
        except TimeoutError:
            print("left")

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_stuck_thread_does_not_keep_the_process(run_python: RunPython, backend: str) -> None:
    began = time.monotonic()
    assert run_python(STUCK, backend).stdout == "left\n"
    assert time.monotonic() - began < 20


def test_no_job_is_lost_when_a_worker_becomes_idle(home: Path) -> None:
    """A worker that had just become idle stored its old "no job" over the one that it was being given."""
    pool, lost = ThreadPool(4), []

    def feed() -> None:
        for number in range(400):
            done = threading.Event()
            pool.start(Job(copy_context(), lambda: None, done.set))
            if not done.wait(5):
                lost.append(number)
                return

    feeders = [threading.Thread(target=feed) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for feeder in feeders:
            feeder.start()
        for feeder in feeders:
            feeder.join()
    finally:
        sys.setswitchinterval(interval)
    assert not lost
