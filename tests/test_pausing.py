"""Pausing live runs, as the engine does it: nothing more of a held run begins, and what is suspended can go on."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncflow import Runtime, flow, get_client, resume_flow_run, runtime, task
from asyncflow._backend.detect import host_here
from asyncflow._engine.pausing import Pause, begin_pause, end_pause, hold, release, suspend, wait_in_pause
from asyncflow._run import Run
from asyncflow.context import current_run
from asyncflow.exceptions import RunCancelledError, RunSuspendedError

pytestmark = pytest.mark.anyio


def live_run() -> Run:
    run = current_run.get()
    assert run is not None
    return run


async def names_of(run_id: Any) -> list[str]:
    return [state.name for state in await get_client().read_states(run_id)]


async def test_nothing_begins_while_a_run_is_held(home: Path) -> None:
    begun: list[int] = []
    runs: list[Run] = []
    ready, go_on = anyio.Event(), anyio.Event()

    @task
    async def work(x: int) -> int:
        begun.append(x)
        return x

    @flow
    async def pipeline() -> list[int]:
        runs.append(live_run())
        first = await work(1)
        ready.set()
        await go_on.wait()
        return [first, await work(2), *await work.map([3, 4])]

    async with Runtime(home):
        future = pipeline.submit()
        await ready.wait()
        assert hold(runs[0])
        assert hold(runs[0])  # again: it stays held
        go_on.set()
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert begun == [1]
        assert future.state.is_paused()
        assert not future.done()
        assert release(runs[0])
        assert not release(runs[0])
        assert await future == [1, 2, 3, 4]
        assert await names_of(future.flow_run_id) == ["Pending", "Running", "Paused", "Running", "Completed"]


async def test_a_held_run_whose_body_ends_completes(home: Path) -> None:
    runs: list[Run] = []
    ready, go_on = anyio.Event(), anyio.Event()

    @flow
    async def pipeline() -> None:
        runs.append(live_run())
        ready.set()
        await go_on.wait()

    async with Runtime(home):
        future = pipeline.submit()
        await ready.wait()
        hold(runs[0])
        go_on.set()
        await future
        assert await names_of(future.flow_run_id) == ["Pending", "Running", "Paused", "Completed"]
        services = runs[0].services
        assert not services.held


async def test_a_held_run_can_be_cancelled_with_those_that_wait(home: Path) -> None:
    runs: list[Run] = []
    ready, go_on = anyio.Event(), anyio.Event()

    @task
    async def work(x: int) -> int:
        return x

    @flow
    async def pipeline() -> int:
        runs.append(live_run())
        ready.set()
        await go_on.wait()
        waiting = work.submit(1)
        await work(2)
        return await waiting

    async with Runtime(home):
        future = pipeline.submit()
        await ready.wait()
        hold(runs[0])
        go_on.set()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        tasks = await get_client().read_task_runs(flow_run_id=future.flow_run_id)
        assert [each.state.name for each in tasks] == ["Cancelled", "Cancelled"]


async def test_a_sync_flow_is_held_at_its_next_task(home: Path) -> None:
    begun: list[int] = []
    runs: list[Run] = []
    ready, go_on = Event(), Event()

    @task
    def work(x: int) -> None:
        begun.append(x)

    @flow
    def pipeline() -> None:
        runs.append(live_run())
        ready.set()
        go_on.wait(10)
        work(1)

    async with Runtime(home):
        future = pipeline.submit()
        await anyio.to_thread.run_sync(ready.wait, 10)
        hold(runs[0])
        go_on.set()
        while not runs[0].children:  # the call has come as far as the gate
            await anyio.lowlevel.checkpoint()
        assert not begun
        release(runs[0])
        await future
        assert begun == [1]


async def test_a_body_waits_in_a_pause(home: Path) -> None:
    pauses: list[Pause] = []
    paused = anyio.Event()

    @flow
    async def pipeline() -> Any:
        run = live_run()
        pause = Pause("approval", int)
        begin_pause(run, pause, {"pause_key": "approval"})
        pauses.append(pause)
        paused.set()
        try:
            assert await wait_in_pause(pause, host_here(run.services.clock), run, None)
        finally:
            end_pause(run, pause)
        assert runtime.flow_run.id is not None
        return pause.answer

    async with Runtime(home):
        future = pipeline.submit()
        await paused.wait()
        assert future.state.is_paused()
        assert future.state.state_details.pause_key == "approval"
        pauses[0].resume(pauses[0].accept("3"))
        pauses[0].resume(4)  # too late
        assert await future == 3
        states = await get_client().read_states(future.flow_run_id)
        assert [state.name for state in states] == ["Pending", "Running", "Paused", "Running", "Completed"]
        assert states[2].state_details.pause_key == "approval"


async def test_a_suspended_run_goes_on_where_it_was(home: Path) -> None:
    done: list[str] = []
    runs: list[Run] = []

    @task
    async def work(name: str) -> str:
        done.append(name)
        return name

    @flow
    async def inner() -> str:
        return await work("inner")

    @flow
    async def pipeline() -> list[str]:
        first = [await work("first"), await inner()]
        if not runs:
            run = live_run()
            runs.append(run)
            suspend(run, "until somebody says so", {"pause_key": "1"})
            await anyio.sleep_forever()
        return [*first, await work("second")]

    async with Runtime(home):
        with pytest.raises(RunSuspendedError, match="until somebody says so"):
            await pipeline()
        (recorded,) = await get_client().read_flow_runs(flow_name="pipeline")
        assert (recorded.state.name, recorded.state.type.name) == ("Suspended", "PAUSED")
        assert recorded.state.state_details.pause_key == "1"
        assert await resume_flow_run(recorded.id, flow=pipeline) == ["first", "inner", "second"]
        assert done == ["first", "inner", "second"]


async def test_a_paused_run_is_interrupted_with_its_runtime(home: Path) -> None:
    paused = anyio.Event()

    @flow
    async def pipeline() -> None:
        run = live_run()
        pause = Pause("approval", int)
        begin_pause(run, pause, {"pause_key": "approval"})
        paused.set()
        try:
            await wait_in_pause(pause, host_here(run.services.clock), run, None)
        finally:
            end_pause(run, pause)

    async with Runtime(home, drain_seconds=0):
        future = pipeline.submit()
        await paused.wait()
    assert future.state.name == "Interrupted"
    async with Runtime(home):
        names = await names_of(future.flow_run_id)
        assert names == ["Pending", "Running", "Paused", "Interrupted"]
