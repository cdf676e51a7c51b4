"""What live runs wait for: each kind of wait is told, from any thread, on each backend; circles are found."""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import re
import sqlite3
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
import orjson
import pytest

import asyncflow
from asyncflow import Runtime, as_completed, concurrency, flow, get_client, rate_limit, task, transaction, wait
from asyncflow._live_tree import EXECUTE, JOB, TAKE_PLACES, Look
from asyncflow._live_waits import KNOWN, OTHERS, waits_of
from asyncflow._wait_cycles import find_cycles
from asyncflow._waits import time_spent
from asyncflow.await_tree import AwaitTree, LiveRun, LiveWait, PlaceHolder, snapshot
from asyncflow.cache_policies import INPUTS
from asyncflow.exceptions import RunNotFoundError
from asyncflow.stores.memory import MemoryStore
from asyncflow.task_runners import ConcurrentTaskRunner
from tests.conftest import RunPython

LONG = 30.0
EXAMPLE = Path(__file__).parent.parent / "examples" / "deadlock.py"


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(store=MemoryStore(), tag_limits={"narrow": 1}, max_threads=1) as opened:
        yield opened


# --- bodies ----------------------------------------------------------------------------------


class Gate:
    """Where bodies wait, until the test opens it: for tasks of any loop, and for threads."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    async def pass_through(self) -> None:
        while not self.opened.is_set():
            await anyio.sleep(0.002)

    def block(self) -> None:
        assert self.opened.wait(LONG)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def line_of(function: Any, text: str) -> int:
    """The number of the line of a function that has this text."""
    lines, first = inspect.getsourcelines(inspect.unwrap(getattr(function, "fn", function)))
    return first + next(number for number, line in enumerate(lines) if text in line)


@task
async def through(gate: Gate) -> str:
    await gate.pass_through()
    return "through"


@task
async def holding(gate: Gate, name: str, limit: int = 1) -> None:
    async with concurrency(name, limit):
        await gate.pass_through()


@task
def blocking(gate: Gate) -> None:
    gate.block()


@task
async def plain(value: object = None) -> object:
    return value


# --- looking ---------------------------------------------------------------------------------


def find(tree: AwaitTree, function: str) -> LiveRun:
    return next(run for run in tree.runs if run.function == function)


async def seen(function: str, kind: str, look: Callable[[], AwaitTree] = snapshot) -> tuple[LiveRun, LiveWait]:
    """The run of a function, as soon as the first thing that it waits for is of this kind."""
    with anyio.fail_after(LONG):
        while True:
            for run in look().runs:
                if run.function == function and run.waits[0].kind == kind:
                    return run, run.waits[0]
            await anyio.sleep(0.002)


async def while_it_runs(
    body: Callable[[], Awaitable[object]], gate: Gate, check: Callable[[], Awaitable[None]]
) -> None:
    """Check something while a flow goes on, then let it end."""
    async with anyio.create_task_group() as group:

        async def run() -> None:
            await body()

        group.start_soon(run)
        try:
            await check()
        finally:
            gate.opened.set()


# --- the body's own waits --------------------------------------------------------------------


async def test_a_wait_of_the_users_is_told_with_its_line_and_what_it_called(runtime: Runtime, gate: Gate) -> None:
    async def check() -> None:
        run, wait = await seen("through", "await")
        assert (run.kind, run.state, run.depth) == ("task", "Running", 0)
        assert run.name.startswith("through-")
        assert wait.at is not None
        assert wait.at.line == line_of(Gate.pass_through, "sleep")
        assert wait.at.file == __file__
        assert wait.inside is not None
        assert wait.inside.function == "sleep"
        where = f"test_await_tree.py:{wait.at.line} in Gate.pass_through, inside sleep"
        assert str(wait) == f"waits at {where}"

    await while_it_runs(lambda: through(gate), gate, check)


async def test_a_body_that_has_returned_waits_for_its_children(runtime: Runtime, gate: Gate) -> None:
    @flow
    async def order() -> None:
        for _ in range(2):
            through.submit(gate)

    async def check() -> None:
        run, wait = await seen("order", "children")
        tree = snapshot()
        children = [each for each in tree.runs if each.parent_id == run.id]
        assert [each.depth for each in children] == [1, 1]
        assert wait.run_ids == tuple(each.id for each in children)
        first, *others = str(tree).splitlines()
        assert first.startswith(f"order {run.name}  flow  Running ")
        assert first.endswith("  waits for 2 children")
        assert [line[:10] for line in others] == ["  through-"] * 2

    await while_it_runs(order, gate, check)


async def test_a_run_that_is_called_is_what_its_caller_waits_for(runtime: Runtime, gate: Gate) -> None:
    @flow
    async def inner() -> None:
        await through(gate)

    @flow
    async def outer() -> None:
        await inner()

    async def check() -> None:
        await seen("through", "await")
        tree = snapshot()
        top, middle, last = tree.runs
        assert [each.function for each in tree.runs] == ["outer", "inner", "through"]
        assert top.waits[0].kind == middle.waits[0].kind == "run"
        assert top.waits[0].run_ids == (middle.id,)
        assert middle.waits[0].run_ids == (last.id,)
        at = top.waits[0].at
        assert at is not None
        assert at.line == line_of(outer, "await inner()")

    await while_it_runs(outer, gate, check)


async def test_outcomes_of_other_runs_are_told_however_they_are_waited_for(runtime: Runtime, gate: Gate) -> None:
    @task
    async def awaiting(future: Any) -> None:
        await future[0]

    @task
    async def one_by_one(futures: list[Any]) -> None:
        async for _ in as_completed(future() for future in futures):
            pass

    @task
    async def all_of_them(futures: list[Any]) -> None:
        await wait([future() for future in futures])

    @flow
    async def whole() -> None:
        first, second = through.submit(gate), through.submit(gate)
        plain.submit(first)
        awaiting.submit(quoted(first))
        one_by_one.submit([lambda: first, lambda: second])
        all_of_them.submit([lambda: first, lambda: second])

    async def check() -> None:
        run, given = await seen("plain", "run")
        ids = tuple(each.id for each in snapshot().runs if each.function == "through")
        assert run.state == "Pending"
        assert given.run_ids == ids[:1]
        _, awaited = await seen("awaiting", "run")
        assert awaited.run_ids == ids[:1]
        assert awaited.at is not None
        assert awaited.at.line == line_of(awaiting, "await future[0]")
        for function in ("one_by_one", "all_of_them"):
            _, several = await seen(function, "run")
            assert several.run_ids == ids
            assert several.what.startswith("2 runs: through-")

    await while_it_runs(whole, gate, check)


class quoted:
    """Hides a future from asyncflow, which would wait for it before the body begins."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def __getitem__(self, index: int) -> Any:
        return self._future


