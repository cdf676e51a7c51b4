"""Runs inside runs: nested flows with the task run that stands for each, and everything that runs side by side."""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from asyncflow import FlowRun, State, TaskRun, flow, get_client, runtime, task
from asyncflow.runtime import HOME
from asyncflow.states import Completed

label: ContextVar[str] = ContextVar("label", default="")


@task
async def add(a: int, b: int = 1) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b


@task
def own_id_sync() -> str:
    return str(runtime.task_run.id)


@flow
async def child(x: int = 0) -> UUID | None:
    await add(x)
    return runtime.flow_run.id


@flow
async def lookup() -> str:
    return label.get()


async def tree(run_id: UUID | str | None) -> list[FlowRun | TaskRun]:
    assert run_id is not None
    return await get_client().read_tree(run_id)


async def flow_run(run_id: UUID | str | None) -> FlowRun:
    assert run_id is not None
    return await get_client().read_flow_run(run_id)


async def stand_in_of(run: FlowRun) -> TaskRun:
    assert run.parent_task_run_id is not None
    return await get_client().read_task_run(run.parent_task_run_id)


async def newest(name: str) -> FlowRun:
    return (await get_client().read_flow_runs(flow_name=name, limit=1))[0]


# --- the task run that stands for a nested flow ------------------------------------------------------


async def test_a_nested_flow_is_a_flow_run_and_a_task_run_that_stands_for_it() -> None:
    @flow
    async def parent() -> tuple[UUID | None, UUID | None]:
        return runtime.flow_run.id, await child(3)

    parent_id, child_id = await parent()
    run = await flow_run(child_id)
    stand_in = await stand_in_of(run)
    assert run.parent_flow_run_id == parent_id
    assert stand_in.child_flow_run_id == run.id
    assert stand_in.flow_run_id == parent_id
    assert stand_in.parent_task_run_id is None
    assert stand_in.task_name == run.flow_name == "child"
    # both links, on the states as well
    assert run.state.state_details.parent_task_run_id == stand_in.id
    assert stand_in.state.state_details.child_flow_run_id == run.id
    assert stand_in.state.state_details.task_run_id == stand_in.id
    assert run.state.state_details.flow_run_id == run.id


async def test_the_tree_of_a_nested_flow_is_in_the_order_things_began() -> None:
    @flow
    async def parent() -> UUID | None:
        await add(0)
        await child(3)
        await add(4)
        return runtime.flow_run.id

    runs = await tree(await parent())
    assert [
        type(each).__name__ + ":" + getattr(each, "task_name", getattr(each, "flow_name", "")) for each in runs
    ] == [
        "FlowRun:parent",
        "TaskRun:add",
        "TaskRun:child",
        "FlowRun:child",
        "TaskRun:add",
        "TaskRun:add",
    ]


def shown(states: list[State[Any]]) -> list[tuple[str, str, str | None]]:
    return [(state.type.value, state.name, state.message) for state in states]


@pytest.mark.parametrize("how", ["completed", "skipped", "failed", "retried", "invalid"])
async def test_the_stand_in_mirrors_the_states_of_its_flow(how: str) -> None:
    calls = 0

    @flow(retries=1 if how == "retried" else 0)
    async def inner(x: int) -> Any:
        nonlocal calls
        calls += 1
        if how == "failed" or (how == "retried" and calls == 1):
            raise ValueError("because")
        return Completed("nothing to do", name="Skipped") if how == "skipped" else x

    @flow
    async def parent() -> UUID | None:
        await inner("bad" if how == "invalid" else 1, return_state=True)
        return runtime.flow_run.id

    run_id = await parent()
    run = (await get_client().read_flow_runs(parent=run_id))[0]
    stand_in = await stand_in_of(run)
    client = get_client()
    states, mirrored = await client.read_states(run.id), await client.read_states(stand_in.id)
    assert shown(states) == shown(mirrored)
    assert [state.timestamp for state in states] == [state.timestamp for state in mirrored]
    assert not {state.id for state in states} & {state.id for state in mirrored}
    assert stand_in.run_count == run.run_count
    expected = {
        "completed": ["Pending", "Running", "Completed"],
        "skipped": ["Pending", "Running", "Skipped"],
        "failed": ["Pending", "Running", "Failed"],
        "retried": ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"],
        "invalid": ["Pending", "Failed"],
    }
    assert [state.name for state in states] == expected[how]


