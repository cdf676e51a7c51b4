"""Slots and rate windows: who goes on and in which order, and that nobody who stops waiting leaves anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import random
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._backend.detect import host_here
from asyncflow._backend.inline import InlineHost, drive
from asyncflow._limiter import Limiter, Waiter
from asyncflow._rates import RateLimiter, SlidingWindow
from asyncflow.clock import SystemClock
from asyncflow.exceptions import OptionError
from tests.conftest import BACKENDS

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)
CLOCK = SystemClock()
LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be stopped."""


def is_free(limiter: Limiter) -> bool:
    """Whether nothing is held and nobody waits; and all of it can be had."""
    if limiter.in_use or limiter.waiting or not limiter.is_spent() or not limiter.try_acquire(limiter.capacity):
        return False
    limiter.release(limiter.capacity)
    return True


def in_threads(*targets: Callable[[], None]) -> None:
    """Run each in a thread of its own; what one raises is raised here."""
    errors: list[BaseException] = []

    def guarded(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


# --- without waiting -----------------------------------------------------------------------


def test_slots_are_counted() -> None:
    limiter = Limiter(3)
    assert (limiter.capacity, limiter.in_use, limiter.waiting) == (3, 0, 0)
    assert limiter.try_acquire()
    assert limiter.try_acquire(2)
    assert not limiter.try_acquire()
    assert repr(limiter) == "<Limiter 3 of 3 in use, 0 waiting>"
    limiter.release(2)
    assert limiter.in_use == 1
    assert not limiter.try_acquire(3)
    assert limiter.try_acquire(2)
    limiter.release(3)
    assert is_free(limiter)


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, "3", None])
def test_a_capacity_is_a_whole_number_from_1(capacity: Any) -> None:
    with pytest.raises(OptionError, match="capacity"):
        Limiter(capacity)


@pytest.mark.parametrize("count", [0, -1, 4])
async def test_a_count_that_can_never_be_had_is_an_error_at_once(count: int) -> None:
    limiter = Limiter(3)
    limiter.try_acquire(3)
    with pytest.raises(OptionError, match="1 to 3"):
        limiter.try_acquire(count)
    with pytest.raises(OptionError, match="1 to 3"):
        limiter.enqueue(lambda: None, count)
    for first in (False, True):
        with pytest.raises(OptionError, match="1 to 3"):
            await limiter.acquire(host_here(CLOCK), count, first=first)
    limiter.release(3)
    assert is_free(limiter)


def test_more_cannot_be_given_back_than_is_held() -> None:
    limiter = Limiter(3)
    limiter.try_acquire(2)
    with pytest.raises(ValueError, match="3 slots given back of 2"):
        limiter.release(3)
    assert limiter.in_use == 2
    limiter.release(2)
    assert is_free(limiter)


# --- the queue -----------------------------------------------------------------------------


class Line:
    """Waiters by name, and the order in which they were woken."""

    def __init__(self, capacity: int) -> None:
        self.limiter = Limiter(capacity)
        self.limiter.try_acquire(capacity)
        self.woken: list[str] = []

    def join(self, name: str, count: int = 1, *, first: bool = False) -> Waiter:
        """Stand in line."""
        return self.limiter.enqueue(lambda: self.woken.append(name), count, first=first)


def test_who_came_first_is_first() -> None:
    line = Line(1)
    for name in "abc":
        line.join(name)
    for done in ("a", "ab", "abc"):
        line.limiter.release()
        assert "".join(line.woken) == done
    line.limiter.release()
    assert is_free(line.limiter)


def test_a_freed_slot_is_never_free_for_others() -> None:
    line = Line(1)
    woken: list[bool] = []
    # Whoever is woken finds its slot taken for itself: nobody else could have it in between.
    line.limiter.enqueue(lambda: woken.append(line.limiter.in_use == 1 and not line.limiter.try_acquire()))
    line.limiter.release()
    assert woken == [True]