async def test_arms_of_a_body_that_are_no_runs_are_told_beside_it(runtime: Runtime, gate: Gate) -> None:
    @flow
    async def forked() -> None:
        future = through.submit(gate)

        async def awaiting() -> None:
            await future

        async def queueing() -> None:
            async with concurrency("one", 1):
                pass

        holding.submit(gate, "one")
        await seen("holding", "await")
        async with anyio.create_task_group() as group:
            group.start_soon(awaiting)
            group.start_soon(queueing)

    async def check() -> None:
        with anyio.fail_after(LONG):
            while len((run := find(await until_there("forked"), "forked")).waits) < 3:
                await anyio.sleep(0.002)
        assert [each.kind for each in run.waits] == ["await", "run", "limit"]
        assert run.waits[2].name == "one"
        assert [each.name[:8] for each in run.waits[2].holders] == ["holding-"]

    await while_it_runs(forked, gate, check)


async def until_there(function: str) -> AwaitTree:
    with anyio.fail_after(LONG):
        while True:
            tree = snapshot()
            if any(run.function == function for run in tree.runs):
                return tree
            await anyio.sleep(0.002)


# --- limits ----------------------------------------------------------------------------------


async def test_a_limit_is_told_with_its_holders_and_where_they_stand(runtime: Runtime, gate: Gate) -> None:
    @flow
    async def two() -> None:
        holding.submit(gate, "db")
        await seen("holding", "await")
        await waiting()

    @task
    async def waiting() -> None:
        async with concurrency("db", 1):
            pass

    async def check() -> None:
        _, wait = await seen("waiting", "limit")
        holder = find(snapshot(), "holding")
        assert (wait.what, wait.name) == ("limit 'db' (1/1)", "db")
        assert [(each.run_id, each.name, each.count) for each in wait.holders] == [(holder.id, holder.name, 1)]
        at = wait.holders[0].at
        assert at is not None
        assert at.line == line_of(Gate.pass_through, "sleep")
        assert wait.at is not None
        assert wait.at.line == line_of(waiting, "async with")
        assert str(wait).startswith("waits for limit 'db' (1/1) at test_await_tree.py:")
        assert str(wait).endswith(f", held by {holder.name} at {at}")

    await while_it_runs(two, gate, check)