async def test_a_flow_in_a_task_in_a_flow_is_linked_to_each() -> None:
    @task
    async def middle() -> tuple[UUID | None, UUID | None]:
        return runtime.task_run.id, await child()

    @flow
    async def parent() -> tuple[Any, ...]:
        return runtime.flow_run.id, *(await middle())

    parent_id, middle_id, child_id = await parent()
    run = await flow_run(child_id)
    stand_in = await stand_in_of(run)
    assert run.parent_flow_run_id == parent_id
    assert stand_in.parent_task_run_id == middle_id
    assert stand_in.flow_run_id == parent_id
    inner = (await get_client().read_task_runs(flow_run_id=run.id))[0]
    assert (inner.flow_run_id, inner.parent_task_run_id) == (child_id, None)


async def test_a_flow_in_a_task_outside_of_any_flow_has_no_parent_flow() -> None:
    @task
    async def outer() -> tuple[UUID | None, UUID | None]:
        return runtime.task_run.id, await child()

    outer_id, child_id = await outer()
    run = await flow_run(child_id)
    assert run.parent_flow_run_id is None
    assert (await stand_in_of(run)).parent_task_run_id == outer_id
    assert len(await tree(outer_id)) == 4


async def test_flows_nested_three_deep() -> None:
    @flow
    async def middle() -> tuple[UUID | None, UUID | None]:
        return runtime.flow_run.id, await child()

    @flow
    async def top() -> tuple[Any, ...]:
        return runtime.flow_run.id, *(await middle())

    top_id, middle_id, child_id = await top()
    assert (await flow_run(child_id)).parent_flow_run_id == middle_id
    assert (await flow_run(middle_id)).parent_flow_run_id == top_id
    assert (await flow_run(top_id)).parent_task_run_id is None
    assert len(await tree(top_id)) == 1 + 2 + 2 + 1


async def test_the_folder_of_results_is_the_outermost_flows_alone(home: Any) -> None:
    @flow
    async def parent() -> UUID | None:
        await child()
        return runtime.flow_run.id

    run_id = await parent()
    await anyio.to_thread.run_sync(HOME.close_default)  # the files for people follow the commit
    assert [each.name for each in (home / "results").iterdir()] == [str(run_id)]


async def test_the_exception_of_a_nested_flow_reaches_its_parent_as_it_is() -> None:
    error = LookupError("deep")

    @flow
    async def inner() -> None:
        raise error

    @flow
    async def handles() -> str:
        try:
            await inner()
        except LookupError as caught:
            return "handled" if caught is error else "another"
        return "not raised"

    assert await handles() == "handled"
    assert (await newest("inner")).state.is_failed()
    assert (await newest("handles")).state.is_completed()


async def test_a_task_that_failed_does_not_fail_a_flow_that_handled_it() -> None:
    @task
    async def fails() -> None:
        raise ValueError

    @flow
    async def main() -> list[str]:
        states = [await fails(return_state=True), await add(1, return_state=True)]
        return [state.type.value for state in states]

    assert await main() == ["FAILED", "COMPLETED"]


# --- sync -----------------------------------------------------------------------------------------


def test_sync_flows_nest_on_one_thread() -> None:
    @flow
    def inner() -> tuple[str, str]:
        return str(runtime.flow_run.id), own_id_sync()

    @task
    def between() -> tuple[str, str]:
        return inner()

    @flow
    def parent() -> tuple[Any, ...]:
        return str(runtime.flow_run.id), *between()

    parent_id, inner_id, task_id = parent()

    async def look() -> tuple[FlowRun, TaskRun, TaskRun]:
        run = await flow_run(inner_id)
        return run, await stand_in_of(run), await get_client().read_task_run(task_id)

    run, stand_in, task_run = anyio.run(look)
    assert str(run.parent_flow_run_id) == parent_id
    assert stand_in.child_flow_run_id == run.id
    assert str(stand_in.flow_run_id) == parent_id
    assert task_run.flow_run_id == run.id


