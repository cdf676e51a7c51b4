"""Asking for a run of a deployment and waiting for it: from scripts, services and flows, across processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import asyncflow
from asyncflow import (
    FlowRun,
    Runtime,
    TaskRun,
    cancel_flow_run,
    flow,
    get_client,
    resume_flow_run,
    run_deployment,
    task,
    transaction,
)
from asyncflow.exceptions import (
    DeploymentNotFoundError,
    DeploymentParametersError,
    OptionError,
    RunCancelledError,
    RunInterruptedError,
    RunNotFoundError,
    WaitCycleError,
    WaitOnEventLoopError,
)
from asyncflow.stores.memory import MemoryStore
from tests.conftest import Backend
from tests.test_serve import (
    BACKENDS,
    LONG,
    Latch,
    asyncio_only,
    double,
    has_begun,
    has_runs,
    served,
    server,
    serves,
    until,
)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    backend: Backend = request.param
    return backend


@pytest.fixture(params=["memory", "sqlite"])
async def runtime(request: pytest.FixtureRequest, home: Path) -> AsyncIterator[Runtime]:
    async with Runtime(home, store=MemoryStore() if request.param == "memory" else None) as runtime:
        yield runtime


def waiting_on(latch: Latch):  # type: ignore[no-untyped-def]  # a flow of each test's own
    @flow
    async def waiting(n: int = 0) -> int:
        await latch()
        return n

    return waiting


# --- outside of any run --------------------------------------------------------------------


async def test_it_waits_until_the_run_has_ended(runtime: Runtime) -> None:
    async with served(double.to_deployment("plain")) as client:
        run = await run_deployment("double/plain", parameters={"n": 4}, flow_run_name="mine", tags=["t"])
        assert run.state.is_completed()
        assert (run.name, run.tags, run.parameters) == ("mine", ("t",), {"n": 4})
        assert await client.read_result(run.id) == 8
        by_id = await run_deployment((await client.read_deployment("double/plain")).id)
        assert by_id.deployment_id == run.deployment_id


async def test_a_name_that_was_asked_for_is_before_that_of_the_flow(runtime: Runtime) -> None:
    @flow(flow_run_name="number-{n}")
    async def named(n: int) -> None: ...

    async with served(named.to_deployment("x")):
        assert (await run_deployment("named/x", parameters={"n": 1})).name == "number-1"
        assert (await run_deployment("named/x", parameters={"n": 1}, flow_run_name="mine")).name == "mine"


async def test_it_waits_as_long_as_it_is_told(runtime: Runtime) -> None:
    latch = Latch()
    async with served(waiting_on(latch).to_deployment("x")) as client:
        at_once = await run_deployment("waiting/x", timeout=0)
        assert at_once.state.is_scheduled()
        await until(lambda: has_begun(latch, 1))
        begun = time.monotonic()
        soon = await run_deployment("waiting/x", timeout=0.2)
        assert time.monotonic() - begun >= 0.2
        assert not soon.state.is_final()
        latch.is_open = True
        for run in (at_once, soon):
            assert (await client.wait_for_flow_run(run.id, LONG)).state.is_completed()


async def test_a_cancelled_wait_leaves_the_run_alone(runtime: Runtime) -> None:
    latch = Latch()
    async with served(waiting_on(latch).to_deployment("x")) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(run_deployment, "waiting/x")
            await until(lambda: has_begun(latch, 1))
            group.cancel_scope.cancel()
        (run,) = await client.read_flow_runs()
        latch.is_open = True
        assert (await client.wait_for_flow_run(run.id, LONG)).state.is_completed()


async def test_a_run_may_be_asked_for_at_a_time(runtime: Runtime) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.4)
    async with served(double.to_deployment("plain")):
        run = await run_deployment("double/plain", scheduled_time=due)
        assert run.expected_start_time == due
        assert run.start_time is not None
        assert run.start_time >= due
        with pytest.raises(OptionError, match=r"scheduled_time=.*time zone"):
            await run_deployment("double/plain", scheduled_time=datetime(2030, 1, 1))  # noqa: DTZ001


async def test_an_unknown_name_names_what_is_near(runtime: Runtime) -> None:
    async with served(double.to_deployment("plain")) as client:
        with pytest.raises(DeploymentNotFoundError, match=r"'double/plane'.*did you mean 'double/plain'"):
            await run_deployment("double/plane")
        with pytest.raises(DeploymentNotFoundError, match="has been served"):
            await run_deployment("nothing-like-it")
        with pytest.raises(DeploymentParametersError, match=r"m: No such parameter .there are: n., got 3") as caught:
            await run_deployment("double/plain", parameters={"m": 3})
        assert (caught.value.deployment, caught.value.flow) == ("double/plain", "double")
        with pytest.raises(DeploymentParametersError, match="n: Not JSON"):
            await run_deployment("double/plain", parameters={"n": object()})
        with pytest.raises(RunNotFoundError):
            await client.wait_for_flow_run("no id", 0)
        assert await client.read_flow_runs() == []


async def test_nobody_waits_for_the_run_that_it_is_a_part_of(runtime: Runtime) -> None:
    @flow
    async def outer() -> None:
        own = asyncflow.runtime.flow_run.id
        assert own is not None
        await get_client().wait_for_flow_run(own)

    with pytest.raises(WaitCycleError, match="would wait for itself"):
        await outer()


def test_a_script_without_a_loop_asks_for_the_result(home: Path, tmp_path: Path) -> None:
    with Runtime(home), server(home, tmp_path / "notes"):
        for _ in range(2000):
            try:
                run = run_deployment("noted/x", parameters={"n": 5}).result()
                break
            except DeploymentNotFoundError:
                time.sleep(0.01)
        assert run.state.is_completed()
        assert (tmp_path / "notes").read_text() == "5\n"


async def test_on_a_loop_the_result_is_awaited(runtime: Runtime) -> None:
    with pytest.raises(WaitOnEventLoopError, match="await run_deployment"):
        run_deployment("double/plain").result()


@asyncio_only
async def test_another_process_is_asked_and_answers_in_milliseconds(home: Path, tmp_path: Path) -> None:
    async with Runtime(home):
        client = get_client()
        with server(home, tmp_path / "notes"):
            await until(lambda: serves(client, "noted/x"))
            took: list[float] = []
            for n in range(15):
                begun = time.monotonic()
                run = await run_deployment("noted/x", parameters={"n": n})
                took.append(time.monotonic() - begun)
                assert run.state.is_completed()
                assert run.start_time is not None
            # By looking alone it would be half a second on average; the bells of both sides make it milliseconds.
            assert sorted(took)[len(took) // 2] < 0.4


# --- as a part of a flow -------------------------------------------------------------------


async def stand_in_of(run: FlowRun) -> TaskRun:
    client = get_client()
    assert run.parent_task_run_id is not None
    return await client.read_task_run(run.parent_task_run_id)


async def test_in_a_flow_a_task_run_stands_for_it(runtime: Runtime) -> None:
    found: list[FlowRun] = []

    @flow
    async def outer() -> int:
        run = await run_deployment("double/plain", parameters={"n": 2})
        found.append(run)
        return 1

    async with served(double.to_deployment("plain")) as client:
        assert await outer() == 1
        (child,), (parent,) = found, await client.read_flow_runs(flow_name="outer")
        assert child.state.is_completed()
        assert child.parent_flow_run_id == parent.id
        stand_in = await stand_in_of(child)
        assert (stand_in.task_name, stand_in.flow_run_id) == ("double/plain", parent.id)
        assert stand_in.child_flow_run_id == child.id
        assert stand_in.state.state_details.child_flow_run_id == child.id
        states = await client.read_states(stand_in.id)
        names = [state.name for state in states]
        assert names[:3] == ["Pending", "Running", "Scheduled"]
        assert names[-2:] == ["Running", "Completed"]
        again = await client.read_flow_run(child.id)
        assert (again.parent_flow_run_id, again.parent_task_run_id) == (parent.id, stand_in.id)


async def test_a_run_that_fails_is_told_and_does_not_raise(runtime: Runtime) -> None:
    @flow
    async def outer() -> str:
        run = await run_deployment("double/plain", parameters={"n": "many"})
        return run.state.name

    async with served(double.to_deployment("plain")) as client:
        assert await outer() == "Failed"
        (run,) = await client.read_flow_runs(flow_name="double")
        stand_in = await stand_in_of(run)
        assert stand_in.state.is_failed()
        assert stand_in.state.message == run.state.message
        (parent,) = await client.read_flow_runs(flow_name="outer")
        assert parent.state.is_completed()


async def test_it_can_be_cancelled_alone(runtime: Runtime) -> None:
    latch = Latch()
    waiting = waiting_on(latch)

    @flow
    async def outer() -> str:
        return (await run_deployment("waiting/x")).state.name

    async with served(waiting.to_deployment("x")) as client, anyio.create_task_group() as group:
        names: list[str] = []

        async def call() -> None:
            names.append(await outer())

        group.start_soon(call)
        await until(lambda: has_begun(latch, 1))
        (child,) = await client.read_flow_runs(flow_name="waiting")
        assert (await cancel_flow_run(child.id)).is_cancelled()
        await until(lambda: has(names, 1))
        assert names == ["Cancelled"]
        assert (await stand_in_of(child)).state.is_cancelled()
        (parent,) = await client.read_flow_runs(flow_name="outer")
        assert parent.state.is_completed()


async def has(things: list[str], count: int) -> bool:
    return len(things) >= count


@pytest.mark.parametrize("is_begun", [True, False])
async def test_it_is_cancelled_with_the_run_that_asked_for_it(runtime: Runtime, is_begun: bool) -> None:
    latch = Latch()
    waiting = waiting_on(latch)

    @flow
    async def outer() -> None:
        due = datetime.now(UTC) + timedelta(hours=0 if is_begun else 1)
        await run_deployment("waiting/x", scheduled_time=due)

    async with served(waiting.to_deployment("x")) as client:
        future = outer.submit()
        await until(lambda: has_begun(latch, 1) if is_begun else waits(client, "waiting"))
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        (child,) = await client.read_flow_runs(flow_name="waiting")
        assert child.state.is_cancelled()  # before its parent was
        assert "the run that asked for it was cancelled" in (child.state.message or "")
        stand_in = await stand_in_of(child)
        assert stand_in.state.is_cancelled()


async def waits(client: object, flow_name: str) -> bool:
    return bool(await get_client().read_flow_runs(flow_name=flow_name, state="scheduled"))


@asyncio_only
async def test_a_run_of_another_process_is_cancelled_with_the_one_that_asked_for_it(home: Path, tmp_path: Path) -> None:
    @flow
    async def outer() -> None:
        await run_deployment("noted/x", parameters={"n": 1, "seconds": 1000})

    async with Runtime(home):
        client, notes = get_client(), tmp_path / "notes"
        with server(home, notes):
            await until(lambda: serves(client, "noted/x"))
            future = outer.submit()
            await until(lambda: is_there(notes))
            future.cancel()
            with pytest.raises(RunCancelledError):
                await future
            (child,) = await client.read_flow_runs(flow_name="noted")
            assert child.state.is_cancelled()


async def is_there(path: Path) -> bool:
    return path.exists()


async def test_a_run_that_has_the_only_place_does_not_wait_for_another(runtime: Runtime) -> None:
    @flow
    async def alone(n: int) -> None:
        if n:
            await run_deployment("alone/x", parameters={"n": n - 1}, timeout=0)  # it begins when this one has ended
            await run_deployment("alone/x", parameters={"n": n - 1})

    async with served(alone.to_deployment("x", concurrency_limit=1)) as client:
        run = await run_deployment("alone/x", parameters={"n": 1})
        assert run.state.is_failed()
        assert "has the only place there is itself" in (run.state.message or "")
        await until(lambda: has_runs(client, 1))


async def test_one_that_is_no_part_of_the_flow_is_left_alone(runtime: Runtime) -> None:
    latch = Latch()

    @flow
    async def outer() -> None:
        await run_deployment("waiting/x", as_subflow=False)

    async with served(waiting_on(latch).to_deployment("x")) as client:
        future = outer.submit()
        await until(lambda: has_begun(latch, 1))
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        latch.is_open = True
        (child,) = await client.read_flow_runs(flow_name="waiting")
        child = await client.wait_for_flow_run(child.id, LONG)
        assert child.state.is_completed()
        assert child.parent_flow_run_id is child.parent_task_run_id is None


async def test_one_that_is_not_waited_for_any_longer_goes_on_alone(runtime: Runtime) -> None:
    latch = Latch()

    @flow
    async def outer() -> FlowRun:
        return await run_deployment("waiting/x", timeout=0.05)

    async with served(waiting_on(latch).to_deployment("x")) as client:
        child = await outer()
        stand_in = await stand_in_of(child)
        assert (stand_in.state.type.value, stand_in.state.name) == ("COMPLETED", "Detached")
        latch.is_open = True
        assert (await client.wait_for_flow_run(child.id, LONG)).state.is_completed()


async def test_a_flow_that_is_run_again_finds_the_run_it_had_asked_for(home: Path) -> None:
    latch = Latch()
    waiting = waiting_on(latch)
    found: list[FlowRun] = []

    @flow
    async def outer() -> int:
        found.append(await run_deployment("waiting/x", parameters={"n": 1}))
        found.append(await run_deployment("waiting/x", parameters={"n": 1}))  # equal, and a run of its own
        return len(found)

    async with Runtime(home, drain_seconds=0) as runtime, served(waiting.to_deployment("x")) as client:
        future = outer.submit()
        await until(lambda: has_begun(latch, 1))
        (before,) = await client.read_flow_runs(flow_name="waiting")
        future.run.services.intake.is_open = True
    with pytest.raises(RunInterruptedError):
        await future
    latch.is_open = True
    async with Runtime(home, upkeep_seconds=0.2) as runtime:
        assert runtime.services is not None
        async with served(waiting.to_deployment("x")) as client, anyio.create_task_group() as group:
            group.start_soon(resume_flow_run, before.id)  # it was interrupted as well, with its own runtime
            assert await resume_flow_run(future.flow_run_id) == 2
        runs = await client.read_flow_runs(flow_name="waiting")
        assert len(runs) == 2
        assert found[0].id == before.id != found[1].id
        assert all(run.state.is_completed() for run in found)


ASKER = """
import asyncio, sys
from asyncflow import Runtime, flow, run_deployment

