"""The fifteen invariants of the engine, each by tests named after it, on every loop and inline.

An invariant is what holds whatever a flow does. Other files test the features one by one; here is
one place to look when a change to the engine is to be judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from asyncflow import (
    Runtime,
    StateType,
    as_completed,
    cancel_flow_run,
    checkpoint,
    concurrency,
    detached,
    flow,
    rate_limit,
    runtime,
    task,
    wait,
)
from asyncflow._backend.inline import drive
from asyncflow._cancellation import cancel
from asyncflow._causes import Cause
from asyncflow._rows import FIRST_FINAL, FLOW, STAND_IN, STATE_TYPES, TASK, RunRow
from asyncflow._run import Run
from asyncflow.abc import Recordable, RunQuery
from asyncflow.clock import SystemClock
from asyncflow.context import current_run
from asyncflow.exceptions import CrashedRunError, RunCancelledError, RunEndedError
from asyncflow.stores.memory import MemoryStore
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import BACKENDS, Backend
from tests.sync_flows import everywhere, in_sync_flow

asyncio_only = pytest.mark.parametrize("anyio_backend", [each for each in BACKENDS if each.id != "trio"], indirect=True)

LONG = 30.0
"""Seconds that nothing here waits for: what waits so long is there to be cancelled."""


class OrderedStore(MemoryStore):
    """Remembers in which order runs were recorded as ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[RunRow, ...]] = []

    def put(self, item: Recordable) -> None:
        super().put(item)
        rows = tuple(item.rows())
        if rows[0].state >= FIRST_FINAL:
            self.ended.append(rows)

    def all(self) -> list[RunRow]:
        return self.read_runs(RunQuery(kinds=frozenset({FLOW, TASK, STAND_IN}), limit=10_000))

    def state_of(self, run_id: UUID) -> StateType:
        row = self.read_run(run_id.bytes)
        assert row is not None
        return STATE_TYPES[row.state]

    def by_function(self) -> dict[str, StateType]:
        return {row.function: STATE_TYPES[row.state] for row in self.all() if row.kind != STAND_IN}


@pytest.fixture
def store() -> Iterator[OrderedStore]:
    """Runs of this test are recorded there: nothing waits for a disk."""
    store = OrderedStore()
    with Runtime(store=store, grace_seconds=5):
        yield store


def own_id() -> UUID:
    found = runtime.task_run.id or runtime.flow_run.id
    assert found is not None
    return found


def on_trio() -> bool:
    return trio.lowlevel.in_trio_task()


def at_the_next_turn(fn: Callable[[], object]) -> None:
    """Call `fn` as soon as the running task gives way to the loop."""
    if on_trio():

        async def call() -> None:
            fn()

        trio.lowlevel.spawn_system_task(call)
    else:
        asyncio.get_running_loop().call_soon(fn)


async def together(*calls: Callable[[], Awaitable[Any]]) -> None:
    """Run them at once: in a `gather` where there is one, else in a nursery."""
    if on_trio():
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(call)
    else:
        await asyncio.gather(*(call() for call in calls))


async def clean_up(seconds: float) -> None:
    """Wait in a `finally`. trio asks for a shield; on asyncio nothing is needed."""
    if on_trio():
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not is_so():
            await anyio.sleep(0.001)


async def apart(fn: Callable[[], Any]) -> Any:
    """What `fn` gives in a thread that knows nothing of any run."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(fn()))
    thread.start()
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(thread.join, LONG)
    return outcome[0]


@task
async def quick(number: int = 0) -> int:
    await anyio.lowlevel.checkpoint()
    return number


@task
def in_thread(number: int = 0) -> int:
    return number


@task
async def asleep() -> None:
    await anyio.sleep(LONG)


# --- 1 ----------------------------------------------------------------------------------------


@dataclass
class Looked:
    """What the store says of a run in the turn of the loop after its body's end."""

    store: OrderedStore
    states: list[StateType] = field(default_factory=list[StateType])
    begun: bool = False

    def after(self) -> None:
        run_id = own_id()
        at_the_next_turn(lambda: self.states.append(self.store.state_of(run_id)))


async def ends(how: str, looked: Looked) -> None:
    looked.begun = True
    try:
        if how == "returns":
            await anyio.lowlevel.checkpoint()
        elif how == "raises":
            await anyio.lowlevel.checkpoint()
            raise LookupError
        elif how != "returns at once":
            await anyio.sleep(LONG)
    finally:
        looked.after()


ENDINGS = {
    "returns at once": StateType.COMPLETED,
    "returns": StateType.COMPLETED,
    "raises": StateType.FAILED,
    "times out": StateType.FAILED,
    "is cancelled": StateType.CANCELLED,
    "is cancelled by its caller": StateType.CANCELLED,
}


@pytest.mark.parametrize("place", ["flow", "task", "nested", "submitted", "submitted flow"])
@pytest.mark.parametrize("how", ENDINGS)
async def test_invariant_01_no_await_between_the_end_of_a_body_and_its_record(
    store: OrderedStore, how: str, place: str
) -> None:
    """No await between the end of a body and its record."""
    looked = Looked(store)
    declare: Any = flow if "flow" in place or place == "nested" else task
    body: Any = declare(ends, persist_result=True).with_options(timeout_seconds=0.01 if how == "times out" else None)

    async def call() -> None:
        if place in ("flow", "task"):
            await body(how, looked)
        elif place == "nested":
            await around(body)
        else:
            await around(body.submit)

    @flow(persist_result=False)
    async def around(call: Callable[..., Awaitable[Any]]) -> None:
        await call(how, looked)

    async def once_begun(fn: Callable[[], object]) -> None:
        await until(lambda: looked.begun)
        fn()

    def cancelled_from_outside() -> None:
        assert cancel(outermost_of(store), Cause("by the test"))

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope, contextlib.suppress(Exception):
            if how == "is cancelled":
                group.start_soon(once_begun, cancelled_from_outside)
            elif how == "is cancelled by its caller":
                group.start_soon(once_begun, scope.cancel)
            await call()
    await until(lambda: looked.states)
    assert looked.states == [ENDINGS[how]]


def services_of(store: MemoryStore) -> Any:
    from asyncflow.runtime import HOME

    services = HOME.in_force()
    assert services is not None
    assert services.store is store
    return services


def outermost_of(store: MemoryStore) -> Run:
    (run,) = services_of(store).outermost
    found: Run = run
    return found


