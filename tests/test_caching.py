"""Cached values: computed once for each key, typed when they come back, and never anybody else's."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from asyncflow import NoKey, Runtime, State, Transaction, flow, get_client, task, transaction
from asyncflow._services import Services
from asyncflow.cache_policies import DEFAULT, FLOW_PARAMETERS, INPUTS, NO_CACHE, RUN_ID, TASK_SOURCE, CacheKeyContext
from asyncflow.clock import SystemClock
from asyncflow.exceptions import OptionError, RunCancelledError, StoreError
from asyncflow.runtime import HOME
from asyncflow.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever happened: nobody leads any more, and no lock is held."""
    yield
    for services in HOME.every_open():
        assert (services.flights, services.leaders) == ({}, {})
        wait_until(lambda services=services: not services.key_locks._turns)  # type: ignore[misc]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Body:
    """What a task does here: it counts, waits where it is told to, and gives what it is told to give."""

    def __init__(self, value: Any = None) -> None:
        self.count = 0
        self.value = value
        self.gate: anyio.Event | None = None
        self.started = anyio.Event()

    async def run(self) -> Any:
        self.count += 1
        self.started.set()
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Price(BaseModel):
    amount: float
    since: datetime


@dataclass(frozen=True)
class Page:
    number: int
    links: tuple[str, ...] = ()


# --- hits ----------------------------------------------------------------------------------


async def test_a_value_is_computed_once_for_equal_arguments() -> None:
    asked: list[int] = []

    @task(cache_policy=INPUTS)
    async def load(page: int, size: int = 10) -> Page:
        asked.append(page)
        return Page(page, ("a", "b"))

    async def calls() -> list[State[Page]]:
        return [
            await load(1, return_state=True),
            await load(page=1, size=10, return_state=True),
            await load(2, return_state=True),
            await load(1, 20, return_state=True),
        ]

    first, again, *others = await calls()
    assert asked == [1, 2, 1]
    assert first.result() == again.result() == Page(1, ("a", "b"))
    assert (first.name, again.name, [each.name for each in others]) == ("Completed", "Cached", ["Completed"] * 2)
    assert [each.name for each in await calls()] == ["Cached"] * 4
    assert len(asked) == 3


async def test_a_hit_never_was_running_and_tells_its_key() -> None:
    @task(cache_policy=INPUTS, cache_expiration=timedelta(hours=1))
    async def load(page: int) -> int:
        return page

    await load(1)
    state = await load(1, return_state=True)
    async with get_client() as client:
        [hit, _] = await client.read_task_runs()
        states = await client.read_states(hit.id)
        assert await client.read_result(hit.id) == 1
    assert [each.name for each in states] == ["Pending", "Cached"]
    assert hit.start_time is None
    details = states[-1].state_details
    assert details.cache_key is not None
    assert details.cache_key.startswith(f"{__name__}.test_a_hit_never_was_running_and_tells_its_key.<locals>.load:")
    assert details.cache_expiration is not None
    assert state.is_completed()


async def test_a_value_comes_back_as_its_annotation_says() -> None:
    price = Price(amount=1.5, since=datetime.fromisoformat("2026-01-02T03:04:05+00:00"))

    @task(cache_policy=INPUTS)
    async def prices(shop: str) -> dict[str, list[Price]]:
        return {shop: [price]}

    @task(cache_policy=INPUTS)
    def one(shop: str) -> Page | None:
        return Page(1)

    assert await prices("x") == await prices("x") == {"x": [price]}
    assert await one.acall("x") == await one.acall("x") == Page(1)


async def test_a_type_that_is_local_is_found_as_well() -> None:
    class Local(BaseModel):
        number: int

    @task(cache_policy=INPUTS)
    async def load(number: int) -> Local:
        return Local(number=number)

    class Shop:
        @staticmethod
        @task(cache_policy=INPUTS)
        async def load(number: int) -> list[Page]:
            return [Page(number)]

    for _ in range(2):
        assert await load(1) == Local(number=1)
        assert await Shop.load(1) == [Page(1)]