async def test_code_outside_of_any_run_that_holds_a_place_is_told(runtime: Runtime, gate: Gate) -> None:
    async def outside() -> None:
        async with concurrency("db", 2, occupy=2):
            await gate.pass_through()

    async with anyio.create_task_group() as group:
        group.start_soon(outside)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(holding, gate, "db", 2)
        _, wait = await seen("holding", "limit")
        assert wait.holders == (PlaceHolder(None, "code outside of any run", 2, None),)
        assert str(wait).endswith(", held by code outside of any run (2 places)")
        gate.opened.set()


async def test_a_rate_limit_is_told(runtime: Runtime, gate: Gate) -> None:
    @task
    async def calling() -> None:
        async with rate_limit("api", 0.01):
            pass

    async with anyio.create_task_group() as group:
        async with rate_limit("api", 0.01):
            group.start_soon(calling)
        _, wait = await seen("calling", "rate_limit")
        assert (wait.what, wait.name) == ("rate limit 'api' (0.01 per second)", "api")
        group.cancel_scope.cancel()


async def test_places_of_tags_and_task_runners_are_told_with_their_holders(runtime: Runtime, gate: Gate) -> None:
    narrow = through.with_options(name="narrow", tags=["narrow"])
    queued = through.with_options(name="queued", tags=["narrow"])

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def crowded() -> None:
        through.submit(gate)
        await seen("through", "await")
        plain.submit()

    @flow
    async def tagged() -> None:
        narrow.submit(gate)
        await seen("narrow", "await")
        queued.submit(gate)

    async def check_workers() -> None:
        run, wait = await seen("plain", "limit")
        top, holder = find(snapshot(), "crowded"), find(snapshot(), "through")
        assert run.state == "Pending"
        assert wait.what == f"a place in the task runner of {top.name} (1/1)"
        assert [each.run_id for each in wait.holders] == [holder.id]

    async def check_tags() -> None:
        _, wait = await seen("queued", "limit")
        assert (wait.what, wait.name) == ("a place of tag 'narrow' (1/1)", "narrow")
        assert [each.run_id for each in wait.holders] == [find(snapshot(), "narrow").id]

    await while_it_runs(crowded, gate, check_workers)
    gate.opened.clear()
    await while_it_runs(tagged, gate, check_tags)


# --- threads ---------------------------------------------------------------------------------


async def test_a_sync_body_is_told_with_its_thread_and_its_line(runtime: Runtime, gate: Gate) -> None:
    @flow
    async def threads() -> None:
        blocking.submit(gate)
        await seen("blocking", "running")
        blocking.with_options(name="without_a_thread").submit(gate)

    async def check() -> None:
        _, wait = await seen("blocking", "running")
        assert wait.thread is not None
        assert wait.thread.startswith("asyncflow-worker-")
        assert wait.at is not None
        assert wait.at.line == line_of(Gate.block, "wait")
        assert str(wait) == f"runs in thread {wait.thread} at {wait.at}"
        _, queued = await seen("without_a_thread", "thread")
        assert queued.what == "a worker thread (max_threads=1)"

    await while_it_runs(threads, gate, check)


async def test_what_a_sync_body_waits_for_is_told_like_that_of_an_async_one(runtime: Runtime, gate: Gate) -> None:
    @task
    def queueing() -> None:
        with concurrency("db", 1):
            pass

    @flow
    async def both() -> None:
        holding.submit(gate, "db")
        await seen("holding", "await")
        await queueing.acall()

    async def check() -> None:
        _, wait = await seen("queueing", "limit")
        assert wait.name == "db"
        assert wait.thread is not None
        assert wait.at is not None
        assert wait.at.line == line_of(queueing, "with concurrency")

    await while_it_runs(both, gate, check)