def test_invariant_01_inline_the_record_is_there_when_the_call_returns(store: OrderedStore) -> None:
    """No await between the end of a body and its record: nor does an inline call return before it."""
    ids: list[UUID] = []

    @task
    def child(fails: bool) -> None:
        ids.append(own_id())
        if fails:
            raise LookupError

    @flow
    def main() -> None:
        child(False)
        assert store.state_of(ids[-1]) is StateType.COMPLETED
        with pytest.raises(LookupError):
            child(True)
        assert store.state_of(ids[-1]) is StateType.FAILED

    main()


# --- 2 ----------------------------------------------------------------------------------------


class Deaf:
    """A body that swallows every cancellation, and notes when it came."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started: list[float] = []
        self.cancelled: list[float] = []
        self.ended = anyio.Event()

    async def body(self) -> str:
        now = time.monotonic()
        self.started.append(now)
        end = now + self.seconds
        while (left := end - time.monotonic()) > 0:
            try:
                # trio's cancellation is a level: what is in no shield is told again at each await, by trio itself.
                with anyio.CancelScope(shield=on_trio() and bool(self.cancelled)):
                    await anyio.sleep(left)
            except anyio.get_cancelled_exc_class():
                self.cancelled.append(time.monotonic())
        self.ended.set()
        return "went on"


PLACES = pytest.mark.parametrize("place", ["submitted task", "submitted flow", "outermost"])


@PLACES
async def test_invariant_02_one_delivery_while_it_is_pending(place: str) -> None:
    """At most one delivery per attempt while it is pending, again with back-off until grace."""
    await delivered_once(place, times=1)


@PLACES
async def test_invariant_02_cancelling_again_delivers_nothing_more(place: str) -> None:
    """At most one delivery per attempt while it is pending, again with back-off until grace."""
    await delivered_once(place, times=20)


async def delivered_once(place: str, *, times: int) -> None:
    store, grace, deaf = OrderedStore(), 0.4, Deaf(0.7)
    body = (task if "task" in place else flow)(deaf.body, name="deaf")

    async def cancel_often(run: Run) -> float:
        began = time.monotonic()
        for number in range(times):
            assert cancel(run, Cause(f"by the test, {number}"))
            await anyio.sleep(0.002)
        return began

    @flow
    async def around() -> float:
        future = body.submit()
        await until(lambda: deaf.started)
        began = await cancel_often(future.run)
        await future.wait_async()
        assert "ignored cancellation" in (future.state.message or "")
        return began

    async def by_itself() -> float:
        found: list[float] = []

        async def cancel_it() -> None:
            await until(lambda: deaf.started)
            found.append(await cancel_often(outermost_of(store)))

        async with anyio.create_task_group() as group:
            group.start_soon(cancel_it)
            with pytest.raises(CrashedRunError, match="ignored cancellation"):
                await body()
        return found[0]

    with Runtime(store=store, grace_seconds=grace):
        began = await (by_itself if place == "outermost" else around)()
        await deaf.ended.wait()
        await anyio.lowlevel.checkpoint()
        assert "by the test, 0" in (store.all()[0].message or "")
    first, *later = [each - began for each in deaf.cancelled]
    assert first < 0.2
    assert all(0.8 * grace < each < 1.5 * grace for each in later)
    assert len(later) == (0 if on_trio() else 1)


async def test_invariant_02_each_attempt_has_one_of_its_own(store: OrderedStore) -> None:
    """At most one delivery per attempt while it is pending, again with back-off until grace."""
    cancelled: list[int] = []

    @task(timeout_seconds=0.02, retries=2, retry_delay_seconds=0)
    async def body() -> None:
        attempt = runtime.task_run.run_count
        try:
            await anyio.sleep(LONG)
        finally:
            cancelled.append(attempt)
            try:
                await clean_up(0.06)
            except BaseException:
                cancelled.append(attempt)
                raise

    with pytest.raises(TimeoutError):
        await body()
    assert cancelled == [1, 2, 3]


async def test_invariant_02_many_below_a_cancelled_flow_have_one_each(store: OrderedStore) -> None:
    """At most one delivery per attempt while it is pending, again with back-off until grace."""
    cancelled: dict[UUID, int] = {}

    @task
    async def body() -> None:
        me = own_id()
        cancelled[me] = 0
        try:
            await anyio.sleep(LONG)
        except anyio.get_cancelled_exc_class():
            cancelled[me] += 1
            try:
                await clean_up(0.05)
            except anyio.get_cancelled_exc_class():
                cancelled[me] += 1
            raise

    @flow
    async def inner() -> None:
        futures = [body.submit() for _ in range(3)]
        await together(body, body, *(partial(_await, future) for future in futures))

    @flow
    async def main() -> None:
        future = inner.submit()
        await together(body, inner, partial(_await, future))

    async with anyio.create_task_group() as group:

        async def cancel_it() -> None:
            await until(lambda: len(cancelled) == 11)
            await cancel_flow_run(UUID(bytes=outermost_of(store).id))

        group.start_soon(cancel_it)
        with pytest.raises(RunCancelledError):
            await main()
    assert set(cancelled.values()) == {1}
    assert {STATE_TYPES[row.state] for row in store.all()} == {StateType.CANCELLED}


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def test_invariant_02_it_is_held_back_while_the_body_is_in_an_anyio_shield(store: OrderedStore) -> None:
    """At most one delivery per attempt while it is pending: it pends as long as the shield lasts."""
    seen: list[str] = []
    shielded = anyio.Event()

    @task
    async def body() -> None:
        with anyio.CancelScope(shield=True):
            shielded.set()
            await anyio.sleep(0.05)
            seen.append("all of the shielded part")
        try:
            await anyio.sleep(LONG)
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            raise

    @flow
    async def main() -> None:
        future = body.submit()
        await shielded.wait()
        assert future.cancel()
        with pytest.raises(RunCancelledError):
            await future

    await main()
    assert seen == ["all of the shielded part", "cancelled"]


# --- 3 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("declare", [task, flow])
async def test_invariant_03_a_cancel_after_the_exit_does_nothing(store: OrderedStore, declare: Any) -> None:
    """Cancel after exit does nothing."""
    answers: list[bool] = []

    async def ends_now() -> str:
        run = current_run.get()
        assert run is not None
        await anyio.lowlevel.checkpoint()
        at_the_next_turn(lambda: answers.append(cancel(run, Cause("too late"))))
        return "done"

    body = declare(ends_now)

    @flow
    async def main() -> None:
        assert await body() == "done"
        future = body.submit()
        assert await future == "done"
        before = future.state
        assert not future.cancel()
        assert future.state == before
        await anyio.sleep(0.005)

    assert await body() == "done"
    await anyio.sleep(0.005)
    await main()
    await until(lambda: len(answers) == 3)
    assert answers == [False] * 3
    assert {STATE_TYPES[row.state] for row in store.all()} == {StateType.COMPLETED}


async def test_invariant_03_a_held_back_delivery_does_not_come_after_the_exit(store: OrderedStore) -> None:
    """Cancel after exit does nothing: nor does one that was held back until then."""
    shielded = anyio.Event()

    async def shields() -> str:
        with anyio.CancelScope(shield=True):
            shielded.set()
            await anyio.sleep(0.03)
        return "done"

    async def cancel_it(of: Callable[[], Run]) -> None:
        await shielded.wait()
        assert cancel(of(), Cause("by the test"))

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it, lambda: outermost_of(store))
        assert await flow(shields)() == "done"
        await anyio.sleep(0.1)
    shielded = anyio.Event()

    @flow
    async def main() -> None:
        @task
        async def child() -> str:
            return await shields()

        answer = await child()
        assert answer == "done"
        await anyio.sleep(0.1)

    async with anyio.create_task_group() as group:
        group.start_soon(cancel_it, lambda: next(iter(outermost_of(store).children or ())))
        await main()
    assert {STATE_TYPES[row.state] for row in store.all()} == {StateType.COMPLETED}


async def test_invariant_03_of_two_racers_one_wins_and_nobody_is_hit_afterwards(store: OrderedStore) -> None:
    """Cancel after exit does nothing, however close: the record, the caller and the answer of `cancel` agree."""

    @task
    async def short() -> str:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        return "done"

    @flow
    async def main(number: int) -> str:
        future = short.submit()
        thread = threading.Thread(target=future.cancel)
        for _ in range(number % 5):
            await anyio.lowlevel.checkpoint()
        thread.start()
        outcome = await apart(lambda: future.result(LONG, raise_on_failure=False))
        await apart(thread.join)
        await anyio.lowlevel.checkpoint()
        assert future.state.is_cancelled() == isinstance(outcome, RunCancelledError)
        assert future.state.is_completed() == (outcome == "done")
        return "went on"

    for number in range(40):
        assert await main(number) == "went on"


def test_invariant_03_inline(store: OrderedStore) -> None:
    """Cancel after exit does nothing, on a thread without a loop."""
    ended: list[Run] = []

    @flow
    def main() -> None:
        run = current_run.get()
        assert run is not None
        ended.append(run)

    @flow
    def next_one() -> str:
        assert not cancel(ended[0], Cause("too late"))
        checkpoint()
        return "done"

    main()
    assert not cancel(ended[0], Cause("too late"))
    assert next_one() == "done"
    checkpoint()
    assert set(store.by_function().values()) == {StateType.COMPLETED}


# --- 4 ----------------------------------------------------------------------------------------


@dataclass
class Saw:
    """What the caller of a function saw."""

    raised: type[BaseException] | None = None
    value: Any = None
    cancelling: int | None = None
    stray: bool = False


async def caller(call: Callable[[], Awaitable[Any]], saw: Saw) -> None:
    try:
        saw.value = await call()
    except BaseException as error:  # what it is, is compared
        saw.raised = type(error)
    if not on_trio():
        asking = asyncio.current_task()
        assert asking is not None
        saw.cancelling = asking.cancelling()
    try:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(0.005)
    except anyio.get_cancelled_exc_class():
        saw.stray = True
        if on_trio():
            raise


async def cleans_up(begun: anyio.Event) -> None:
    begun.set()
    try:
        await anyio.sleep(LONG)
    finally:
        await clean_up(0.01)


async def answers(begun: anyio.Event) -> str:
    begun.set()
    try:
        await anyio.sleep(LONG)
    except anyio.get_cancelled_exc_class():
        return "an answer"
    return "never"


async def answers_with_an_error(begun: anyio.Event) -> None:
    begun.set()
    try:
        await anyio.sleep(LONG)
    except anyio.get_cancelled_exc_class():
        raise LookupError from None


async def gathers(begun: anyio.Event) -> None:
    await together(partial(cleans_up, begun), partial(cleans_up, begun))


async def has_timed_out_within(begun: anyio.Event) -> None:
    with anyio.move_on_after(0.002):
        await cleans_up(anyio.Event())
    await cleans_up(begun)


BODIES = [cleans_up, answers, answers_with_an_error, gathers, has_timed_out_within]


async def seen_after(function: Callable[[anyio.Event], Awaitable[Any]], way: str) -> Saw:
    saw, begun = Saw(), anyio.Event()
    call = partial(function, begun)
    if way == "scope":
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(then, begun, scope.cancel)
                await caller(call, saw)
        return saw
    running = asyncio.ensure_future(caller(call, saw))
    await begun.wait()
    await asyncio.sleep(0)
    running.cancel()
    if way == "native twice":
        await asyncio.sleep(0.003)
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return saw


async def then(event: anyio.Event, fn: Callable[[], object]) -> None:
    await event.wait()
    fn()


@pytest.mark.parametrize("declare", [task, flow])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("way", ["scope", "native", "native twice"])
async def test_invariant_04_the_caller_is_left_as_the_undecorated_function_leaves_it(
    store: OrderedStore, way: str, body: Any, declare: Any, anyio_backend_name: str
) -> None:
    """After a run the caller's next await raises nothing stray, `cancelling()` is what the undecorated leaves."""
    if anyio_backend_name == "trio" and way != "scope":
        pytest.skip("trio has scopes only")
    assert await seen_after(declare(body), way) == await seen_after(body, way)