async def test_values_of_different_tasks_and_methods_are_kept_apart() -> None:
    @task(cache_policy=INPUTS)
    async def one(x: int) -> str:
        return "one"

    @task(cache_policy=INPUTS)
    async def two(x: int) -> str:
        return "two"

    @dataclass
    class Shop:
        name: str

        @task(cache_policy=INPUTS)
        async def where(self) -> str:
            return self.name

    assert [await one(1), await two(1)] == ["one", "two"]
    assert [await Shop("a").where(), await Shop("b").where(), await Shop("a").where()] == ["a", "b", "a"]


@pytest.mark.parametrize("values", [(1, True, 1.0, "1", b"1"), ([1], (1,)), ({}, [], None)], ids=str)
async def test_values_that_python_calls_equal_have_keys_of_their_own(values: tuple[Any, ...]) -> None:
    @task(cache_policy=INPUTS)
    async def kind(x: Any) -> str:
        return type(x).__name__

    assert [await kind(each) for each in values] == [type(each).__name__ for each in values]


async def test_nothing_is_cached_without_a_policy() -> None:
    body = Body(1)

    @task(cache_policy=NO_CACHE)
    async def load() -> Any:
        return await body.run()

    @task
    async def plain() -> Any:
        return await body.run()

    for each in (load, load, plain, plain):
        await each()
    assert body.count == 4


async def test_only_what_completed_and_is_json_is_kept() -> None:
    failing, odd = Body(ValueError("no")), Body(object())

    @task(cache_policy=INPUTS)
    async def fails() -> Any:
        return await failing.run()

    @task(cache_policy=INPUTS)
    async def gives_an_object() -> Any:
        return await odd.run()

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await fails()
        assert await gives_an_object() is odd.value
    assert (failing.count, odd.count) == (2, 2)


async def test_a_value_lives_until_it_expires(home: Path) -> None:
    class Later(SystemClock):
        ahead = 0.0

        def __init__(self) -> None:
            self.now = lambda: time.time() + self.ahead

    clock, body = Later(), Body(1)

    @task(cache_policy=INPUTS, cache_expiration=60)
    async def load() -> Any:
        return await body.run()

    async with Runtime(home, clock=clock):
        for ahead, count in [(0, 1), (59, 1), (61, 2), (100, 2), (130, 3)]:
            clock.ahead = ahead
            await load()
            assert body.count == count


async def test_refreshing_computes_it_again_and_keeps_that() -> None:
    body = Body(1)

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    assert await load() == 1
    body.value = 2
    assert await load() == 1
    assert await load.with_options(refresh_cache=True)() == 2
    assert await load() == 2
    assert body.count == 2


async def test_a_type_that_was_changed_makes_a_new_value() -> None:
    @task(name="load", cache_key_fn=lambda context, arguments: "k")
    async def before() -> int:
        return 1

    @task(name="load", cache_key_fn=lambda context, arguments: "k")
    async def after() -> list[str]:
        return ["new"]

    assert await before() == 1
    assert await after() == ["new"]
    assert await after() == ["new"]


# --- keys ----------------------------------------------------------------------------------


async def test_within_one_run() -> None:
    body = Body(1)

    @task(cache_policy=RUN_ID)
    async def load(x: int) -> Any:
        return await body.run()

    @flow
    async def main() -> None:
        await load(1)
        await load(2)

    await main()
    await main()
    assert body.count == 2


async def test_the_parameters_of_the_flow_around() -> None:
    body = Body(1)

    @task(cache_policy=FLOW_PARAMETERS)
    async def load(x: int) -> Any:
        return await body.run()

    @flow
    async def main(day: int) -> None:
        await load(1)
        await load(2)

    for day, count in [(1, 1), (1, 1), (2, 2)]:
        await main(day)
        assert body.count == count
    await load(1)
    await load(1)
    assert body.count == 4  # outside of a flow it is not cached


