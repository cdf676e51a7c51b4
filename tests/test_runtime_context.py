"""`asyncflow.runtime.flow_run` and `task_run`: about the run that the executing code belongs to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.to_thread
import pytest

import asyncflow
from asyncflow import FlowRun, flow, get_client, runtime, tags, task


def about(context: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(context, name) for name in names}


BOTH = ("id", "name", "parameters", "tags", "run_count", "start_time", "scheduled_start_time", "parent_task_run_id")
FLOW = (*BOTH, "flow_name", "flow_version", "parent_flow_run_id", "root_flow_run_id")
TASK = (*BOTH, "task_name", "flow_run_id")


async def newest() -> FlowRun:
    return (await get_client().read_flow_runs(limit=1))[0]


def test_outside_of_any_run_there_is_nothing() -> None:
    empty = {"parameters": {}, "tags": [], "run_count": 0}
    assert about(runtime.flow_run, *FLOW) == {name: empty.get(name) for name in FLOW}
    assert about(runtime.task_run, *TASK) == {name: empty.get(name) for name in TASK}
    assert "of no run" in repr(runtime.flow_run)
    with pytest.raises(AttributeError):
        runtime.flow_run.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert asyncflow.runtime is runtime


async def test_a_flow_knows_itself() -> None:
    @flow(version="v2", flow_run_name="run-{x}")
    async def main(x: int, *rest: int, y: str = "d") -> dict[str, Any]:
        return about(runtime.flow_run, *FLOW) | {"task": runtime.task_run.id}

    before = datetime.now(UTC)
    with tags("b", "a"):
        seen = await main("1", 2)  # type: ignore[call-overload]
    run = await newest()
    assert seen == {
        "id": run.id,
        "name": "run-1",
        "parameters": {"x": 1, "rest": (2,), "y": "d"},
        "tags": ["a", "b"],
        "run_count": 1,
        "start_time": run.start_time,
        "scheduled_start_time": run.created,
        "flow_name": "main",
        "flow_version": "v2",
        "parent_flow_run_id": None,
        "parent_task_run_id": None,
        "root_flow_run_id": run.id,
        "task": None,
    }
    assert before.replace(microsecond=0) <= run.created <= datetime.now(UTC)


async def test_a_task_knows_itself_and_its_flow() -> None:
    @task(tags=["t"])
    async def part(a: Any, b: int = 2) -> dict[str, Any]:
        return about(runtime.task_run, *TASK) | {"flow": runtime.flow_run.id, "flow_name": runtime.flow_run.name}

    @flow(persist_result=False)
    async def main() -> dict[str, Any]:
        return await part("1")

    seen = await main()
    run, task_run = await newest(), (await get_client().read_task_runs())[0]
    assert seen == {
        "id": task_run.id,
        "name": task_run.name,
        "parameters": {"a": "1", "b": 2},
        "tags": ["t"],
        "run_count": 1,
        "start_time": task_run.start_time,
        "scheduled_start_time": task_run.created,
        "task_name": "part",
        "flow_run_id": run.id,
        "parent_task_run_id": None,
        "flow": run.id,
        "flow_name": run.name,
    }


async def test_nested_runs_know_those_above_them() -> None:
    seen: dict[str, dict[str, Any]] = {}

    @task
    async def leaf() -> None:
        seen["leaf"] = about(runtime.task_run, *TASK)
        seen["leaf's flow"] = about(runtime.flow_run, *FLOW)

    @flow
    async def inner() -> None:
        assert runtime.task_run.id is None  # the task above belongs to another flow
        seen["inner"] = about(runtime.flow_run, *FLOW)
        await leaf()

    @task
    async def middle() -> None:
        seen["middle"] = about(runtime.task_run, *TASK)
        await inner()
        assert runtime.task_run.id == seen["middle"]["id"]
        await last()

    @task
    async def last() -> None:
        seen["last"] = about(runtime.task_run, *TASK)

    @flow
    async def outer() -> None:
        seen["outer"] = about(runtime.flow_run, *FLOW)
        await middle()

    await outer()
    outer_id, inner_id = seen["outer"]["id"], seen["inner"]["id"]
    assert seen["inner"]["parent_flow_run_id"] == outer_id
    assert seen["inner"]["root_flow_run_id"] == outer_id
    assert seen["leaf's flow"] == seen["inner"]
    assert (seen["leaf"]["flow_run_id"], seen["leaf"]["parent_task_run_id"]) == (inner_id, None)
    assert (seen["last"]["flow_run_id"], seen["last"]["parent_task_run_id"]) == (outer_id, seen["middle"]["id"])
    stand_in = await get_client().read_task_run(seen["inner"]["parent_task_run_id"])
    assert stand_in.child_flow_run_id == inner_id
    assert stand_in.parent_task_run_id == seen["middle"]["id"]


async def test_worker_threads_task_groups_and_helpers_see_the_run() -> None:
    seen: list[Any] = []

    def look() -> None:
        seen.append((runtime.flow_run.id, runtime.task_run.name))

    async def look_async() -> None:
        look()

    @task
    def sync_part() -> None:
        look()

    @flow
    async def main() -> Any:
        look()
        await anyio.to_thread.run_sync(look)
        async with anyio.create_task_group() as group:
            group.start_soon(look_async)
        await sync_part.acall()
        return runtime.flow_run.id

    run_id = await main()
    assert [each for each, _ in seen] == [run_id] * 4
    assert [name is None for _, name in seen] == [True, True, True, False]


async def test_the_run_count_follows_the_attempts() -> None:
    seen: list[int] = []

    @flow(retries=2)
    async def main() -> None:
        seen.append(runtime.flow_run.run_count)
        await part(return_state=True)
        raise ValueError

    @task(retries=1)
    async def part() -> None:
        seen.append(runtime.task_run.run_count * 10)
        raise ValueError

    await main(return_state=True)
    assert seen == [1, 10, 20, 2, 30, 40, 3, 50, 60]  # the same task run: its attempts are counted on


async def test_what_a_caller_does_to_the_parameters_it_was_shown_stays_with_it() -> None:
    @flow
    async def main(x: int) -> dict[str, Any]:
        runtime.flow_run.parameters["x"] = 99
        return runtime.flow_run.parameters

    assert await main(1) == {"x": 1}


def test_a_sync_flow_knows_itself_and_its_tasks_know_it() -> None:
    @task
    def part() -> Any:
        return runtime.task_run.flow_run_id

    @flow
    def main() -> bool:
        return bool(part() == runtime.flow_run.id is not None)

    assert main()