@pytest.mark.parametrize("body", BODIES[:4])
@pytest.mark.parametrize("way", ["timeout", "cancel"])
async def test_invariant_04_nothing_is_left_of_our_own_cancelling(store: OrderedStore, way: str, body: Any) -> None:
    """After a run the caller's next await raises nothing stray, and nobody has asked its task to cancel."""
    declared = flow(body, timeout_seconds=0.02 if way == "timeout" else None)
    saw, begun = Saw(), anyio.Event()
    async with anyio.create_task_group() as group:
        if way == "cancel":
            group.start_soon(then, begun, lambda: cancel(outermost_of(store), Cause("by the test")))
        await caller(partial(declared, begun), saw)
    assert not saw.stray
    assert saw.cancelling in (None, 0)
    if body is answers:
        assert saw.value == "an answer"
    elif body is answers_with_an_error:
        assert saw.raised is LookupError
    else:
        assert saw.raised is (TimeoutError if way == "timeout" else RunCancelledError)


def test_invariant_04_inline(store: OrderedStore) -> None:
    """After a run nothing stray is raised at the caller's next checkpoint."""

    @flow(timeout_seconds=0.01)
    def too_long() -> None:
        time.sleep(0.02)
        checkpoint()

    @flow
    def cancels_itself() -> None:
        run = current_run.get()
        assert run is not None
        cancel(run, Cause("by itself"))
        checkpoint()

    @flow
    def around() -> str:
        with pytest.raises(TimeoutError):
            too_long()
        checkpoint()
        return "went on"

    with pytest.raises(TimeoutError):
        too_long()
    checkpoint()
    with pytest.raises(RunCancelledError):
        cancels_itself()
    checkpoint()
    assert around() == "went on"