async def test_runs_of_all_loops_and_threads_of_the_process_are_seen(runtime: Runtime, gate: Gate) -> None:
    @flow
    def on_a_thread() -> None:
        in_the_flow()

    @task
    def in_the_flow() -> None:
        gate.block()

    @flow
    async def on_a_loop() -> None:
        await through(gate)

    def sync_program() -> None:
        with runtime.as_current():
            on_a_thread()

    async def async_program() -> None:
        with runtime.as_current():
            await on_a_loop()

    threads = [
        threading.Thread(target=sync_program, name="plain-thread"),
        threading.Thread(target=anyio.run, args=(async_program,)),
        threading.Thread(target=anyio.run, args=(async_program,), kwargs={"backend": "trio"}),
    ]
    for thread in threads:
        thread.start()
    try:
        _, wait = await seen("in_the_flow", "running")
        assert wait.thread == "plain-thread"
        with anyio.fail_after(LONG):
            while len([run for run in snapshot().runs if run.function == "through"]) < 2:
                await anyio.sleep(0.002)
        assert find(snapshot(), "on-a-thread").waits[0].run_ids == (find(snapshot(), "in_the_flow").id,)
        with anyio.fail_after(LONG):
            while {run.waits[0].kind for run in snapshot().runs if run.function == "through"} != {"await"}:
                await anyio.sleep(0.002)
    finally:
        gate.opened.set()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
    assert snapshot().runs == ()
    assert str(snapshot()) == "no live runs"


# --- before, between and after attempts -------------------------------------------------------


async def test_a_delay_between_attempts_is_told_with_its_end(runtime: Runtime) -> None:
    @task(retries=1, retry_delay_seconds=1000)
    async def flaky() -> None:
        raise ValueError("again")

    async with anyio.create_task_group() as group:
        group.start_soon(flaky)
        run, wait = await seen("flaky", "delay")
        assert run.state == "AwaitingRetry"
        assert wait.until is not None
        assert timedelta(seconds=900) < wait.until - datetime.now(UTC) <= timedelta(seconds=1000)
        assert str(wait) == f"waits for its next attempt until {wait.until.astimezone():%H:%M:%S}"
        group.cancel_scope.cancel()


async def test_a_cached_value_that_another_run_computes_is_told(runtime: Runtime, gate: Gate) -> None:
    @task(cache_policy=INPUTS - "gate")
    async def computed(gate: Gate, key: int) -> int:
        await gate.pass_through()
        return key

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(computed, gate, 1)
            group.start_soon(computed, gate, 1)

    async def check() -> None:
        _, wait = await seen("computed", "cache")
        leader = next(run for run in snapshot().runs if run.waits[0].kind == "await")
        assert wait.run_ids == (leader.id,)
        assert wait.name is not None
        assert wait.what == f"cached value {wait.name!r}, which {leader.name} computes"

    await while_it_runs(both, gate, check)


async def test_the_key_of_a_transaction_is_told_with_who_has_it(runtime: Runtime, gate: Gate) -> None:
    @flow
    async def first() -> None:
        async with transaction(key="account 4711", isolation="serializable"):
            await gate.pass_through()

    @flow
    async def second() -> None:
        async with transaction(key="account 4711", isolation="serializable"):
            pass

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await seen("first", "await")
            group.start_soon(second)

    async def check() -> None:
        _, wait = await seen("second", "key")
        assert wait.what == "the transaction key 'account 4711'"
        assert [each.run_id for each in wait.holders] == [find(snapshot(), "first").id]

    await while_it_runs(both, gate, check)


async def test_hooks_are_told(runtime: Runtime, gate: Gate) -> None:
    async def hook(*_: object) -> None:
        await gate.pass_through()

    hooked = flow(on_completion=[hook])(plain.fn)

    async def check() -> None:
        run, wait = await seen("plain", "hook")
        assert run.state == "Completed"
        assert wait.what == "its hooks"
        assert wait.at is not None
        assert wait.at.function == "Gate.pass_through"

    await while_it_runs(hooked, gate, check)