async def test_the_source_of_the_task() -> None:
    def declare(text: str) -> Any:
        names: dict[str, Any] = {}
        exec(text, names)
        return task(names["load"], name="load", cache_policy=TASK_SOURCE)

    count = {"a": 0}
    texts = [
        "def load(a): a['n'] = a.get('n', 0) + 1; return [a.get('n') for _ in (1, 2)]",
        "\n\ndef load(a):\n    # looks other\n    a['n'] = a.get('n', 0) + 1\n    return [a.get('n') for _ in (1, 2)]",
        "def load(a): a['n'] = a.get('n', 0) + 1; return [a.get('n') for _ in (1, 3)]",
        "def load(a): a['n'] = a.get('n', 0) + 1; return [a.get('m') for _ in (1, 3)]",
    ]
    values = [await declare(text).acall({"n": 10 * index}) for index, text in enumerate(texts)]
    assert values == [[1, 1], [1, 1], [21, 21], [None, None]]
    assert count == {"a": 0}


async def test_the_default_is_for_one_run_and_equal_arguments() -> None:
    body = Body(1)

    @task(cache_policy=DEFAULT)
    async def load(x: int) -> Any:
        return await body.run()

    @flow
    async def main() -> None:
        for x in (1, 2, 1, 2):
            await load(x)

    await main()
    assert body.count == 2
    await main()
    assert body.count == 4


async def test_an_argument_that_is_not_in_the_key() -> None:
    body = Body(1)

    @task(cache_policy=INPUTS - "session")
    async def load(x: int, session: object) -> Any:
        return await body.run()

    @task(cache_policy=INPUTS)
    async def load_hinted(x: int, session: NoKey[object]) -> Any:
        return await body.run()

    for each in (load, load_hinted):
        await each(1, object())
        await each(1, object())
    assert body.count == 2


async def test_an_argument_without_digest_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    body = Body(1)

    @task(cache_policy=INPUTS)
    async def load(page: int, sessions: list[Any]) -> Any:
        return await body.run()

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await load(1, [1, threading.Lock()])
    assert body.count == 3
    [said] = [record.getMessage() for record in caplog.records]
    assert "'load' are not cached (said once): sessions[1] cannot be digested" in said
    assert "sessions: NoKey[...]" in said


async def test_a_key_function_says_what_a_value_is_kept_under() -> None:
    seen: list[CacheKeyContext] = []

    def day_of(context: CacheKeyContext, arguments: dict[str, Any]) -> str | None:
        seen.append(context)
        return None if arguments["day"] is None else f"day-{arguments['day']}"

    body = Body(1)

    @task(cache_key_fn=day_of, tags=["x"])
    async def load(day: int | None, noise: object) -> Any:
        return await body.run()

    for day, count in [(1, 1), (1, 1), (2, 2), (None, 3), (None, 4)]:
        await load(day, object())
        assert body.count == count
    assert seen[0].task is load
    assert seen[0].task_run.task_name == "load"
    assert seen[0].task_run.tags == ("x",)
    assert seen[0].parameters["day"] == 1
    state = await load(1, None, return_state=True)
    assert state.name == "Cached"


@pytest.mark.parametrize("bad", [1, "", b"k"], ids=repr)
async def test_a_bad_key_fails_the_run_before_its_body(bad: Any) -> None:
    body = Body(1)

    @task(cache_key_fn=lambda context, arguments: bad)
    async def load() -> Any:
        return await body.run()

    with pytest.raises(OptionError, match="text or None"):
        await load()
    assert body.count == 0


async def test_a_key_function_that_raises_fails_the_run() -> None:
    def key(context: CacheKeyContext, arguments: dict[str, Any]) -> str:
        raise LookupError("no day")

    @task(cache_key_fn=key)
    async def load() -> None: ...

    state = await load(return_state=True)
    assert state.is_failed()
    with pytest.raises(LookupError):
        state.result()