# --- 5 ----------------------------------------------------------------------------------------


@task
async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await anyio.lowlevel.checkpoint()
        yield number


@task
async def cleaning() -> None:
    try:
        await anyio.sleep(LONG)
    finally:
        await clean_up(0.01)


@task
def until_stopped() -> None:
    while True:
        checkpoint()
        time.sleep(0.001)


@flow
async def a_bit_of_everything(ending: str, depth: int) -> Any:
    kept = [numbers(3)]
    assert await anext(kept[0]) == 0
    await together(quick, partial(in_thread.acall, 1))
    futures: list[Any] = [quick.submit(2), in_thread.submit(3)]
    if ending != "returns":
        futures += [cleaning.submit(), until_stopped.submit()]
    if depth:
        futures.append(a_bit_of_everything.submit(ending, depth - 1))
    if ending == "raises" and not depth:
        raise LookupError
    if ending == "is cancelled":
        await anyio.sleep(LONG)
    if ending == "raises" and depth:
        return await futures[-1]
    return None


@pytest.mark.parametrize("ending", ["returns", "raises", "is cancelled", "is cancelled by its caller"])
async def test_invariant_05_a_child_s_final_row_precedes_its_parent_s(store: OrderedStore, ending: str) -> None:
    """A child's final row precedes its parent's."""
    body = "is cancelled" if "cancelled" in ending else ending
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope, contextlib.suppress(LookupError, RunCancelledError):

            async def cancel_it() -> None:
                await until(lambda: len(store.all()) >= 22)
                if ending == "is cancelled":
                    await cancel_flow_run(UUID(bytes=outermost_of(store).id))
                else:
                    scope.cancel()

            if body == "is cancelled":
                group.start_soon(cancel_it)
            await a_bit_of_everything(body, 2)
    assert_children_first(store)
    assert len(store.ended) >= 15


def assert_children_first(store: OrderedStore) -> None:
    places = {row.id: place for place, rows in enumerate(store.ended) for row in rows}
    assert set(places) == {row.id for row in store.all()}
    assert len(store.ended) == len({rows[0].id for rows in store.ended})  # each once
    for row in store.all():
        if row.parent_id is not None:
            own_stand_in = places[row.parent_id] == places[row.id] and row.kind == FLOW
            assert places[row.id] < places[row.parent_id] or own_stand_in


@pytest.mark.parametrize("fails", [False, True])
def test_invariant_05_inline(store: OrderedStore, fails: bool) -> None:
    """A child's final row precedes its parent's."""

    @flow
    def inner() -> None:
        in_thread(1)
        cleaning.submit() if fails else quick.submit()
        in_thread.submit(2)
        if fails:
            raise LookupError

    @flow
    def main() -> None:
        future = inner.submit()
        inner()
        future.result()

    with pytest.raises(LookupError) if fails else contextlib.nullcontext():
        main()
    assert len(store.ended) >= 5
    assert_children_first(store)


# --- 6 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel_flow_run", "future.cancel", "timeout", "caller", "deadline of the caller"])
async def test_invariant_06_a_long_clean_up_in_a_gather_child_finishes_and_costs_nothing(
    store: OrderedStore, way: str
) -> None:
    """A long async clean-up in a gather child finishes whoever cancels, at < 5 % CPU (here 0.4 s instead of 5)."""
    began: list[tuple[float, float]] = []
    ended: list[tuple[float, float]] = []
    started: list[int] = []

    def now() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    @task
    async def child() -> None:
        started.append(1)
        try:
            await anyio.sleep(LONG)
        finally:
            began.append(now())
            await clean_up(0.4)
            ended.append(now())

    @flow(timeout_seconds=0.05 if way == "timeout" else None)
    async def fan_out() -> None:
        await together(*[child] * 10)

    @flow
    async def around() -> None:
        future = fan_out.submit()
        await until(lambda: len(started) == 10)
        future.cancel()
        await future

    async def cancel_it(scope: anyio.CancelScope) -> None:
        await until(lambda: len(started) == 10)
        if way == "cancel_flow_run":
            await cancel_flow_run(UUID(bytes=outermost_of(store).id))
        elif way == "deadline of the caller":
            scope.deadline = anyio.current_time()
        elif way == "caller":
            scope.cancel()

    async with anyio.create_task_group() as group:
        with contextlib.suppress(TimeoutError, RunCancelledError):
            if on_trio() or way not in ("caller", "deadline of the caller"):
                with anyio.CancelScope() as scope:
                    group.start_soon(cancel_it, scope)
                    await (around if way == "future.cancel" else fan_out)()
            else:
                await natively_cancelled(fan_out, way, lambda: len(started) == 10)
    assert len(began) == len(ended) == 10
    wall, cpu = (last - first for last, first in zip(min(ended), max(began), strict=True))
    assert wall > 0.3
    assert cpu < 0.05 * wall
    assert {STATE_TYPES[row.state] for row in store.all()} <= {StateType.CANCELLED, StateType.FAILED}


async def natively_cancelled(call: Callable[[], Awaitable[Any]], way: str, when: Callable[[], bool]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(None) as timeout:
            watching = asyncio.ensure_future(until(when))
            watching.add_done_callback(lambda _: timeout.reschedule(0))
            await call()

    running = asyncio.ensure_future(timed() if way == "deadline of the caller" else call())
    await until(when)
    if way == "caller":
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


# --- 7 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 6])
async def test_invariant_07_a_drain_holds_under_a_second_and_a_third_cancel(store: OrderedStore, depth: int) -> None:
    """Drain holds under a second and third cancel: what it waits for ends undisturbed."""
    cleaned: list[str] = []
    started = anyio.Event()

    @task
    async def child() -> None:
        started.set()
        try:
            await anyio.sleep(LONG)
        finally:
            cleaned.append("began")
            await clean_up(0.1)
            cleaned.append("ended")

    @flow
    async def nest(levels: int) -> None:
        if levels:
            await nest(levels - 1)
        else:
            child.submit()
            await anyio.sleep(LONG)

    await cancelled_often(partial(nest, depth), started)
    assert cleaned == ["began", "ended"]
    assert {STATE_TYPES[row.state] for row in store.all()} == {StateType.CANCELLED}
    assert_children_first(store)


async def cancelled_often(call: Callable[[], Awaitable[Any]], started: anyio.Event) -> float:
    """Cancel a call three times; gives the seconds from the first to its end."""
    ended: list[str] = []
    if on_trio():
        async with trio.open_nursery() as nursery:

            async def cancel_it() -> None:
                await started.wait()
                nursery.cancel_scope.cancel()
                for _ in range(2):
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.03)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_it)
            await call()
            ended.append("it was not cancelled")
        assert ended == []
        return 0.0
    running = asyncio.ensure_future(call())
    await started.wait()
    began = time.monotonic()
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0.03)
    with pytest.raises(asyncio.CancelledError):
        await running
    return time.monotonic() - began