async def test_the_disk_is_told(home: Path) -> None:
    @flow
    async def quick() -> None:
        return

    async with Runtime(home, upkeep_seconds=0), anyio.create_task_group() as group:
        with closing(sqlite3.connect(home / "asyncflow.db", isolation_level=None, check_same_thread=False)) as locked:
            await anyio.to_thread.run_sync(locked.execute, "BEGIN IMMEDIATE")
            group.start_soon(quick)
            run, wait = await seen("quick", "disk")
            await anyio.to_thread.run_sync(locked.execute, "ROLLBACK")
        assert run.state == "Completed"
        assert str(wait) == "waits for the disk"


# --- generators ------------------------------------------------------------------------------


async def test_a_generator_and_its_consumer_are_told(runtime: Runtime, gate: Gate) -> None:
    @task
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await gate.pass_through()

    @flow
    async def consuming() -> None:
        async with numbers.stream() as items:
            await anext(items)
            await gate.pass_through()
            gate.opened.clear()
            await anext(items, None)

    async def check() -> None:
        _, wait = await seen("numbers", "consumer")
        assert wait.at is not None
        assert wait.at.line == line_of(numbers, "yield 1")
        gate.opened.set()
        _, asked = await seen("consuming", "item")
        assert asked.run_ids == (find(snapshot(), "numbers").id,)
        _, making = await seen("numbers", "await")
        assert making.at is not None
        assert making.at.function == "Gate.pass_through"

    await while_it_runs(consuming, gate, check)


def test_a_sync_generator_waits_for_its_consumer(runtime: Runtime) -> None:
    @task
    def numbers() -> Generator[int]:
        yield 1

    with closing(numbers()) as items:
        next(items)
        wait = LiveWait(kind="consumer", what="its consumer to ask for the next item")
        assert find(snapshot(), "numbers").waits == (wait,)


# --- circles ---------------------------------------------------------------------------------


@task
async def two_locks(first: str, then: str, places: int = 1) -> None:
    async with concurrency(first, places):
        await meeting[first].wait()
        async with concurrency(then, places):
            pass


meeting: dict[str, Any] = {}


@pytest.mark.parametrize("names", [("x", "y"), ("x", "y", "z")], ids=["of two", "of three"])
async def test_a_circle_of_limits_is_found(runtime: Runtime, names: tuple[str, ...]) -> None:
    @flow
    async def deadlocked() -> None:
        for first, then in zip(names, (*names[1:], names[0]), strict=True):
            two_locks.submit(first, then)

    meeting.update({name: anyio.Event() for name in names})
    async with anyio.create_task_group() as group:
        group.start_soon(deadlocked)
        with anyio.fail_after(LONG):
            while [run.waits[0].kind for run in snapshot().runs][1:] != ["await"] * len(names):
                await anyio.sleep(0.002)
        assert snapshot().cycles == ()
        for event in meeting.values():
            event.set()
        with anyio.fail_after(LONG):
            while not (tree := await get_client().await_tree()).cycles:
                await anyio.sleep(0.002)
        top, *members = tree.runs
        (cycle,) = tree.cycles
        assert [step.run_id for step in cycle] == [run.id for run in members]
        assert [step.what for step in cycle] == [f"limit {name!r} (1/1)" for name in (*names[1:], names[0])]
        lines = str(tree).splitlines()
        assert lines[0].endswith(f"waits for {len(names)} children")
        assert all(line.endswith("  [in a cycle]") for line in lines[1:-1])
        first, second = members[:2]
        assert lines[-1].startswith(f"cycle: {first.name} waits for limit 'y' (1/1), held by {second.name}; ")
        assert (await get_client().await_tree(members[0].id)).cycles == tree.cycles
        assert (await get_client().await_tree(str(top.id))).runs[0].id == top.id
        group.cancel_scope.cancel()
    assert snapshot().runs == ()