async def test_a_freed_slot_cannot_be_taken_before_its_waiter_runs() -> None:
    limiter, host = Limiter(1), host_here(CLOCK)
    await limiter.acquire(host)
    async with anyio.create_task_group() as group:
        group.start_soon(limiter.acquire, host)
        await anyio.wait_all_tasks_blocked()
        limiter.release()
        assert not limiter.try_acquire()
        assert (limiter.in_use, limiter.waiting) == (1, 0)
    limiter.release()
    assert is_free(limiter)


def test_a_slot_that_is_free_is_granted_right_away() -> None:
    line = Line(2)
    line.limiter.release()
    waiter = line.join("a")
    assert waiter.granted
    assert line.woken == ["a"]
    assert not line.limiter.withdraw(waiter)


def test_a_heavy_waiter_is_not_overtaken_by_light_ones() -> None:
    line = Line(3)
    line.join("heavy", 3)
    line.join("light")
    line.limiter.release(2)
    assert line.woken == []
    assert not line.limiter.try_acquire(), "one is free, but it is not for those who come later"
    line.limiter.release()
    assert line.woken == ["heavy"]
    line.limiter.release(3)
    assert line.woken == ["heavy", "light"]


def test_one_release_may_wake_several() -> None:
    line = Line(5)
    for name, count in [("a", 2), ("b", 1), ("c", 2), ("d", 1)]:
        line.join(name, count)
    line.limiter.release(5)
    assert line.woken == ["a", "b", "c"]
    assert line.limiter.in_use == 5


def test_who_gave_its_slot_back_while_it_waited_is_before_the_others() -> None:
    line = Line(1)
    line.join("new")
    line.join("back 1", first=True)
    line.join("back 2", first=True)
    for _ in range(3):
        line.limiter.release()
    assert line.woken == ["back 1", "back 2", "new"]


def test_a_waiter_can_leave_until_it_was_granted() -> None:
    line = Line(1)
    a, b, c = line.join("a"), line.join("b"), line.join("c", first=True)
    assert line.limiter.withdraw(a)
    assert line.limiter.withdraw(a)
    assert line.limiter.withdraw(c)
    line.limiter.release()
    assert line.woken == ["b"]
    assert not line.limiter.withdraw(b)
    line.limiter.release()
    assert is_free(line.limiter)


def test_when_a_heavy_waiter_leaves_those_behind_it_go_on() -> None:
    line = Line(3)
    heavy = line.join("heavy", 3)
    line.join("a")
    line.join("b")
    line.join("c")
    line.limiter.release(2)
    assert line.woken == []
    assert line.limiter.withdraw(heavy)
    assert line.woken == ["a", "b"]


def test_a_waker_may_use_the_limiter() -> None:
    limiter = Limiter(1)
    limiter.try_acquire()
    woken: list[int] = []

    def wake(number: int) -> Callable[[], None]:
        def woke() -> None:
            woken.append(number)
            limiter.release()

        return woke

    for number in range(100):
        limiter.enqueue(wake(number))
    limiter.release()
    assert woken == list(range(100))
    assert is_free(limiter)