async def test_a_sync_flow_nests_in_an_async_one_and_an_async_task_in_that() -> None:
    @flow
    def inner() -> tuple[str, int]:
        return str(runtime.flow_run.id), anyio.from_thread.run(add, 1)

    @flow
    async def parent() -> tuple[Any, ...]:
        return str(runtime.flow_run.id), *(await inner.acall())

    parent_id, inner_id, value = await parent()
    assert value == 2
    run = await flow_run(inner_id)
    assert str(run.parent_flow_run_id) == parent_id
    assert (await get_client().read_task_runs(flow_run_id=inner_id))[0].task_name == "add"


# --- side by side ------------------------------------------------------------------------------------


async def assert_children(run_id: UUID | None, flows: int, tasks: int) -> None:
    nested = await get_client().read_flow_runs(parent=run_id)
    assert len(nested) == flows
    of_flow = await get_client().read_task_runs(flow_run_id=run_id)
    assert len(of_flow) == flows + tasks
    assert {each.child_flow_run_id for each in of_flow if each.child_flow_run_id} == {each.id for each in nested}
    assert all(each.state.is_completed() for each in await tree(run_id))


async def test_an_anyio_task_group_runs_tasks_and_flows_side_by_side() -> None:
    barrier = Barrier(10)

    @task
    async def meet_in_task() -> None:
        await barrier.wait()

    @flow
    async def meet_in_flow() -> None:
        await barrier.wait()

    @flow
    async def parent() -> UUID | None:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(meet_in_task)
                group.start_soon(meet_in_flow)
        return runtime.flow_run.id

    await assert_children(await parent(), flows=5, tasks=5)