async def test_a_limit_of_which_somebody_may_give_a_place_back_is_no_circle(runtime: Runtime, gate: Gate) -> None:
    meeting.update({name: anyio.Event() for name in ("x", "y")})

    @flow
    async def slow() -> None:
        holding.submit(gate, "x", 2)
        holding.submit(gate, "y", 2)
        two_locks.submit("x", "y", 2)
        two_locks.submit("y", "x", 2)

    async def check() -> None:
        with anyio.fail_after(LONG):
            while [run.waits[0].kind for run in snapshot().runs][1:] != ["await"] * 4:
                await anyio.sleep(0.002)
        for event in meeting.values():
            event.set()
        await seen("two_locks", "limit")
        with anyio.fail_after(LONG):
            while [run.waits[0].kind for run in snapshot().runs][3:] != ["limit"] * 2:
                await anyio.sleep(0.002)
        assert snapshot().cycles == ()

    await while_it_runs(slow, gate, check)


RUNS = [UUID(int=number) for number in range(6)]


def record(number: int, *waits: LiveWait) -> LiveRun:
    return LiveRun(
        id=RUNS[number], kind="task", function="f", name=f"f-{number}", state="Running", since=datetime.now(UTC),
        parent_id=None, depth=0, waits=waits,
    )  # fmt: skip


def limit_of(*holders: int | None) -> LiveWait:
    told = [PlaceHolder(None if each is None else RUNS[each], "somebody", 1, None) for each in holders]
    return LiveWait(kind="limit", what="limit", holders=tuple(told))


def outcome_of(*numbers: int, kind: Any = "run") -> LiveWait:
    return LiveWait(kind=kind, what="it", run_ids=tuple(RUNS[each] for each in numbers))


def found(*runs: LiveRun) -> list[list[int]]:
    return [[step.run_id.int for step in cycle] for cycle in find_cycles(runs)]


def test_which_waits_are_a_circle() -> None:
    own = LiveWait(kind="await")
    assert found(record(0, limit_of(1)), record(1, limit_of(0))) == [[0, 1]]
    assert found(record(0, limit_of(1)), record(1, own)) == []
    assert found(record(0, limit_of(1, 2)), record(1, limit_of(0)), record(2, own)) == []
    assert found(record(0, limit_of(1, 2)), record(1, limit_of(0)), record(2, limit_of(0))) == [[0, 1]]
    assert found(record(0, limit_of(1, None)), record(1, limit_of(0))) == []  # what is not known may go on
    assert found(record(0, limit_of(1), own), record(1, limit_of(0))) == []  # another task of it may, too
    assert found(record(0, limit_of(0))) == []
    assert found(record(0, limit_of()), record(1, limit_of(0))) == []


def test_circles_go_through_runs_that_are_waited_for() -> None:
    own = LiveWait(kind="await")
    # 0 holds a limit and waits for its child 1, which waits for that limit.
    assert found(record(0, outcome_of(1)), record(1, limit_of(0))) == [[0, 1]]
    assert found(record(0, outcome_of(1, 2, kind="children")), record(1, limit_of(0)), record(2, own)) == [[0, 1]]
    assert found(record(0, outcome_of(1, 2)), record(1, limit_of(0)), record(2, own)) == []
    # Who waits for a circle is not in it.
    both = (record(1, limit_of(2)), record(2, limit_of(1)))
    assert found(record(0, outcome_of(1)), *both) == [[1, 2]]
    assert found(*both, record(3, limit_of(4)), record(4, limit_of(3))) == [[1, 2], [3, 4]]


# --- who asks --------------------------------------------------------------------------------


async def test_the_client_tells_of_its_runtime_and_a_snapshot_of_all(runtime: Runtime, gate: Gate) -> None:
    async with Runtime(store=MemoryStore()) as other, anyio.create_task_group() as group:
        with other.as_current():
            group.start_soon(through, gate)
            run, _ = await seen("through", "await")
        assert [each.id for each in (await get_client(other).await_tree()).runs] == [run.id]
        assert (await get_client(runtime).await_tree()).runs == ()
        assert snapshot(runtime).runs == ()
        assert [each.id for each in snapshot(other).runs] == [run.id]
        assert (await get_client(runtime).await_tree(run.id)).runs == ()
        assert snapshot(run_id=str(run.id)).runs[0].id == run.id
        gate.opened.set()
    with pytest.raises(RunNotFoundError):
        snapshot(run_id="nonsense")