@pytest.mark.parametrize("depth", [0, 6])
async def test_invariant_07_all_drains_together_take_one_grace_time_at_most(depth: int) -> None:
    """Total wait at most one grace time however deep."""
    deaf = [Deaf(1.5) for _ in range(depth + 1)]
    started = anyio.Event()

    @task
    async def child(number: int) -> None:
        if number == 0:
            started.set()
        await deaf[number].body()

    @flow
    async def nest(levels: int) -> None:
        child.submit(levels)
        if levels:
            await nest(levels - 1)
        await anyio.sleep(LONG)

    store = OrderedStore()
    with Runtime(store=store, grace_seconds=0.4):
        began = time.monotonic()
        await cancelled_often(partial(nest, depth), started)
        assert 0.35 < time.monotonic() - began < 0.9
        found = [STATE_TYPES[row.state] for row in store.all() if row.kind == TASK]
        assert found == [StateType.CRASHED] * (depth + 1)
        assert {STATE_TYPES[row.state] for row in store.all() if row.kind == FLOW} == {StateType.CANCELLED}
        assert_children_first(store)
        for each in deaf:
            await each.ended.wait()
        await anyio.sleep(0.01)


# --- 8 ----------------------------------------------------------------------------------------


class Attempts:
    """Calls made under a run that is closing or has ended, and what became of them."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Any] = {}

    async def from_a_task(self, when: str) -> None:
        calls: dict[str, Any] = {"call": quick, "nested": nested_quick, "acall": in_thread.acall}
        for name, call in calls.items():
            await self._note(f"{when}: {name}", call)
        submits: dict[str, Any] = {"submit": quick.submit, "submit flow": nested_quick.submit}
        for name, submit in submits.items():
            self.note(f"{when}: {name}", submit)
        await anyio.to_thread.run_sync(self.from_a_thread, f"{when}, in a thread")
        if sys.version_info >= (3, 12) and not on_trio():
            loop = asyncio.get_running_loop()
            await asyncio.Task(self._note(f"{when}: eager", quick), loop=loop, eager_start=True)
        with detached():
            assert await quick(5) == 5

    def from_a_thread(self, when: str) -> None:
        self.note(f"{when}: call", in_thread)
        self.note(f"{when}: submit", quick.submit)
        self.note(f"{when}: map", partial(quick.map, [1]))

    async def _note(self, name: str, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            self.outcomes[name] = await call()
        except RunEndedError:
            self.outcomes[name] = "refused"

    def note(self, name: str, call: Callable[[], Any]) -> None:
        try:
            self.outcomes[name] = call()
        except RunEndedError:
            self.outcomes[name] = "refused"


@flow
async def nested_quick() -> int:
    return await quick(1)


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_invariant_08_starts_during_or_after_closing_are_refused(store: OrderedStore, ending: str) -> None:
    """Starts during or after closing are refused, from tasks, threads, eager tasks."""
    attempts = Attempts()
    begun, closing, tried, ended = (anyio.Event() for _ in range(4))

    @task
    async def holds_it_open() -> None:
        begun.set()
        try:
            if ending == "raises":
                await anyio.sleep(LONG)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                closing.set()
                await tried.wait()

    async def keeps_the_context() -> None:
        await closing.wait()
        try:
            await attempts.from_a_task("closing")
        finally:
            tried.set()
        await ended.wait()
        await attempts.from_a_task("ended")

    async with anyio.create_task_group() as group:

        @flow
        async def main() -> None:
            group.start_soon(keeps_the_context)
            holds_it_open.submit()
            await begun.wait()
            if ending == "raises":
                raise LookupError

        with pytest.raises(LookupError) if ending == "raises" else contextlib.nullcontext():
            await main()
        ended.set()
    assert len(attempts.outcomes) >= 16
    assert set(attempts.outcomes.values()) == {"refused"}
    assert {row.function for row in store.all() if row.parent_id is not None} == {"holds_it_open"}


def test_invariant_08_inline(store: OrderedStore) -> None:
    """Starts during or after closing are refused, from threads that kept the context."""
    attempts, closing, tried = Attempts(), threading.Event(), threading.Event()
    kept: list[Any] = []

    @task
    def holds_it_open() -> None:
        assert tried.wait(LONG)

    @flow
    def main() -> None:
        holds_it_open.submit()
        kept.append(copy_context())

        def try_it() -> None:
            run = kept[0].run(current_run.get)
            while not run.closing:
                time.sleep(0.001)
            closing.set()
            kept[0].run(attempts.from_a_thread, "closing")
            tried.set()

        threading.Thread(target=try_it).start()

    main()
    assert closing.is_set()
    kept[0].run(attempts.from_a_thread, "ended")
    assert len(attempts.outcomes) == 6
    assert set(attempts.outcomes.values()) == {"refused"}


# --- 9 ----------------------------------------------------------------------------------------

OUTCOMES: dict[str, tuple[StateType, type[BaseException] | None]] = {
    "returns": (StateType.COMPLETED, None),
    "raises": (StateType.FAILED, LookupError),
    "times out": (StateType.FAILED, TimeoutError),
    "raises a timeout": (StateType.FAILED, TimeoutError),
    "is cancelled": (StateType.CANCELLED, RunCancelledError),
    "answers a cancel": (StateType.COMPLETED, None),
    "answers with an error": (StateType.FAILED, LookupError),
    "answers a deadline": (StateType.COMPLETED, None),
    "raises a base exception": (StateType.CRASHED, OfOurs := type("OfOurs", (BaseException,), {})),
}


async def behaves(how: str, begun: Callable[[], object]) -> str:
    begun()
    try:
        if how in ("returns", "raises", "raises a timeout", "raises a base exception"):
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(LONG)
    except anyio.get_cancelled_exc_class():
        if how == "answers with an error":
            raise LookupError from None
        if not how.startswith("answers"):
            raise
    if how == "raises":
        raise LookupError
    if how == "raises a timeout":
        raise TimeoutError
    if how == "raises a base exception":
        raise OfOurs
    return "value"


@pytest.mark.parametrize("call", ["plain", "return_state", "submit"])
@pytest.mark.parametrize("declare", [task, flow])
@pytest.mark.parametrize("how", OUTCOMES)
async def test_invariant_09_state_and_exception_never_disagree(
    store: OrderedStore, how: str, declare: Any, call: str
) -> None:
    """State and exception never disagree."""
    type_, error = OUTCOMES[how]
    timeout = 0.02 if how in ("times out", "answers a deadline") else None
    body = declare(behaves, name="behaves", timeout_seconds=timeout)
    runs: list[Run] = []

    def begun() -> None:
        run = current_run.get()
        assert run is not None
        runs.append(run)

    async def cancel_it() -> None:
        await until(lambda: runs)
        assert cancel(runs[0], Cause("by the test"))

    caught: BaseException | None = None
    value: Any = None
    async with anyio.create_task_group() as group:
        if how in ("is cancelled", "answers a cancel", "answers with an error"):
            group.start_soon(cancel_it)
        try:
            if call == "submit":
                value = await flow(submitted, name="around", persist_result=False)(body, how, begun, store)
            else:
                value = await body(how, begun, **({"return_state": True} if call == "return_state" else {}))
        except BaseException as raised:  # what it is, is compared
            caught = raised
    recorded = store.by_function()["behaves"]
    assert recorded is type_
    if call == "return_state" and caught is None:
        assert value.type is type_
        caught, value = (None, value.result()) if error is None else (value.result(raise_on_failure=False), None)
    assert type(caught) is (type(None) if error is None else error)
    assert value == ("value" if error is None else None)
    if isinstance(caught, RunCancelledError):
        assert caught.state is not None
        assert caught.state.type is recorded


async def test_invariant_09_the_future_of_a_run_that_was_given_up() -> None:
    """State and exception never disagree: also while the body of a run that is recorded Crashed goes on."""
    deaf = Deaf(0.3)
    store = OrderedStore()

    @flow
    async def main() -> None:
        future = task(deaf.body, name="deaf").submit()
        await until(lambda: deaf.started)
        future.cancel()
        await future.wait_async()
        assert future.state.is_crashed()
        with pytest.raises(CrashedRunError, match="ignored cancellation"):
            await future

    with Runtime(store=store, grace_seconds=0.1):
        try:
            await main()
        finally:
            await deaf.ended.wait()
            await anyio.sleep(0.01)


async def submitted(body: Any, how: str, begun: Callable[[], object], store: OrderedStore) -> Any:
    future = body.submit(how, begun)
    try:
        return await future
    finally:
        assert future.state.type is store.by_function()["behaves"]


async def test_invariant_09_a_deadline_and_an_end_at_the_same_time(store: OrderedStore) -> None:
    """State and exception never disagree, however close a deadline is to the body's end."""

    @task(timeout_seconds=0.004)
    async def just_so() -> str:
        await anyio.sleep(0.004)
        return own_id().hex

    for _ in range(30):
        state = await just_so(return_state=True)
        before = await store_newest(store)
        assert before is state.type
        try:
            run_id = await just_so()
        except TimeoutError:
            assert await store_newest(store) is StateType.FAILED
        else:
            assert store.state_of(UUID(run_id)) is StateType.COMPLETED