class Model:
    """What a limiter does, in as few words as possible."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[int] = []
        self.line: list[tuple[bool, int, int]] = []
        self.woken: list[int] = []

    def try_acquire(self, count: int) -> bool:
        """Take it if nobody waits and it is there."""
        if self.line or sum(self.held) + count > self.capacity:
            return False
        self.held.append(count)
        return True

    def join(self, number: int, count: int, *, first: bool) -> None:
        """Stand in line."""
        self.line.append((not first, number, count))
        self.line.sort()

    def leave(self, number: int) -> None:
        """Leave the line."""
        self.line = [each for each in self.line if each[1] != number]

    def settle(self) -> None:
        """Let go on who can."""
        while self.line and sum(self.held) + self.line[0][2] <= self.capacity:
            _, number, count = self.line.pop(0)
            self.held.append(count)
            self.woken.append(number)


@given(
    st.integers(1, 5).flatmap(
        lambda capacity: st.tuples(
            st.just(capacity),
            st.lists(
                st.one_of(
                    st.tuples(st.just("try"), st.integers(1, capacity)),
                    st.tuples(st.just("join"), st.integers(1, capacity)),
                    st.tuples(st.just("first"), st.integers(1, capacity)),
                    st.tuples(st.just("leave"), st.integers(0, 20)),
                    st.tuples(st.just("free"), st.integers(0, 20)),
                ),
                max_size=60,
            ),
        )
    )
)
def test_any_sequence_does_what_a_plain_model_does(script: tuple[int, list[tuple[str, int]]]) -> None:
    capacity, steps = script
    limiter, model = Limiter(capacity), Model(capacity)
    waiters: dict[int, Waiter] = {}
    woken: list[int] = []
    for number, (what, value) in enumerate(steps):
        if what == "try":
            assert limiter.try_acquire(value) is model.try_acquire(value)
        elif what in ("join", "first"):
            model.join(number, value, first=what == "first")
            waiters[number] = limiter.enqueue(partial(woken.append, number), value, first=what == "first")
        elif what == "leave" and waiters:
            chosen = sorted(waiters)[value % len(waiters)]
            assert limiter.withdraw(waiters[chosen]) is (chosen not in model.woken)
            model.leave(chosen)
        elif what == "free" and model.held:
            limiter.release(model.held.pop(value % len(model.held)))
        model.settle()
        assert woken == model.woken
        assert (limiter.in_use, limiter.waiting) == (sum(model.held), len(model.line))


# --- tasks ---------------------------------------------------------------------------------


async def test_a_thousand_tasks_at_a_limit_of_two() -> None:
    limiter, host = Limiter(2), host_here(CLOCK)
    came: list[int] = []
    began: list[int] = []
    running = idle = 0

    async def one(number: int) -> None:
        nonlocal running, idle
        came.append(number)
        await limiter.acquire(host)
        began.append(number)
        running += 1
        assert running <= 2
        await anyio.sleep(0)
        running -= 1
        limiter.release()
        # It cannot take less time than this: while anybody waits, both slots are somebody's.
        idle += limiter.waiting > 0 and limiter.in_use < 2

    assert limiter.try_acquire(2)
    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(one, number)
        await anyio.wait_all_tasks_blocked()
        assert limiter.waiting == 1000
        limiter.release(2)
    assert idle == 0
    assert len(began) == 1000
    # Granted in order. Which one of two that have the slots at once runs first is the loop's affair: trio throws dice.
    places = {number: place for place, number in enumerate(came)}
    assert all(abs(places[number] - place) <= 1 for place, number in enumerate(began))
    assert is_free(limiter)


async def test_a_wait_that_is_cancelled_leaves_nothing() -> None:
    limiter, host = Limiter(1), host_here(CLOCK)
    limiter.try_acquire()
    with anyio.move_on_after(0.01) as scope:
        await limiter.acquire(host)
    assert scope.cancelled_caught
    assert limiter.waiting == 0
    limiter.release()
    assert is_free(limiter)


async def test_a_cancellation_that_comes_with_the_grant_gives_it_on() -> None:
    limiter, host = Limiter(1), host_here(CLOCK)
    limiter.try_acquire()
    got: list[str] = []
    scope = anyio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await limiter.acquire(host)
            got.append("cancelled")
            limiter.release()

    async def next_one() -> None:
        await limiter.acquire(host)
        got.append("next")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(cancelled)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(next_one)
            await anyio.wait_all_tasks_blocked()
            limiter.release()
            scope.cancel()  # in the same step of the loop; whichever the backend lets win, the slot is not lost
    assert got in (["next"], ["cancelled", "next"])
    limiter.release()
    assert is_free(limiter)


async def test_a_wait_with_a_time_limit() -> None:
    limiter, host = Limiter(1), host_here(CLOCK)
    assert await limiter.acquire(host, within=0)
    assert not await limiter.acquire(host, within=0)
    assert not await limiter.acquire(host, within=0.01)
    assert limiter.waiting == 0
    threading.Timer(0.01, limiter.release).start()
    assert await limiter.acquire(host, within=LONG)
    limiter.release()
    assert is_free(limiter)


def test_a_wait_with_a_time_limit_on_a_thread() -> None:
    limiter, host = Limiter(1), InlineHost(CLOCK)
    assert drive(limiter.acquire(host, within=0))
    assert not drive(limiter.acquire(host, within=0))
    assert not drive(limiter.acquire(host, within=0.01))
    assert limiter.waiting == 0
    threading.Timer(0.01, limiter.release).start()
    assert drive(limiter.acquire(host, within=LONG))
    limiter.release()
    assert is_free(limiter)


@asyncio_only  # trio does not let go of a task that a coroutine was driven in by hand
async def test_a_closed_coroutine_leaves_nothing() -> None:
    limiter, host = Limiter(1), host_here(CLOCK)
    limiter.try_acquire()
    for granted in (False, True):
        waiting = limiter.acquire(host)
        waiting.send(None)
        assert limiter.waiting == 1
        if granted:
            limiter.release()
            assert limiter.in_use == 1
        waiting.close()
        assert limiter.waiting == 0
    assert is_free(limiter)


def test_a_waiter_of_a_loop_that_was_dropped_gives_its_slot_on() -> None:
    limiter = Limiter(1)
    limiter.try_acquire()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but it is pending!": so it was

    async def wait() -> None:
        await limiter.acquire(host_here(CLOCK))

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert limiter.waiting == 1
    loop.close()
    del task
    line: list[str] = []
    limiter.enqueue(lambda: line.append("next"))
    limiter.release()
    gc.collect()
    assert line == ["next"]
    limiter.release()
    assert is_free(limiter)


def test_a_ctrl_c_ends_the_wait_of_a_thread() -> None:
    limiter, host = Limiter(1), InlineHost(CLOCK)
    limiter.try_acquire()
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        drive(limiter.acquire(host))
    assert limiter.waiting == 0
    limiter.release()
    assert is_free(limiter)


def take(limiter: Limiter) -> int:
    return int(limiter.try_acquire())


def acquire(limiter: Limiter) -> int:
    return int(drive(limiter.acquire(InlineHost(CLOCK))))


def acquire_first(limiter: Limiter) -> int:
    return int(drive(limiter.acquire(InlineHost(CLOCK), first=True)))


def wait_and_acquire(limiter: Limiter) -> int:
    timer = threading.Timer(0.002, limiter.release, (2,))
    timer.start()
    try:
        return acquire(limiter)
    finally:
        timer.join()


def wait_in_vain(limiter: Limiter) -> int:
    return int(drive(limiter.acquire(InlineHost(CLOCK), within=0)))


def interrupted(operation: Callable[[], int], at: int, interrupt: Callable[[], None]) -> tuple[int, bool]:
    """Call `interrupt` at the `at`-th moment of `operation` in which CPython may run a signal handler.

    Those are the beginning of a function and the end of a call. Gives what the operation gave, and
    whether it came that far.
    """
    moments = 0

    def look(frame: Any, event: str, argument: object) -> None:
        nonlocal moments
        if event in ("call", "c_return") and frame.f_code.co_filename == Limiter.release.__code__.co_filename:
            moments += 1
            if moments == at:
                sys.setprofile(None)
                interrupt()

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        return operation(), moments >= at
    except KeyboardInterrupt:
        return 0, True
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [(take, 0, 0), (acquire, 0, 0), (acquire_first, 0, 0), (wait_and_acquire, 2, 0), (wait_in_vain, 2, 2)],
)
def test_after_a_ctrl_c_at_any_moment_it_holds_or_it_does_not(
    operation: Callable[[Limiter], int], before: int, after: int
) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    at, reached = 0, True
    while reached:
        at += 1
        limiter = Limiter(2)
        assert not before or limiter.try_acquire(before)
        held, reached = interrupted(partial(operation, limiter), at, ctrl_c)
        assert (limiter.in_use, limiter.waiting) == (after + held, 0), f"at moment {at}"
    assert at > 2
    assert held == (0 if operation is wait_in_vain else 1)


def test_a_signal_handler_or_finalizer_at_any_moment_may_use_the_same_limiter() -> None:
    def churn(limiter: Limiter) -> int:
        limiter.try_acquire(2)
        woken: list[str] = []
        heavy = limiter.enqueue(partial(woken.append, "heavy"), 2)
        light = limiter.enqueue(partial(woken.append, "light"))
        if not limiter.withdraw(heavy):
            limiter.release(2)
        limiter.release(2)
        if not limiter.withdraw(light):
            limiter.release()
        return limiter.try_acquire() and len(woken)

    def handler(limiter: Limiter) -> None:
        waiter = limiter.enqueue(lambda: None)
        if not limiter.withdraw(waiter):
            limiter.release()
        if limiter.try_acquire():
            limiter.release()

    at, reached = 0, True
    while reached:
        at += 1
        limiter = Limiter(2)
        woken, reached = interrupted(partial(churn, limiter), at, partial(handler, limiter))
        assert (limiter.in_use, limiter.waiting, woken) == (1, 0, 1), f"at moment {at}"
    assert at > 10


@asyncio_only
async def test_native_cancels_and_wait_for_leave_nothing() -> None:
    limiter, host = Limiter(1), host_here(CLOCK)
    limiter.try_acquire()
    tasks = [asyncio.ensure_future(limiter.acquire(host)) for _ in range(1000)]
    await asyncio.sleep(0)
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert limiter.waiting == 0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(limiter.acquire(host), 0.01)
    # The grant and the cancel in one step, in both orders.
    for cancel_first in (False, True):
        task = asyncio.ensure_future(limiter.acquire(host))
        await asyncio.sleep(0)
        if cancel_first:
            task.cancel()
        limiter.release()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert limiter.try_acquire()
    limiter.release()
    assert is_free(limiter)


Body = Callable[[], Coroutine[Any, Any, None]]


async def as_it_is(chance: random.Random, body: Body) -> None:
    await body()


async def in_a_scope(chance: random.Random, body: Body) -> None:
    with anyio.move_on_after(chance.choice([0, 0.0005, 0.002, LONG])):
        await body()


async def natively(chance: random.Random, body: Body) -> None:
    task = asyncio.ensure_future(body())
    for _ in range(chance.randrange(20)):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def waited_for(chance: random.Random, body: Body) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(body(), chance.choice([0, 0.0005, 0.002, LONG]))


@pytest.mark.parametrize("seed", range(20))
async def test_waiters_killed_at_random(seed: int) -> None:
    chance = random.Random(seed)
    limiter, host = Limiter(3), host_here(CLOCK)
    running = 0
    done = 0

    async def work(count: int, first: bool, within: float | None, steps: int) -> None:
        nonlocal running, done
        if not await limiter.acquire(host, count, first=first, within=within):
            return
        try:
            running += count
            assert running <= 3
            for _ in range(steps):
                await anyio.sleep(0)
        finally:
            running -= count
            limiter.release(count)
        done += 1

    ways = [as_it_is, in_a_scope, *([natively, waited_for] if asyncio._get_running_loop() is not None else [])]
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as group:
            for _ in range(200):
                within = chance.choice([None, None, 0, 0.001])
                body = partial(work, chance.randint(1, 3), chance.random() < 0.2, within, chance.randrange(4))
                group.start_soon(chance.choice(ways), chance, body)
                if chance.random() < 0.1:
                    await anyio.sleep(0)
    assert done
    assert is_free(limiter)


# --- threads and several loops -------------------------------------------------------------


class Gauge:
    """How many are inside at once, counted by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0
        self.total = 0

    def enter(self, count: int) -> None:
        """Come in."""
        with self._lock:
            self.inside += count
            self.total += 1
            self.most = max(self.most, self.inside)

    def leave(self, count: int) -> None:
        """Go out."""
        with self._lock:
            self.inside -= count