async def test_a_body_that_asks_sees_itself_where_it_asks(home: Path) -> None:
    @flow
    async def asking() -> AwaitTree:
        return await get_client().await_tree()

    @flow
    async def asking_at_once() -> AwaitTree:
        return snapshot()

    for store in (None, MemoryStore()):  # in a thread of its own, and right here
        async with Runtime(home, store=store):
            for each in (asking, asking_at_once):
                (run,) = (await each()).runs
                assert run.function == each.name
                assert run.waits[0].at is not None
                assert run.waits[0].at.line == line_of(each, "return")


def test_a_signal_prints_it(run_python: RunPython) -> None:
    done = run_python(
        """
import os, signal, sys, anyio, asyncflow

signal.signal(signal.SIGUSR1, lambda *_: print(asyncflow.await_tree.snapshot(), flush=True))

@asyncflow.task
def busy():
    os.kill(os.getpid(), signal.SIGUSR1)

@asyncflow.flow
async def main():
    os.kill(os.getpid(), signal.SIGUSR1)

@asyncflow.flow
def sync_main():
    busy()

anyio.run(main)
sync_main()
"""
    )
    first, second, third = done.stdout.splitlines()
    assert first.endswith("  runs at <string>:12 in main")
    assert second.endswith("at <string>:16 in sync_main")
    assert third.endswith("  runs in thread MainThread at <string>:8 in busy")


async def test_it_can_be_written_as_json(runtime: Runtime, gate: Gate) -> None:
    async def check() -> None:
        await seen("through", "await")
        tree = snapshot()
        data = orjson.loads(orjson.dumps(tree))
        assert data["runs"][0]["id"] == str(tree.runs[0].id)
        assert data["runs"][0]["waits"][0]["at"]["function"] == "Gate.pass_through"

    await while_it_runs(lambda: through(gate), gate, check)


async def test_a_run_has_one_line_whatever_its_name_is(runtime: Runtime, gate: Gate) -> None:
    odd = through.with_options(task_run_name="a\nb\x1b[31m")

    async def check() -> None:
        await seen("through", "await")
        (line,) = str(snapshot()).splitlines()
        assert line.startswith("through a b\N{REPLACEMENT CHARACTER}[31m  task  Running ")

    await while_it_runs(lambda: odd(gate), gate, check)


# --- what it must not do ---------------------------------------------------------------------


@task
async def hop(number: int) -> int:
    async with concurrency(f"limit {number % 7}", 2):
        await anyio.sleep(0)
    return number


@task
def step(number: int) -> int:
    return number