async def store_newest(store: OrderedStore) -> StateType:
    return STATE_TYPES[store.all()[0].state]


def test_invariant_09_inline(store: OrderedStore) -> None:
    """State and exception never disagree."""

    @flow
    def behaves_inline(how: str) -> str:
        if how == "raises":
            raise LookupError
        if how == "is cancelled":
            run = current_run.get()
            assert run is not None
            cancel(run, Cause("by itself"))
            checkpoint()
        if how == "raises a base exception":
            raise OfOurs
        return "value"

    for how in ("returns", "raises", "is cancelled", "raises a base exception"):
        type_, error = OUTCOMES[how]
        with pytest.raises(error) if error else contextlib.nullcontext():
            assert behaves_inline(how) == "value"
        assert STATE_TYPES[store.all()[0].state] is type_


# --- 10 ---------------------------------------------------------------------------------------


class Watched:
    """Stands in for a slot of `Run`: notes in which order and whether on their host it is set of which runs."""

    def __init__(self, name: str) -> None:
        self.slot: Any = getattr(Run, name)
        self.sets: list[tuple[str, bool]] = []

    def __get__(self, run: Run | None, owner: type[Run]) -> Any:
        return self if run is None else self.slot.__get__(run, owner)

    def __set__(self, run: Run, value: Any) -> None:
        if value:  # not when the run is made
            self.sets.append((run.arguments.get("name") or run.spec.name, run.host.here()))
        self.slot.__set__(run, value)