def use_from_loop(run: Callable[..., Any], limiter: Limiter, gauge: Gauge, rounds: int) -> Callable[[], None]:
    async def one(number: int) -> None:
        host = host_here(CLOCK)
        for turn in range(rounds):
            count = 1 + (number + turn) % limiter.capacity
            await limiter.acquire(host, count)
            gauge.enter(count)
            await anyio.sleep(0)
            gauge.leave(count)
            limiter.release(count)

    async def main() -> None:
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(one, number)

    return lambda: run(main)


def use_from_thread(limiter: Limiter, gauge: Gauge, rounds: int) -> Callable[[], None]:
    def main() -> None:
        host = InlineHost(CLOCK)
        for turn in range(rounds):
            count = 1 + turn % limiter.capacity
            drive(limiter.acquire(host, count))
            gauge.enter(count)
            gauge.leave(count)
            limiter.release(count)

    return main


def test_loops_and_threads_share_a_limit() -> None:
    limiter, gauge = Limiter(3), Gauge()
    in_threads(
        use_from_loop(lambda main: asyncio.run(main()), limiter, gauge, 30),
        use_from_loop(lambda main: asyncio.run(main()), limiter, gauge, 30),
        use_from_loop(trio.run, limiter, gauge, 30),
        *(use_from_thread(limiter, gauge, 300) for _ in range(3)),
    )
    assert gauge.total == 3 * 10 * 30 + 3 * 300
    assert gauge.inside == 0
    assert gauge.most == 3
    assert is_free(limiter)