@task
async def items(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@flow
async def busy(count: int) -> int:
    futures = [each.submit(number) for number in range(count) for each in (hop, step)]
    total = await hop(count)
    async for number in items(3):
        total += number
    return total + sum([await future for future in futures])


async def test_looking_all_the_time_disturbs_nobody(home: Path) -> None:
    problems: list[BaseException] = []
    ended = threading.Event()
    looks = itertools.count()

    def look() -> None:
        try:
            while not ended.is_set():
                str(snapshot())
                next(looks)
        except BaseException as error:  # told by the test
            problems.append(error)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    async with Runtime(home):
        for watcher in watchers:
            watcher.start()
        try:
            for count in (1, 10, 25):
                assert await busy(count) == count + 3 + 2 * sum(range(count))
        finally:
            ended.set()
            for watcher in watchers:
                await anyio.to_thread.run_sync(watcher.join)
    assert problems == []
    assert next(looks) > 2


async def test_what_has_ended_in_the_middle_of_a_look_is_passed_over(runtime: Runtime, gate: Gate) -> None:
    @task
    async def queueing() -> None:
        async with concurrency("db", 1):
            pass

    @flow
    async def many() -> None:
        holding.submit(gate, "db")
        await seen("holding", "await")
        queueing.submit()
        plain.submit(queueing.submit())
        through.submit(gate)

    assert runtime.services is not None
    async with anyio.create_task_group() as group:
        group.start_soon(many)
        await seen("plain", "run")
        await seen("queueing", "limit")
        await seen("many", "children")
        look = Look([runtime.services])
        try:
            assert len(look.runs) == 6
            gate.opened.set()
            with anyio.fail_after(LONG):
                while snapshot().runs:
                    await anyio.sleep(0.002)
            for run in look.runs:
                assert len(waits_of(look, run)) == 1
        finally:
            look.clear()


class Thing:
    """Something that an argument may be."""


async def test_nothing_is_kept_that_was_looked_at(runtime: Runtime) -> None:
    @task(persist_result=False)
    async def having(thing: Thing) -> None:
        mine = Thing()
        kept.append(weakref.ref(mine))
        snapshot()
        await get_client().await_tree()
        del mine

    kept: list[weakref.ref[Thing]] = []
    thing = Thing()
    kept.append(weakref.ref(thing))
    gc.collect()
    gc.disable()  # what only the collector could free was kept by a look
    try:
        await having(thing)
        del thing
        await anyio.sleep(0)
        assert [each() for each in kept] == [None, None]
    finally:
        gc.enable()


def test_the_functions_that_are_known_by_name_are_there() -> None:
    names = {EXECUTE, JOB, TAKE_PLACES, *(f"asyncflow.{name}" for name in (*KNOWN, *OTHERS))}
    for name in names:
        module, _, path = name.partition(":")
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        assert f"{found.__module__}:{found.__code__.co_qualname}" == name


def test_their_variables_that_are_read_are_there() -> None:
    def variables(name: str) -> set[str]:
        module, _, path = name.partition(":")
        found: Any = importlib.import_module(f"asyncflow.{module}")
        for part in path.split("."):
            found = getattr(found, part)
        return set(found.__code__.co_varnames)

    assert "run" in variables("_engine.execution:execute")
    assert "places" in variables("_engine.preparation:take_places")
    assert {"self", "use"} <= variables("concurrency:ConcurrencyLimit._enter")
    assert "target" in variables("_outcomes:wait_settled")
    assert "key" in variables("_engine.caching:from_cache")
    assert "items" in variables("_engine.items:_take_all")
    assert "job" in variables("_backend.loop_host:LoopHost.call_sync")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (1.44, "1.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (-1, "0 ms"),
    ],
)
def test_lengths_of_time_read_well(seconds: float, text: str) -> None:
    assert time_spent(seconds) == text


def test_it_is_public() -> None:
    assert asyncflow.await_tree.snapshot is snapshot
    assert AwaitTree(pid=1, taken=datetime.now(UTC), runs=()).runs == ()
    assert uuid4() not in {run.id for run in snapshot().runs}


# --- the documentation -----------------------------------------------------------------------

PAGE = EXAMPLE.parent.parent / "docs" / "await_tree.md"


def transcript(name: str) -> list[str]:
    """The lines that the documentation shows, without what differs each time."""
    found = re.search(rf"<!-- transcript: {name} -->\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return without_chance(found[1])


def without_chance(text: str) -> list[str]:
    """`text` with other names for runs, and without lengths of time."""
    names: dict[str, str] = {}

    def renamed(found: re.Match[str]) -> str:
        return names.setdefault(found[0], f"{found[1]}-{len(names)}")

    text = re.sub(r"\b(transfer|fetch)-[0-9a-f]{3}\b", renamed, text)
    text = re.sub(r"^settle \w+-\w+", "settle NAME", text, flags=re.MULTILINE)
    return re.sub(r"\b[0-9.]+ (ms|s)\b", "TIME", text).splitlines()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_deadlock_of_the_documentation_is_what_is_printed(run_python: RunPython, backend: str) -> None:
    printed = run_python(EXAMPLE, backend).stdout
    assert without_chance(printed) == transcript("deadlock")


APP = """\
import time

import anyio

from asyncflow import Runtime, flow, task


@task
async def fetch() -> None:
    # Somebody forgot that this blocks.
    time.sleep(1)


@flow
async def report() -> None:
    await fetch()


async def main() -> None:
    async with Runtime(blocked_loop_seconds=0.5):
        await report()


anyio.run(main)
"""


def test_the_blocked_loop_of_the_documentation_is_what_is_printed(tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "app.py").write_text(APP)
    told = without_chance(run_python(tmp_path / "app.py").stderr)
    shown = [line for line in told if not line.startswith("  ") or line.startswith("  app.py:")]
    assert shown == transcript("watchdog")