@pytest.mark.parametrize("way", ["task", "thread", "other loop", "inside", "future in a thread"])
async def test_invariant_10_children_and_cause_are_touched_on_the_host_only(  # noqa: C901  # a branch per way
    store: OrderedStore, way: str, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """Children and cause are touched on the run's host only."""
    watched = {name: Watched(name) for name in ("cause", "told", "drained", "timers")}
    for name, each in watched.items():
        monkeypatch.setattr(Run, name, each)
    started: list[int] = []

    @task
    async def child() -> None:
        started.append(1)
        await anyio.sleep(LONG)

    @flow
    async def inner() -> None:
        child.submit()
        await child()

    @flow
    async def main() -> None:
        future = inner.submit()
        await until(lambda: len(started) == 2)
        me = runtime.flow_run.id
        assert me is not None
        if way == "task":
            cancelling.set()
        elif way == "inside":
            await cancel_flow_run(me)
        elif way == "thread":
            await apart(lambda: cancel(next(iter(services.outermost)), Cause("by the test")))
        elif way == "other loop":
            await apart(lambda: cancel(next(iter(services.outermost)), Cause("by the test")) and anyio.run(pause))
        else:
            assert await apart(future.cancel)
            await future
        await anyio.sleep(LONG)

    async def pause() -> None:
        await anyio.lowlevel.checkpoint()

    async def cancel_it() -> None:
        await cancelling.wait()
        assert (await cancel_flow_run(UUID(bytes=next(iter(services.outermost)).id))).is_cancelled()

    services, cancelling = services_of(store), anyio.Event()
    async with anyio.create_task_group() as group:
        if way == "task":
            group.start_soon(cancel_it)
        with pytest.raises(RunCancelledError):
            await main()
    assert len(watched["cause"].sets) == (3 if way == "future in a thread" else 4)
    assert len(watched["told"].sets) >= 2
    off_host = {what: [name for name, here in each.sets if not here] for what, each in watched.items()}
    # The one exception: whoever cancels from a thread of the run itself must find the cause at its next checkpoint.
    target = "inner" if way == "future in a thread" else "main"
    assert off_host.pop("cause") in ([], [target])
    assert off_host == {"told": [], "drained": [], "timers": []}


async def test_invariant_10_threads_that_submit_and_cancel_at_once_lose_nothing(store: OrderedStore) -> None:
    """Children and cause are touched on the run's host only: so threads cannot tear the tree apart."""

    def submit_and_cancel(number: int) -> int:
        futures = [(asleep if each % 2 else quick).submit() for each in range(20)]
        for future in futures[number % 3 :: 2] + futures[1::2]:
            future.cancel()
        return sum(future.wait(LONG) for future in futures)

    @flow
    async def main() -> int:
        counts: list[int] = []

        async def one(number: int) -> None:
            counts.append(await anyio.to_thread.run_sync(submit_and_cancel, number))

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
        return sum(counts)

    assert await main() == 160
    assert len(store.all()) == 161
    assert {STATE_TYPES[row.state] for row in store.all()} == {StateType.CANCELLED, StateType.COMPLETED}
    assert {STATE_TYPES[row.state] for row in store.all() if row.function == "asleep"} == {StateType.CANCELLED}
    assert_children_first(store)


# --- 11 ---------------------------------------------------------------------------------------


async def async_hook(_owner: object, _run: object, _state: object) -> None:
    await anyio.lowlevel.checkpoint()


@task(retries=2, retry_delay_seconds=0.001, on_running=[async_hook], on_completion=[async_hook], tags=["few"])
def flaky() -> int:
    if runtime.task_run.run_count < 3:
        raise LookupError
    return 3


@task
def items(count: int) -> Iterator[int]:
    yield from range(count)


@flow(
    timeout_seconds=20, durability="task", task_runner=ConcurrentTaskRunner(max_workers=2), on_completion=[async_hook]
)
def all_of_it() -> list[Any]:
    with concurrency("slots", 1), rate_limit("permits", 1000):
        found: list[Any] = [flaky(), in_thread(1), *items(2)]
    first = quick.submit(1)
    futures = [*in_thread.map([1, 2]), quick.submit(first), nested_sync.submit(3)]
    found += sorted(future.result() for future in as_completed(futures))
    found += list(quick.map_stream(range(4), limit=2))
    found.append(nested_sync(5))
    anyio.run(partial(wait, futures))
    return found


@flow
def nested_sync(number: int) -> int:
    return in_thread(number)


@everywhere
def test_invariant_11_an_inline_coroutine_never_suspends(place: Backend | None) -> None:
    """Inline, the coroutine never suspends except to emit an item. It would raise `AssertionError` if it did."""
    with Runtime(store=MemoryStore(), tag_limits={"few": 1}):
        found = in_sync_flow(place, lambda: all_of_it())
    assert found == [3, 1, 0, 1, 1, 1, 2, 3, 0, 1, 2, 3, 5]


def test_invariant_11_one_that_does_is_found() -> None:
    """Inline, the coroutine never suspends: the driver refuses one that did."""

    class Suspends:
        def __await__(self) -> Generator[None]:
            yield

    async def suspends() -> None:
        await Suspends()

    with pytest.raises(AssertionError, match="was suspended"):
        drive(suspends())


# --- 12 ---------------------------------------------------------------------------------------


class Interrupting(SystemClock):
    """A clock whose `n`-th reading is where a Ctrl-C arrives: somewhere inside the engine."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.readings = 0

    def now(self) -> float:
        self._read()
        return time.time()

    def monotonic(self) -> float:
        self._read()
        return time.monotonic()

    def _read(self) -> None:
        self.readings += 1
        if self.readings == self.at:
            raise KeyboardInterrupt


def test_invariant_12_inline_a_ctrl_c_anywhere_in_the_engine_leaves_a_final_state() -> None:
    """A run object that dies without a final state records Crashed."""

    @task(retries=1, retry_delay_seconds=0)
    def child() -> None:
        if runtime.task_run.run_count == 1:
            raise LookupError

    @flow(timeout_seconds=LONG)
    def main() -> None:
        child()

    seen: set[StateType] = set()
    for at in range(1, 200):
        store, clock = OrderedStore(), Interrupting(at)
        with Runtime(store=store, clock=clock):
            try:
                main()
                break
            except KeyboardInterrupt:
                gc.collect()
                clock.at = -1
                found = {STATE_TYPES[row.state] for row in store.all()}
        assert all(state in (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED) for state in found)
        seen |= found
    assert at > 8
    assert StateType.CRASHED in seen
    assert current_run.get() is None


@pytest.mark.parametrize("how", ["closed", "collected"])
async def test_invariant_12_a_coroutine_that_nobody_drives_any_more(store: OrderedStore, how: str) -> None:
    """A run object that dies without a final state records Crashed."""

    parked = object()

    class Parked:
        def __await__(self) -> Generator[object]:
            yield parked

    @task
    async def child() -> None:
        await Parked()

    @flow
    async def main() -> None:
        await child()

    class UntilParked:
        def __await__(self) -> Generator[Any, Any]:
            given = None
            while (asked := coroutine.send(given)) is not parked:
                given = yield asked

    coroutine = main()
    await UntilParked()
    assert set(store.by_function().values()) == {StateType.RUNNING}
    if how == "closed":
        coroutine.close()
    else:
        del coroutine
        gc.collect()
    assert store.by_function() == {"main": StateType.CRASHED, "child": StateType.CRASHED}
    assert_children_first(store)


def test_invariant_12_a_loop_that_is_stopped_in_the_middle(anyio_backend: Backend) -> None:
    """A run object that dies without a final state records Crashed: at the latest when its runtime closes."""
    name, options = anyio_backend
    if name == "trio":
        pytest.skip("a trio loop cannot be stopped in the middle")
    store = OrderedStore()

    @flow
    async def main() -> None:
        asleep.submit()
        await asleep()

    with Runtime(store=store):
        make: Any = options.get("loop_factory", asyncio.new_event_loop)
        loop = make()
        running = loop.create_task(main())
        loop.run_until_complete(asyncio.sleep(0.01))
        assert set(store.by_function().values()) == {StateType.RUNNING}
    assert {STATE_TYPES[rows[0].state] for rows in store.ended} == {StateType.CRASHED}
    assert len(store.ended) == 3
    for each in asyncio.all_tasks(loop):
        each.cancel()
    with contextlib.suppress(BaseException):
        loop.run_until_complete(running)
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


# --- 13 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_invariant_13_a_parked_stream_never_blocks_its_flow(store: OrderedStore, ending: str) -> None:
    """A parked stream never blocks its flow."""
    closed: list[str] = []

    @task
    async def produces() -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
        finally:
            await clean_up(0.005)
            closed.append("async")

    @task
    def produces_sync() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append("sync")

    kept: list[Any] = []

    @flow
    async def main() -> None:
        kept.extend([produces(), produces_sync.stream(), quick.map_stream(range(5), limit=2)])
        for stream in kept:
            assert await anext(stream) == 0
        if ending == "raises":
            raise LookupError

    with anyio.fail_after(5), pytest.raises(LookupError) if ending == "raises" else contextlib.nullcontext():
        await main()
    assert sorted(closed) == ["async", "sync"]
    found = store.by_function()
    assert found["produces"] is found["produces_sync"] is StateType.CANCELLED
    assert_children_first(store)


def test_invariant_13_inline(store: OrderedStore) -> None:
    """A parked stream never blocks its flow."""
    closed: list[str] = []

    @task
    def produces() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append("closed")

    kept: list[Any] = []

    @flow
    def main() -> None:
        kept.append(iter(produces()))
        assert next(kept[0]) == 0

    main()
    assert closed == ["closed"]
    assert store.by_function() == {"main": StateType.COMPLETED, "produces": StateType.CANCELLED}


# --- 14 ---------------------------------------------------------------------------------------


async def test_invariant_14_the_current_run_is_restored_everywhere(  # noqa: C901  # one story
    store: OrderedStore,
) -> None:
    """The current run is restored in every task, thread and consumer."""
    threads: dict[int, set[UUID | None]] = {}

    @task
    def notes_its_thread() -> None:
        threads.setdefault(threading.get_ident(), set()).add(runtime.task_run.id)

    @task(on_failure=[async_hook], retries=1, retry_delay_seconds=0)
    async def fails() -> None:
        raise LookupError

    @task(timeout_seconds=0.001)
    async def late() -> None:
        await anyio.sleep(LONG)

    @flow
    async def main() -> None:
        me = current_run.get()
        assert me is not None

        def still_me() -> None:
            assert current_run.get() is me

        with pytest.raises(LookupError):
            await fails()
        still_me()
        with pytest.raises(TimeoutError):
            await late()
        still_me()
        with anyio.move_on_after(0.002):
            await nested_asleep()
        still_me()
        async for _ in numbers(2):
            still_me()
        async with items.stream(2) as stream:
            async for _ in stream:
                still_me()
        still_me()
        async for _ in quick.map_stream(range(3), limit=2):
            still_me()
        future = nested_asleep.submit()
        await anyio.lowlevel.checkpoint()
        still_me()
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        still_me()
        async with anyio.create_task_group() as group:

            async def child() -> None:
                still_me()
                with pytest.raises(LookupError):
                    await fails()
                still_me()
                await notes_its_thread.acall()
                still_me()

            for _ in range(3):
                group.start_soon(child)

        def in_a_thread() -> None:
            still_me()
            in_thread(1)
            still_me()

        await anyio.to_thread.run_sync(in_a_thread)
        still_me()

    await main()
    assert current_run.get() is None
    pool = services_of(store).threads
    await until(lambda: pool.busy == 0)
    assert sum(len(ids) for ids in threads.values()) == 3


@flow
async def nested_asleep() -> None:
    await asleep()


async def test_invariant_14_in_a_consumer_that_closes_in_another_task(store: OrderedStore) -> None:
    """The current run is restored in every task, thread and consumer."""

    @flow
    async def main() -> None:
        me = current_run.get()
        stream: Any = numbers(3)
        assert await anext(stream) == 0

        async def consume() -> None:
            assert await anext(stream) == 1
            assert current_run.get() is me
            await stream.aclose()
            assert current_run.get() is me

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
        assert current_run.get() is me

    await main()
    assert current_run.get() is None


def test_invariant_14_inline(store: OrderedStore) -> None:
    """The current run is restored in every thread and consumer."""

    @task
    def fails() -> None:
        raise LookupError

    @flow
    def main() -> None:
        me = current_run.get()
        with pytest.raises(LookupError):
            fails()
        assert current_run.get() is me
        for _ in items(2):
            assert current_run.get() is me
        kept = iter(items(2))
        next(kept)
        assert current_run.get() is me
        with pytest.raises(LookupError):
            fails.submit().result()
        assert current_run.get() is me

    main()
    assert current_run.get() is None
    for _ in items(2):
        assert current_run.get() is None
    assert current_run.get() is None


# --- 15 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel", "failure"])
async def test_invariant_15_delivery_order_is_start_order(
    store: OrderedStore, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivery order is start order."""
    told = Watched("told")
    monkeypatch.setattr(Run, "told", told)
    started: list[str] = []
    cancelled: list[str] = []

    @task
    async def child(name: str) -> None:
        started.append(name)
        try:
            await anyio.sleep(LONG)
        finally:
            cancelled.append(name)

    @flow
    async def inner(name: str) -> None:
        started.append(name)
        for number in range(3):
            child.submit(f"{name}{number}")
        try:
            await anyio.sleep(LONG)
        finally:
            cancelled.append(name)

    @flow
    async def main() -> None:
        for name in "abc":
            child.submit(name)
            inner.submit(name * 2)
        await until(lambda: len(started) == 15)
        if way == "failure":
            raise LookupError
        await cancel_flow_run(str(runtime.flow_run.id))
        await anyio.sleep(LONG)

    with pytest.raises(LookupError if way == "failure" else RunCancelledError):
        await main()
    names = [name for name, _ in told.sets if name != "main"]
    expected = [each for name in "abc" for each in (name, name * 2, *(f"{name * 2}{number}" for number in range(3)))]
    assert names == expected
    if not on_trio():  # trio shuffles the tasks of one turn
        assert cancelled == expected


def test_invariant_15_inline(store: OrderedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivery order is start order."""
    told = Watched("told")
    monkeypatch.setattr(Run, "told", told)
    begun = threading.Semaphore(0)

    @task
    async def child(name: str) -> None:
        begun.release()
        await anyio.sleep(LONG)

    @flow
    def main() -> None:
        for number in range(10):
            child.submit(str(number))
        for _ in range(10):
            assert begun.acquire(timeout=LONG)
        raise LookupError

    with pytest.raises(LookupError):
        main()
    assert [name for name, _ in told.sets] == [str(number) for number in range(10)]