async def test_a_thread_and_this_loop_share_a_limit() -> None:
    limiter, gauge, host = Limiter(1), Gauge(), host_here(CLOCK)
    thread = threading.Thread(target=use_from_thread(limiter, gauge, 300), daemon=True)
    thread.start()
    for _ in range(300):
        await limiter.acquire(host)
        gauge.enter(1)
        await anyio.sleep(0)
        gauge.leave(1)
        limiter.release()
    await anyio.to_thread.run_sync(thread.join, LONG)
    assert gauge.total == 600
    assert gauge.most == 1
    assert is_free(limiter)


# --- the rule of a rate --------------------------------------------------------------------

ALMOST_A_SECOND = 1 - 1e-9

rates = st.one_of(st.integers(1, 12), st.sampled_from([0.1, 0.5, 0.999, 1.5, 2.5, 7.3]))


def grant_times(window: SlidingWindow, arrivals: list[tuple[float, int]], start: float) -> list[tuple[float, int]]:
    """When each of these, who come one after another, gets its permits: as the head of a queue waits for them."""
    now, grants = start, []
    for pause, count in arrivals:
        now += pause
        for _ in range(10):
            wait = window.take(now, count)
            if wait == 0:
                break
            assert wait > 0
            now += wait
        else:
            raise AssertionError("it has to wait again and again")
        grants.append((now, count))
    return grants