# --- single flight -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gather", "submit"])
async def test_a_thousand_calls_run_the_body_once(how: str) -> None:
    body = Body({"big": [1, 2, 3]})
    body.gate = anyio.Event()

    @task(cache_policy=INPUTS)
    async def load(x: int) -> Any:
        return await body.run()

    @flow
    async def main() -> list[Any]:
        values: list[Any] = []

        async def one() -> None:
            values.append(await load(1) if how == "gather" else await load.submit(1))

        async with anyio.create_task_group() as group:
            for _ in range(1000):
                group.start_soon(one)
            await body.started.wait()
            await anyio.wait_all_tasks_blocked()
            assert body.gate is not None
            body.gate.set()
        return values

    assert await main() == [body.value] * 1000
    assert body.count == 1


async def test_those_who_wait_get_the_failure_as_well() -> None:
    body = Body(ValueError("the source is down"))
    body.gate = anyio.Event()

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    @flow
    async def main() -> list[State[Any]]:
        futures = [load.submit() for _ in range(100)]
        await body.started.wait()
        await anyio.wait_all_tasks_blocked()
        assert body.gate is not None
        body.gate.set()
        for each in futures:
            await each.wait_async()
        return [each.state for each in futures]

    states = (await main(return_state=True)).data
    assert body.count == 1
    with pytest.raises(ExceptionGroup) as caught:
        await main()
    assert {id(each) for each in caught.value.exceptions} == {id(body.value)}
    assert states is not None


async def test_cancelling_999_leaves_the_last_its_value() -> None:
    body = Body(7)
    body.gate = anyio.Event()

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    @flow
    async def main() -> Any:
        futures = [load.submit()]
        await body.started.wait()  # it leads: tasks need not begin in the order they were submitted in
        futures += [load.submit() for _ in range(999)]
        await anyio.wait_all_tasks_blocked()
        for each in futures[:-1]:
            each.cancel()
        for each in futures[:-1]:
            with pytest.raises(RunCancelledError):
                await each
        assert body.gate is not None
        body.gate.set()
        return await futures[-1]

    assert await main() == 7
    assert body.count == 2  # of the leader, which was cancelled in it, and of the last


async def test_a_waiter_that_is_cancelled_disturbs_nobody() -> None:
    body = Body(7)
    body.gate = anyio.Event()

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    @flow
    async def main() -> list[Any]:
        leader = load.submit()
        await body.started.wait()
        waiter, other = load.submit(), load.submit()
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0) as scope:
            await load()
        assert scope.cancelled_caught
        waiter.cancel()
        with pytest.raises(RunCancelledError):
            await waiter
        assert body.gate is not None
        body.gate.set()
        return [await leader, await other]

    assert await main() == [7, 7]
    assert body.count == 1


async def test_when_the_leader_is_cancelled_by_its_caller_another_one_leads() -> None:
    body = Body(7)
    body.gate = anyio.Event()

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    @flow
    async def main() -> Any:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(load)
                await body.started.wait()
                waiter = load.submit()
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert body.gate is not None
        body.gate.set()
        return await waiter

    assert await main() == 7
    assert body.count == 2


async def test_a_task_that_calls_itself_with_an_equal_key_goes_on() -> None:
    depth: list[int] = []

    @task(cache_policy=INPUTS - "left")
    async def down(x: int, left: int) -> int:
        depth.append(left)
        return 0 if not left else 1 + await down(x, left - 1)

    with anyio.fail_after(20):
        assert await down(1, 3) == 3
        assert await down(1, 0) == 3  # the outermost was the leader
    assert depth == [3, 2, 1, 0]