class Barrier:
    """Lets go when all have come: passed only by those that run at the same time."""

    def __init__(self, parties: int) -> None:
        self._left = parties
        self._open = anyio.Event()

    async def wait(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._open.set()
        await self._open.wait()


async def test_gather_runs_tasks_and_flows_side_by_side(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("gather is asyncio's")
    barrier = Barrier(6)

    @task
    async def meet(x: int) -> int:
        await barrier.wait()
        return x

    @flow
    async def meet_in_flow(x: int) -> int:
        await barrier.wait()
        return x

    @flow
    async def parent() -> UUID | None:
        assert await asyncio.gather(*map(meet, range(3)), *map(meet_in_flow, range(3))) == [0, 1, 2] * 2
        return runtime.flow_run.id

    await assert_children(await parent(), flows=3, tasks=3)


async def test_an_asyncio_task_group_runs_tasks_and_flows_side_by_side(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("this TaskGroup is asyncio's")

    @flow
    async def parent() -> UUID | None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(add(n)) for n in range(4)]
            flows = [group.create_task(child(n)) for n in range(4)]
        assert [each.result() for each in tasks] == [1, 2, 3, 4]
        assert len({each.result() for each in flows}) == 4
        return runtime.flow_run.id

    await assert_children(await parent(), flows=4, tasks=4)


async def test_a_trio_nursery_runs_tasks_and_flows_side_by_side(anyio_backend_name: str) -> None:
    if anyio_backend_name != "trio":
        pytest.skip("nurseries are trio's")

    @flow
    async def parent() -> UUID | None:
        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(add, n)
                nursery.start_soon(child, n)
        return runtime.flow_run.id

    await assert_children(await parent(), flows=4, tasks=4)


async def test_gather_with_return_exceptions_keeps_order_and_states(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("gather is asyncio's")

    @task
    async def odd(x: int) -> int:
        if x % 2:
            raise ValueError(x)
        return x

    @flow
    async def parent() -> list[Any]:
        found = await asyncio.gather(*map(odd, range(4)), return_exceptions=True)
        return [repr(each) for each in found]

    assert await parent() == ["0", "ValueError(1)", "2", "ValueError(3)"]
    run = await newest("parent")
    states = [each.state.type.value for each in await get_client().read_task_runs(flow_run_id=run.id)]
    assert sorted(states) == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]


async def test_a_failure_in_a_task_group_ends_the_flow_with_the_group() -> None:
    never = anyio.Event()

    @task
    async def fails() -> None:
        raise ValueError("one")

    @task
    async def waits() -> None:
        await never.wait()

    @flow
    async def parent() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            group.start_soon(fails)

    with pytest.raises(ExceptionGroup) as caught:
        await parent()
    assert isinstance(caught.value.exceptions[0], ValueError)
    run = await newest("parent")
    assert run.state.message == "ValueError: one"  # the record names the single leaf
    states = {each.task_name: each.state.type.value for each in await get_client().read_task_runs(flow_run_id=run.id)}
    assert states == {"fails": "FAILED", "waits": "CANCELLED"}


async def test_many_children_at_once_are_all_recorded() -> None:
    @flow
    async def parent() -> UUID | None:
        async with anyio.create_task_group() as group:
            for n in range(1000):
                group.start_soon(add, n)
        return runtime.flow_run.id

    run_id = await parent()
    runs = await tree(run_id)
    assert len(runs) == 1001
    assert all(each.state.is_completed() for each in runs)


async def test_many_outermost_flows_at_once_do_not_mix() -> None:
    ids: dict[int, UUID | None] = {}

    @flow
    async def one(x: int) -> None:
        await add(x)
        ids[x] = runtime.flow_run.id
        assert runtime.flow_run.parameters == {"x": x}

    async with anyio.create_task_group() as group:
        for x in range(50):
            group.start_soon(one, x)
    assert len(set(ids.values())) == 50
    for x in (0, 49):
        runs = await tree(ids[x])
        assert len(runs) == 2
        assert isinstance(runs[0], FlowRun)
        assert runs[0].parameters == {"x": x}


async def test_each_of_many_children_sees_its_own_context() -> None:
    @flow
    async def parent() -> list[str]:
        found: list[str] = []

        async def one(name: str) -> None:
            label.set(name)
            found.append(await lookup())

        async with anyio.create_task_group() as group:
            for n in range(10):
                group.start_soon(one, str(n))
        assert label.get() == ""
        return sorted(found)

    assert await parent() == [str(n) for n in range(10)]


async def test_runs_side_by_side_restore_the_current_run_whatever_their_order() -> None:
    first_began, second_began, first_may_end = anyio.Event(), anyio.Event(), anyio.Event()
    seen: list[tuple[UUID | None, UUID | None]] = []

    @flow
    async def first() -> None:
        before = runtime.flow_run.id
        first_began.set()
        await first_may_end.wait()
        seen.append((before, runtime.flow_run.id))

    @flow
    async def second() -> None:
        await first_began.wait()
        before = runtime.flow_run.id
        second_began.set()
        first_may_end.set()
        await anyio.lowlevel.checkpoint()
        seen.append((before, runtime.flow_run.id))

    @flow
    async def parent() -> None:
        before = runtime.flow_run.id
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            group.start_soon(second)
        assert runtime.flow_run.id == before

    await parent()
    assert len(seen) == 2
    assert all(before == after for before, after in seen)
    assert seen[0][0] != seen[1][0]


async def test_a_child_is_recorded_before_its_parent_ends() -> None:
    @flow
    async def parent() -> UUID | None:
        async with anyio.create_task_group() as group:
            for n in range(5):
                group.start_soon(child, n)
        return runtime.flow_run.id

    runs = await tree(await parent())
    ends = {each.id: each.end_time for each in runs}
    assert all(end is not None and end <= (runs[0].end_time or end) for end in ends.values())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="CPython 3.11 has no eager tasks")
def test_eager_tasks_that_end_at_once_are_recorded() -> None:
    @task
    async def at_once(x: int) -> int:
        return x

    @flow
    async def parent() -> list[int]:
        asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])  # CPython 3.12 has it
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(at_once(n)) for n in range(20)]
        return [each.result() for each in tasks]

    assert asyncio.run(parent()) == list(range(20))
    run = anyio.run(newest, "parent")
    assert len(anyio.run(tree, run.id)) == 21