def most_in_a_second(grants: list[tuple[float, int]]) -> int:
    return max(sum(count for at, count in grants if begin <= at < begin + ALMOST_A_SECOND) for begin, _ in grants)


@given(st.data(), rates, st.sampled_from([0.0, 1e5, 1.7e9]))
def test_no_second_sees_more_than_the_rate(data: st.DataObject, rate: float, start: float) -> None:
    most = math.ceil(rate)
    arrivals = data.draw(
        st.lists(
            st.tuples(st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.1, 0.25, 0.9, 1.0, 3.0]), st.integers(1, most)),
            min_size=1,
            max_size=60,
        )
    )
    grants = grant_times(SlidingWindow(rate), arrivals, start)
    # The clock of a machine that has been up for long tells 1e-7 seconds apart; so does this.
    exact = [(round(at - start, 6), count) for at, count in grants]
    assert most_in_a_second(exact) <= most


@given(st.data(), rates)
def test_permits_are_given_as_early_as_the_rule_allows(data: st.DataObject, rate: float) -> None:
    most = math.ceil(rate)
    span = most / rate
    arrivals = data.draw(st.lists(st.tuples(st.floats(0, 3), st.integers(1, most)), min_size=1, max_size=40))
    grants = grant_times(SlidingWindow(rate), arrivals, 0.0)
    came = 0.0
    for place, ((pause, count), (at, _)) in enumerate(zip(arrivals, grants, strict=True)):
        came = (grants[place - 1][0] if place else 0.0) + pause
        earlier = grants[:place]

        def fits(moment: float, earlier: list[tuple[float, int]] = earlier, count: int = count) -> bool:
            return sum(each for then, each in earlier if then + span > moment) + count <= most

        assert fits(at)
        possible = [came, *(then + span for then, _ in earlier if then + span > came)]
        assert at == pytest.approx(min(moment for moment in possible if fits(moment)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 1, 2.5, 7.3, 100, 1000.5])