@flow
async def asker():
    await run_deployment("noted/x", parameters={"n": 1, "seconds": 1})

async def main():
    async with Runtime(sys.argv[1]):
        await asker()

asyncio.run(main())
"""


@asyncio_only
async def test_a_flow_that_was_killed_while_it_waited_asks_once(home: Path, tmp_path: Path) -> None:
    @flow
    async def asker() -> str:
        return (await run_deployment("noted/x", parameters={"n": 1, "seconds": 1})).state.name

    notes = tmp_path / "notes"
    async with Runtime(home, upkeep_seconds=0.2):
        client = get_client()
        with server(home, notes):
            await until(lambda: serves(client, "noted/x"))
            with subprocess.Popen([sys.executable, "-c", ASKER, str(home)]) as process:
                await until(lambda: is_there(notes))
                process.kill()
                await anyio.to_thread.run_sync(process.wait)
            (killed,) = await client.read_flow_runs(flow_name="asker")
            assert await resume_flow_run(killed.id, flow=asker) == "Completed"
        (run,) = await client.read_flow_runs(flow_name="noted")
        assert run.parent_flow_run_id == killed.id
        assert notes.read_text() == "1\n"


async def test_a_retried_flow_finds_what_is_completed_and_asks_again_for_what_failed(runtime: Runtime) -> None:
    calls = 0

    @flow
    async def flaky(n: int) -> None:
        nonlocal calls
        calls += 1
        if n == 2 and calls <= 2:
            raise ValueError("not yet")

    @flow(retries=1)
    async def outer() -> list[str]:
        runs = [await run_deployment("flaky/x", parameters={"n": n}) for n in (1, 2)]
        if not runs[1].state.is_completed():
            raise ValueError("again")
        return [str(run.id) for run in runs]

    async with served(flaky.to_deployment("x")) as client:
        ids = await outer()
        runs = await client.read_flow_runs(flow_name="flaky")
        assert calls == len(runs) == 3
        assert [str(runs[2].id), str(runs[0].id)] == ids


def test_a_sync_flow_asks_in_its_own_way(home: Path, tmp_path: Path) -> None:
    @task
    def ask(n: int) -> str:
        run = run_deployment("noted/x", parameters={"n": n}).result()
        return run.state.name

    @flow
    def outer() -> list[str]:
        with transaction():
            direct = run_deployment("noted/x", parameters={"n": 1}).result()
        return [direct.state.name, ask(2)]

    with Runtime(home), server(home, tmp_path / "notes"):
        for _ in range(2000):
            if list(anyio.run(get_client().read_deployments)):
                break
            time.sleep(0.01)
        assert outer() == ["Completed", "Completed"]


async def test_the_body_of_a_sync_flow_on_a_loop_asks_too(runtime: Runtime) -> None:
    @flow
    def outer() -> list[str]:
        names = [run_deployment("double/plain").result().state.name]
        run: FlowRun = anyio.from_thread.run(run_deployment, "double/plain")
        return [*names, run.state.name]

    async with served(double.to_deployment("plain")) as client:
        assert await outer.acall() == ["Completed", "Completed"]
        (parent,) = await client.read_flow_runs(flow_name="outer")
        runs = await client.read_flow_runs(flow_name="double")
        assert [run.parent_flow_run_id for run in runs] == [parent.id] * 2


async def test_a_sync_flow_that_is_cancelled_cancels_it(runtime: Runtime) -> None:
    latch = Latch()

    @flow
    def outer() -> None:
        run_deployment("waiting/x").result()

    async with served(waiting_on(latch).to_deployment("x")) as client:
        future = outer.submit()
        await until(lambda: has_begun(latch, 1))
        future.cancel()
        with pytest.raises(RunCancelledError):
            await future
        (child,) = await client.read_flow_runs(flow_name="waiting")
        assert child.state.is_cancelled()