async def test_two_tasks_that_need_each_other_go_on() -> None:
    both = anyio.Event()
    calls: list[str] = []

    @task(cache_key_fn=lambda context, arguments: "a")
    async def a(is_inner: bool = False) -> str:
        calls.append("a")
        if is_inner:
            return "inner a"
        await both.wait()
        return f"a of {await b(True)}"

    @task(cache_key_fn=lambda context, arguments: "b")
    async def b(is_inner: bool = False) -> str:
        calls.append("b")
        if is_inner:
            return "inner b"
        both.set()
        return f"b of {await a(True)}"

    @flow
    async def main() -> list[str]:
        one, two = a.submit(), b.submit()
        return [await one, await two]

    with anyio.fail_after(20):
        values = await main()
    assert values[0] in ("a of inner b", "a of b of inner a")
    assert values[1] in ("b of inner a", "b of a of inner b")


async def test_waiting_takes_no_place_of_the_task_runner() -> None:
    from asyncflow.task_runners import ConcurrentTaskRunner

    body = Body(7)

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    @task
    async def other() -> int:
        return 1

    @flow(task_runner=ConcurrentTaskRunner(max_workers=1))
    async def main() -> list[Any]:
        futures = [load.submit() for _ in range(20)] + [other.submit() for _ in range(5)]
        return [await each for each in futures]

    with anyio.fail_after(20):
        assert await main() == [7] * 20 + [1] * 5
    assert body.count == 1


async def test_sync_bodies_in_threads_run_once() -> None:
    count: list[int] = []

    @task(cache_policy=INPUTS)
    def load(x: int) -> int:
        count.append(x)
        time.sleep(0.05)
        return x

    @flow
    async def main() -> list[int]:
        futures = [load.submit(1) for _ in range(300)]
        return [await each for each in futures]

    assert await main() == [1] * 300
    assert count == [1]