def test_under_load_the_rate_is_reached(rate: float) -> None:
    total = math.ceil(rate) * 50
    grants = grant_times(SlidingWindow(rate), [(0.0, 1)] * total, 0.0)
    assert (total - math.ceil(rate)) / grants[-1][0] == pytest.approx(rate)


def test_a_window_that_takes_over_from_another_counts_its_grants() -> None:
    before = SlidingWindow(10)
    assert [before.take(0.0) for _ in range(10)] == [0.0] * 10
    after = SlidingWindow(20, before)
    assert [after.take(0.5) for _ in range(10)] == [0.0] * 10
    assert after.take(0.5) == pytest.approx(0.5)
    slow = SlidingWindow(2, after)
    assert slow.take(0.5) > 0
    assert not slow.is_empty(0.5)
    assert slow.is_empty(1.5)


def test_more_than_a_window_holds_is_an_error() -> None:
    with pytest.raises(OptionError, match="1 to 3"):
        SlidingWindow(2.5).take(0.0, 4)


# --- the queue before it -------------------------------------------------------------------


async def test_a_rate_on_a_real_loop() -> None:
    limiter, host = RateLimiter(50, CLOCK.monotonic), host_here(CLOCK)
    began: list[tuple[float, int]] = []
    order: list[int] = []

    async def one(number: int) -> None:
        order.append(number)
        await limiter.acquire(host)
        began.append((CLOCK.monotonic(), number))

    async with anyio.create_task_group() as group:
        for number in range(70):
            group.start_soon(one, number)
    assert [number for _, number in sorted(began)] == order
    # What is measured is a moment after the permit was given: a machine that is busy may compress it.
    assert began[50][0] - began[0][0] > 0.9
    assert limiter.waiting == 0


async def test_a_wait_for_a_permit_that_is_cancelled_lets_the_next_one_wait() -> None:
    limiter, host = RateLimiter(1, CLOCK.monotonic), host_here(CLOCK)
    assert await limiter.acquire(host)
    with anyio.move_on_after(0.02) as scope:
        await limiter.acquire(host)
    assert scope.cancelled_caught
    assert limiter.waiting == 0
    assert not await limiter.acquire(host, within=0.01)
    with anyio.move_on_after(0.02):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(limiter.acquire, host)
            await anyio.wait_all_tasks_blocked()
            assert limiter.waiting == 10
            assert not await limiter.acquire(host, within=0)
    assert limiter.waiting == 0
    assert not limiter.is_spent(), "the permit that was granted counts for a second"


async def test_the_head_gives_up_at_once_when_its_permit_would_come_too_late() -> None:
    times = itertools.count(100.0, 0.001)
    limiter, host = RateLimiter(0.001, lambda: next(times)), host_here(CLOCK)
    assert await limiter.acquire(host, within=0)
    with anyio.fail_after(5):
        assert not await limiter.acquire(host, within=900.0)
