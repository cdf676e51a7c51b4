"""Reading back what was recorded: every filter, pages, unknown ids, several runtimes side by side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import pytest
import trio

from asyncflow import (
    Client,
    FlowRun,
    Runtime,
    StateType,
    TaskRun,
    flow,
    get_client,
    get_run_logger,
    runtime,
    tags,
    task,
)
from asyncflow.exceptions import (
    CannotDeleteRunError,
    HomeError,
    MissingResultError,
    OptionError,
    RunNotFoundError,
    RuntimeClosedError,
)
from asyncflow.stores.memory import MemoryStore
from tests.conftest import Backend


@task
async def part(x: int) -> int:
    if x < 0:
        raise ValueError(x)
    return x


@task(tags=["own"], task_run_name="named {x}")
async def named(x: int) -> int:
    return x


@flow(flow_run_name="day-{x}")
async def daily(x: int) -> UUID:
    with tags("inside"):
        await named(x)
    await part(x)
    assert runtime.flow_run.id is not None
    return runtime.flow_run.id


@flow
async def outer(x: int) -> tuple[UUID, UUID]:
    get_run_logger().info("outer %d", x)
    assert runtime.flow_run.id is not None
    return runtime.flow_run.id, await daily(x)


@asynccontextmanager
async def sqlite_runtime(path: Path) -> AsyncIterator[Runtime]:
    async with Runtime(path / "home of its own") as opened:
        yield opened


@asynccontextmanager
async def memory_runtime(path: Path) -> AsyncIterator[Runtime]:
    async with Runtime(path / "not made", store=MemoryStore()) as opened:
        yield opened
    assert not (path / "not made").exists()


@pytest.fixture(params=[sqlite_runtime, memory_runtime], ids=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


def ids(runs: list[Any]) -> list[UUID]:
    return [run.id for run in runs]


# --- flow runs -----------------------------------------------------------------------------------


async def test_flow_runs_are_found_by_every_filter(opened: Any) -> None:
    async with opened:
        with tags("red", "blue"):
            first = await daily(1)
        with tags("red"):
            second_outer, second = await outer(2)
        failed = (await daily(-3, return_state=True)).state_details.flow_run_id
        client = get_client()
        everything = await client.read_flow_runs()
        assert ids(everything) == [failed, second, second_outer, first]

        async def found(**conditions: Any) -> list[UUID]:
            return ids(await client.read_flow_runs(**conditions))

        assert await found(state="completed") == [second, second_outer, first]
        assert await found(state=StateType.FAILED) == [failed]
        assert await found(state=["FAILED", StateType.COMPLETED]) == ids(everything)
        assert await found(state=["RUNNING", "pending"]) == []
        assert await found(state=[]) == []
        assert await found(name="day-2") == [second]
        assert await found(name="day") == []
        assert await found(flow_name="daily") == [failed, second, first]
        assert await found(flow_name="daily", state="FAILED") == [failed]
        assert await found(tags=["red"]) == [second, second_outer, first]
        assert await found(tags={"red", "blue"}) == [first]
        assert await found(tags=["re"]) == []
        assert await found(tags=[]) == ids(everything)
        assert await found(parent=second_outer) == [second]
        assert await found(parent=str(second_outer)) == [second]
        assert await found(parent=first) == []
        assert await found(parent=uuid4()) == []
        begin = {run.id: run.created for run in everything}
        assert await found(since=begin[second_outer]) == [failed, second, second_outer]
        assert await found(until=begin[second_outer]) == [first]
        assert await found(since=begin[second_outer], until=begin[second]) == [second_outer]
        assert await found(since=datetime.now(UTC) + timedelta(hours=1)) == []
        zone = begin[second].astimezone(tz=None)
        assert await found(until=zone) == [second_outer, first]


async def test_pages_cover_everything_once(opened: Any) -> None:
    async with opened:
        made = [await daily(x) for x in range(7)][::-1]
        client = get_client()
        pages = [ids(await client.read_flow_runs(limit=3, offset=offset)) for offset in (0, 3, 6, 9)]
        assert pages == [made[0:3], made[3:6], made[6:], []]
        assert await client.read_flow_runs(limit=0) == []
        tasks = [ids(await client.read_task_runs(limit=5, offset=offset)) for offset in (0, 5, 10, 15)]
        assert [len(page) for page in tasks] == [5, 5, 4, 0]
        assert len({each for page in tasks for each in page}) == 14


async def test_two_hundred_runs_are_read_unless_told() -> None:
    @flow
    async def many() -> None:
        for x in range(250):
            await part(x)

    await many()
    client = get_client()
    run = (await client.read_flow_runs())[0]
    assert len(await client.read_task_runs(flow_run_id=run.id)) == 200
    assert len(await client.read_task_runs(flow_run_id=run.id, limit=1000)) == 250
    assert len(await client.read_tree(run.id)) == 251


# --- task runs -------------------------------------------------------------------------------------


async def test_task_runs_are_found_by_every_filter(opened: Any) -> None:
    async with opened:
        first = await daily(1)
        outer_id, second = await outer(2)
        failed = (await daily(-3, return_state=True)).state_details.flow_run_id
        await part(9)
        client = get_client()

        async def found(**conditions: Any) -> list[str]:
            return [run.task_name for run in await client.read_task_runs(**conditions)]

        everything = ["part", "part", "named", "part", "named", "daily", "part", "named"]
        assert await found() == everything
        assert await found(flow_run_id=first) == await found(flow_run_id=str(first)) == ["part", "named"]
        assert await found(flow_run_id=outer_id) == ["daily"]
        assert await found(flow_run_id=second) == ["part", "named"]
        assert await found(flow_run_id=uuid4()) == []
        assert await found(state="FAILED") == ["part"]
        assert await found(flow_run_id=failed, state="completed") == ["named"]
        assert await found(name="named 2") == ["named"]
        run = (await client.read_task_runs(name="named 1"))[0]
        assert (run.tags, run.flow_run_id) == (("inside", "own"), first)


async def test_a_task_run_is_found_by_the_name_it_shows(opened: Any) -> None:
    async with opened:
        for x in range(5):
            await part(x)
        client = get_client()
        for run in await client.read_task_runs():
            assert ids(await client.read_task_runs(name=run.name)) == [run.id]
        assert await client.read_task_runs(name="part") == []


# --- one run ------------------------------------------------------------------------------------------


async def test_one_run_is_read_by_its_id_in_any_form(opened: Any) -> None:
    async with opened:
        outer_id, inner_id = await outer(1)
        client = get_client()
        for form in (outer_id, str(outer_id), outer_id.hex, str(outer_id).upper()):
            assert (await client.read_flow_run(form)).id == outer_id
            assert len(await client.read_tree(form)) == 5
            assert len(await client.read_states(form)) == 3
            assert [line.message for line in await client.read_logs(form)] == ["outer 1"]
            assert await client.read_result(form) == [str(outer_id), str(inner_id)]
        task_run = (await client.read_task_runs(flow_run_id=inner_id))[0]
        assert await client.read_task_run(task_run.id) == task_run
        assert isinstance(task_run, TaskRun)
        assert task_run.duration is not None
        assert timedelta(0) <= task_run.duration < timedelta(minutes=1)
        assert len(await client.read_states(task_run.id)) == 3


READS: list[Callable[[Client, Any], Awaitable[Any]]] = [
    Client.read_flow_run,
    Client.read_task_run,
    Client.read_tree,
    Client.read_states,
    Client.read_logs,
    Client.read_result,
]


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
async def test_an_unknown_id_is_an_error_that_names_it(read: Any, opened: Any) -> None:
    async with opened:
        await daily(1)
        for unknown in (uuid4(), str(uuid4()), "nothing like an id", "", 3, None):
            with pytest.raises(RunNotFoundError) as caught:
                await read(get_client(), unknown)
            assert repr(str(unknown)) in str(caught.value)


async def test_a_task_run_is_no_flow_run_and_the_other_way_round() -> None:
    flow_run_id = await daily(1)
    client = get_client()
    task_run = (await client.read_task_runs())[0]
    with pytest.raises(RunNotFoundError):
        await client.read_flow_run(task_run.id)
    with pytest.raises(RunNotFoundError):
        await client.read_task_run(flow_run_id)
    with pytest.raises(LookupError):
        await client.read_task_run(flow_run_id)


@pytest.mark.parametrize(
    "conditions",
    [
        {"state": "Late"},
        {"state": ["COMPLETED", "nothing"]},
        {"state": 3},
        {"state": [3]},
        {"since": datetime(2024, 1, 1)},  # noqa: DTZ001
        {"until": datetime(2024, 1, 1)},  # noqa: DTZ001
        {"limit": -1},
        {"offset": -1},
    ],
    ids=str,
)
async def test_a_condition_that_makes_no_sense_is_refused(conditions: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(conditions))):
        await get_client().read_flow_runs(**conditions)


async def test_the_newest_state_of_a_run_that_goes_on_is_seen() -> None:
    began, may_end = anyio.Event(), anyio.Event()
    run_ids: list[UUID | None] = []

    @flow
    async def slow() -> None:
        run_ids.append(runtime.flow_run.id)
        began.set()
        await may_end.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(slow)
        await began.wait()
        await part(1)  # its barrier brings to disk what was put before
        assert run_ids[0] is not None
        run = await get_client().read_flow_run(run_ids[0])
        assert run.state.is_running()
        assert (run.end_time, run.duration) == (None, None)
        assert ids(await get_client().read_flow_runs(state="RUNNING")) == run_ids
        with pytest.raises(MissingResultError, match="it is Running"):
            await get_client().read_result(run.id)
        may_end.set()


async def test_the_client_is_a_context_manager_too() -> None:
    run_id = await daily(1)
    async with get_client() as client:
        assert (await client.read_flow_run(run_id)).id == run_id


async def test_reading_before_anything_ran_opens_an_empty_home(home: Path) -> None:
    assert await get_client().read_flow_runs() == []
    assert (home / "asyncflow.db").exists()


# --- several runtimes -----------------------------------------------------------------------------------


async def test_runtimes_nest_and_the_inner_one_counts(tmp_path: Path) -> None:
    async def count() -> int:
        return len(await get_client().read_flow_runs())

    await daily(0)
    async with Runtime(tmp_path / "a") as a:
        await daily(1)
        await daily(2)
        async with Runtime(tmp_path / "b") as b:
            await daily(3)
            assert await count() == 1
            assert len(await get_client(a).read_flow_runs()) == 2
        assert await count() == 2
        with pytest.raises(RuntimeClosedError, match="open a new one"):
            await get_client(b).read_flow_runs()
    assert await count() == 1
    async with Runtime(tmp_path / "b"):
        assert await count() == 1


async def test_runtimes_side_by_side_do_not_mix(tmp_path: Path) -> None:
    both = anyio.Event()
    open_now = 0

    async def one(name: str, times: int) -> None:
        nonlocal open_now
        async with Runtime(tmp_path / name):
            open_now += 1
            if open_now == 2:
                both.set()
            await both.wait()
            for x in range(times):
                await daily(x)
            assert len(await get_client().read_flow_runs()) == times

    async with anyio.create_task_group() as group:
        group.start_soon(one, "a", 3)
        group.start_soon(one, "b", 5)
    assert await get_client().read_flow_runs() == []


async def test_what_runs_in_a_flow_belongs_to_the_flows_runtime(tmp_path: Path) -> None:
    @flow
    async def main() -> None:
        async with Runtime(tmp_path / "inner") as inner:
            await part(1)
            assert await get_client(inner).read_task_runs() == []

    await main()
    assert len(await get_client().read_task_runs()) == 1


def test_a_runtime_opens_without_a_loop_as_well(tmp_path: Path) -> None:
    @flow
    def main(x: int) -> int:
        return x

    async def look() -> int:
        return len(await get_client().read_flow_runs())

    with Runtime(tmp_path / "sync") as opened:
        assert main(1) == 1
        assert repr(opened).endswith("open>")
        assert anyio.run(look) == 1
    assert repr(opened).endswith("closed>")
    assert anyio.run(look) == 0


async def test_a_closed_runtime_says_so(tmp_path: Path) -> None:
    async with Runtime(tmp_path / "a") as opened:
        context: list[Any] = []

        async def late() -> None:
            try:
                await closed.wait()
                await part(1)
            except RuntimeClosedError as error:
                context.append(error)

        closed = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(late)  # keeps the runtime in its context
            await anyio.lowlevel.checkpoint()
            await opened.__aexit__(None, None, None)
            closed.set()
        assert str(tmp_path / "a") in str(context[0])
    with pytest.raises(RuntimeClosedError):
        opened.open()


def writers() -> int:
    return sum(each.name == "asyncflow-writer" for each in threading.enumerate())


async def test_a_runtime_that_many_open_at_once_is_opened_once(tmp_path: Path) -> None:
    shared = Runtime(tmp_path / "shared")

    async def read() -> None:
        assert await get_client(shared).read_flow_runs() == []

    before = writers()
    try:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(read)
        assert writers() == before + 1
    finally:
        await anyio.to_thread.run_sync(shared.close)


async def test_the_default_runtime_that_many_open_at_once_is_opened_once() -> None:
    before = writers()
    async with anyio.create_task_group() as group:
        for x in range(20):
            group.start_soon(daily, x)
    assert len(await get_client().read_flow_runs()) == 20
    assert writers() == before + 1


async def test_a_home_that_cannot_be_used_names_the_path_and_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HomeError, match=r"file.*ASYNCFLOW_HOME"):
        async with Runtime(tmp_path / "file"):
            pass
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "asyncflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(HomeError, match="damaged"):
        async with Runtime(tmp_path / "damaged"):
            pass
    assert await get_client().read_flow_runs() == []  # and nothing is left in force


# --- loops and threads -----------------------------------------------------------------------------------


def test_one_loop_after_another_in_one_process() -> None:
    async def look() -> list[FlowRun]:
        return await get_client().read_flow_runs()

    for x in range(3):
        asyncio.run(daily(x))
        trio.run(daily, x + 10)
        anyio.run(daily, x + 20)
    assert len(trio.run(look)) == len(asyncio.run(look())) == 9


def test_two_loops_at_once_in_two_threads(anyio_backend: Backend) -> None:
    errors: list[BaseException] = []
    meet = threading.Barrier(3)

    def in_thread(backend: str, first: int) -> None:
        async def main() -> None:
            await anyio.to_thread.run_sync(meet.wait)
            async with anyio.create_task_group() as group:
                for x in range(first, first + 30):
                    group.start_soon(daily, x)

        try:
            anyio.run(main, backend=backend)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=in_thread, args=arguments)
        for arguments in (("asyncio", 0), ("trio", 100), ("asyncio", 200))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

    async def look() -> list[FlowRun]:
        return await get_client().read_flow_runs(limit=1000)

    runs = anyio.run(look, backend=anyio_backend[0])
    assert sorted(run.parameters["x"] for run in runs) == [*range(30), *range(100, 130), *range(200, 230)]
    assert all(run.state.is_completed() for run in runs)


def test_a_runtime_opened_on_one_thread_is_used_by_loops_on_others(tmp_path: Path) -> None:
    with Runtime(tmp_path / "shared") as opened:
        threads = [threading.Thread(target=copy_context().run, args=(anyio.run, daily, x)) for x in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def look() -> int:
            return len(await get_client(opened).read_flow_runs())

        assert anyio.run(look) == 5


def test_a_loop_that_is_closed_in_the_middle_leaves_no_run_open() -> None:
    @flow
    async def never_ends() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        loose.append(asyncio.ensure_future(never_ends()))
        await part(1)

    loose: list[Any] = []
    asyncio.run(main())  # cancels what is left

    async def look() -> list[FlowRun]:
        return await get_client().read_flow_runs()

    (run,) = asyncio.run(look())
    assert run.state.is_cancelled()


async def test_a_flow_run_is_deleted_with_all_that_belongs_to_it(home: Path) -> None:
    @task
    async def large() -> str:
        get_run_logger().warning("said")
        return "x" * 100_000

    @flow
    async def part() -> str:
        return await large()

    @flow
    async def whole() -> str:
        return await part()

    await whole()
    client = get_client()
    [inner, outer] = await client.read_flow_runs()
    with pytest.raises(CannotDeleteRunError, match="a part of another run"):
        await client.delete_flow_run(inner.id)
    assert list((home / "results").iterdir()) != []
    await client.delete_flow_run(outer.id)
    assert await client.read_flow_runs() == []
    assert await client.read_task_runs() == []
    assert [path for path in (home / "results").iterdir() if path.name != "cache"] == []
    with pytest.raises(RunNotFoundError):
        await client.delete_flow_run(outer.id)


async def test_a_flow_run_that_goes_on_is_not_deleted() -> None:
    ids: list[Any] = []

    @flow
    async def main() -> None:
        ids.append(runtime.flow_run.id)
        while not await get_client().read_flow_runs():  # until it is on record
            await anyio.sleep(0.001)
        with pytest.raises(CannotDeleteRunError, match="has not ended"):
            await get_client().delete_flow_run(ids[0])

    await main()
    await get_client().delete_flow_run(ids[0])


async def test_a_runtime_whose_opening_is_cancelled_leaves_nothing_open(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    async def enter() -> None:
        async with Runtime(tmp_path / "other"):
            pass

    for turns in range(8):
        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    for _ in range(200):
        left = [each.name for each in set(threading.enumerate()) - before if each.name.startswith("asyncflow-")]
        if not {"asyncflow-writer", "asyncflow-upkeep"} & set(left):
            break
        await anyio.sleep(0.01)
    assert not {"asyncflow-writer", "asyncflow-upkeep"} & set(left)
    async with Runtime(tmp_path / "other"):  # and the home is as good as before
        assert await get_client().read_flow_runs() == []