def test_threads_without_a_loop_run_it_once() -> None:
    count: list[int] = []
    values: list[int] = []

    @task(cache_policy=INPUTS)
    def load(x: int) -> int:
        count.append(x)
        time.sleep(0.1)
        return x

    @flow
    def main() -> None:
        values.append(load(1))

    threads = [threading.Thread(target=main) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert values == [1] * 50
    assert count == [1]
    assert load(1, return_state=True).name == "Cached"


def test_a_leader_on_a_thread_serves_those_on_loops(anyio_backend_name: str) -> None:
    count: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    @task(cache_policy=INPUTS)
    def load(x: int) -> int:
        count.append(x)
        started.set()
        assert go_on.wait(20)
        return x

    @flow
    async def main() -> int:
        future = load.submit(1)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        return await future

    leader = threading.Thread(target=load, args=(1,))
    leader.start()
    assert started.wait(20)
    assert anyio.run(main, backend=anyio_backend_name) == 1
    leader.join(20)
    assert count == [1]


async def test_retries_are_the_leaders() -> None:
    body = Body(ValueError("once"))

    @task(cache_policy=INPUTS, retries=1)
    async def load() -> Any:
        try:
            return await body.run()
        finally:
            body.value = 7

    @flow
    async def main() -> list[Any]:
        futures = [load.submit() for _ in range(10)]
        return [await each for each in futures]

    assert await main() == [7] * 10
    assert body.count == 2


async def test_generators_are_not_cached() -> None:
    count: list[int] = []

    @task(cache_policy=INPUTS)
    async def items() -> AsyncIterator[int]:
        count.append(1)
        yield 1

    for _ in range(2):
        assert [each async for each in items()] == [1]
    assert len(count) == 2


# --- stores --------------------------------------------------------------------------------


async def test_values_in_memory() -> None:
    body = Body(Page(1))

    @task(cache_policy=INPUTS)
    async def load() -> Page:
        value: Page = await body.run()
        return value

    async with Runtime(store=MemoryStore()):
        assert [await load(), await load()] == [Page(1)] * 2
    assert body.count == 1


async def test_a_value_outlives_its_runtime(home: Path) -> None:
    body = Body("x" * 500_000)

    @task(cache_policy=INPUTS)
    async def load() -> str:
        value: str = await body.run()
        return value

    for _ in range(2):
        async with Runtime(home):
            assert await load() == body.value
    assert body.count == 1
    [file] = (home / "results" / "cache").iterdir()
    assert json.loads(file.read_text()) == body.value


async def test_a_file_that_is_gone_or_damaged_costs_a_computation() -> None:
    body = Body("x")

    @task(cache_policy=INPUTS)
    async def load() -> str:
        value: str = await body.run()
        return value

    def spoil(change: Callable[[Path], object]) -> None:
        [services] = HOME.every_open()
        [file] = (services.settings.home / "results" / "cache").iterdir()
        change(file)

    await load()
    await anyio.to_thread.run_sync(spoil, Path.unlink)
    assert await load() == "x"
    assert body.count == 2
    await anyio.to_thread.run_sync(spoil, lambda file: file.write_text('"y"'))
    assert await load() == "x"
    assert body.count == 3
    assert await load() == "x"
    assert body.count == 3


async def test_a_cache_that_cannot_be_written_fails_no_run(caplog: pytest.LogCaptureFixture, home: Path) -> None:
    class Full(MemoryStore):
        def write_cached(self, row: Any) -> None:
            raise StoreError("keeping a cached value", "memory", "no space left")

        def read_cached(self, key: str) -> Any:
            raise StoreError("reading a cached value", "memory", "input/output error")

    body = Body(1)

    @task(cache_policy=INPUTS)
    async def load() -> Any:
        return await body.run()

    async with Runtime(home, store=Full()):
        assert [await load(), await load()] == [1, 1]
    assert body.count == 2
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("no space left" in each for each in said)
    assert any("input/output error" in each for each in said)


async def test_a_value_made_in_a_transaction_is_kept_when_that_commits() -> None:
    body = Body(1)

    @task(cache_policy=INPUTS)
    async def load(x: int) -> Any:
        return await body.run()

    async def undone() -> None:
        async with transaction():
            await load(1)
            raise ValueError("undo")

    @flow
    async def main() -> None:
        with pytest.raises(ValueError, match="undo"):
            await undone()
        async with transaction():
            await load(1)
        await load(1)

    await main()
    assert body.count == 2


# --- processes -----------------------------------------------------------------------------

MANY = """
import sys
import anyio
from pathlib import Path
from asyncflow import flow, task
from asyncflow.cache_policies import INPUTS

@task(cache_policy=INPUTS)
async def load(x: int) -> int:
    with open(sys.argv[1], "a") as file:
        file.write("ran\\n")
    await anyio.sleep(0.5)
    return x * 2

@flow
async def main() -> list[int]:
    futures = [load.submit(21) for _ in range(100)]
    return [await each for each in futures]

print("ready", flush=True)
sys.stdin.readline()
assert anyio.run(main, backend=sys.argv[2]) == [42] * 100
"""
STUCK = """
import sys
import anyio
from asyncflow import task
from asyncflow.cache_policies import INPUTS

@task(name="load", cache_key_fn=lambda context, arguments: "k")
async def load() -> int:
    print("running", flush=True)
    await anyio.sleep(60)
    return 1

anyio.run(load)
"""


def start(code: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_callers_in_four_processes_run_it_once(tmp_path: Path, backend: str) -> None:
    ran = tmp_path / "ran"
    processes = [start(MANY, str(ran), backend) for _ in range(4)]
    for process in processes:
        assert line_of(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=50)
    assert [process.returncode for process in processes] == [0] * 4
    assert ran.read_text() == "ran\n"


@pytest.fixture
def stuck() -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of the body for the key."""
    process = start(STUCK)
    assert line_of(process) == "running"
    yield process
    process.kill()
    process.communicate()


def make_load() -> Any:
    @task(name="load", cache_key_fn=lambda context, arguments: "k")
    async def load() -> int:
        return 2

    load._spec = replace(load.spec, key="__main__.load")  # as in the other process, where it is a script's
    return load


async def test_a_killed_process_has_its_place_taken(stuck: subprocess.Popen[str]) -> None:
    load = make_load()

    @flow
    async def main() -> float:
        waiting = load.submit()
        with anyio.move_on_after(0.3):
            await waiting.wait_async()
        assert not waiting.done()
        stuck.send_signal(signal.SIGKILL)
        began = time.monotonic()
        assert await waiting == 2
        return time.monotonic() - began

    assert await main() < 2


async def test_a_call_that_waits_for_another_process_can_be_cancelled(stuck: subprocess.Popen[str]) -> None:
    load = make_load()
    with anyio.move_on_after(0.3) as scope:
        await load()
    assert scope.cancelled_caught
    stuck.send_signal(signal.SIGKILL)
    with anyio.fail_after(5):
        assert await load() == 2


def test_a_thread_that_waits_for_another_process_can_be_cancelled(stuck: subprocess.Popen[str]) -> None:
    @task(name="load", cache_key_fn=lambda context, arguments: "k")
    def load() -> int:
        return 2

    load._spec = replace(load.spec, key="__main__.load")
    ended: list[BaseException] = []

    @flow(timeout_seconds=0.3)
    def main() -> None:
        try:
            load()
        except BaseException as error:
            ended.append(error)
            raise

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        main()
    assert time.monotonic() - began < 5
    assert len(ended) == 1


def services_of_the_default() -> Services:
    [services] = HOME.every_open()
    return services


async def test_what_is_no_longer_needed_is_let_go() -> None:
    import gc
    import weakref

    class Held(Exception):
        pass

    kept: list[weakref.ref[Any]] = []
    gate = anyio.Event()

    @task(cache_policy=INPUTS)
    async def load(x: int) -> Any:
        await gate.wait()
        error = Held(x)
        kept.append(weakref.ref(error))
        raise error

    @flow
    async def main() -> None:
        futures = [load.submit(1) for _ in range(10)]
        await anyio.wait_all_tasks_blocked()
        gate.set()
        for each in futures:
            with pytest.raises(Held):
                await each

    await main()
    with anyio.fail_after(10):
        while kept[0]() is not None:  # the store's thread may still have the last of what it wrote in hand
            gc.collect()
            await anyio.sleep(0.01)
    assert len(kept) == 1
    services = services_of_the_default()
    assert (services.flights, services.leaders) == ({}, {})


async def test_a_key_may_be_a_file_name_that_is_not_unicode() -> None:
    @task(cache_key_fn=lambda _, arguments: arguments["path"], tags=["caf\udce9"], version="\udce9")
    async def size_of(path: str) -> int:
        return len(path)

    @flow
    async def main() -> list[int]:
        return [await size_of("caf\udce9"), await size_of("caf\udce9")]

    assert await main() == [4, 4]
    names = {each.state.name for each in await get_client().read_task_runs()}
    assert names == {"Completed", "Cached"}


async def test_what_a_transaction_may_still_undo_is_for_nobody_outside_of_it() -> None:
    made: list[str] = []
    began, end = anyio.Event(), anyio.Event()

    @task(cache_policy=INPUTS)
    async def seat(number: int) -> str:
        made.append("taken")
        began.set()
        await anyio.sleep(0.01)
        return f"seat {number}"

    @seat.on_rollback
    def give_back(_: Transaction) -> None:
        made.append("given back")

    @flow
    async def book() -> None:
        async with transaction():
            await seat(1)
            await end.wait()
            raise LookupError

    @flow
    async def other() -> str:
        await began.wait()
        found = await seat(1)
        end.set()
        return found

    async def booked() -> None:
        with pytest.raises(LookupError):
            await book()

    async with anyio.create_task_group() as group:
        group.start_soon(booked)
        assert await other() == "seat 1"
    assert made == ["taken", "taken", "given back"]
