"""Direct calls: every colour, from every place a program may call from, linked to the run around it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from asyncflow import FlowRun, TaskRun, detached, flow, get_client, runtime, task
from asyncflow.exceptions import RunEndedError, SyncCallOnEventLoopError
from tests.conftest import Backend, RunPython

colour: ContextVar[str] = ContextVar("colour", default="none")


@task
async def add(a: int, b: int = 1) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b


@task
def double(x: int) -> int:
    return 2 * x


@task
async def own_id() -> str:
    return str(runtime.task_run.id)


@task
def own_id_sync() -> str:
    return str(runtime.task_run.id)


@task
def thread_here() -> int:
    return threading.get_ident()


async def tree(run_id: str) -> list[FlowRun | TaskRun]:
    return await get_client().read_tree(run_id)


async def newest_flow() -> FlowRun:
    return (await get_client().read_flow_runs(limit=1))[0]


async def tasks_of(run: FlowRun) -> list[TaskRun]:
    """The task runs of a flow run, oldest first."""
    return (await get_client().read_task_runs(flow_run_id=run.id))[::-1]


# --- async ----------------------------------------------------------------------------------


async def test_an_async_flow_is_awaited_and_recorded() -> None:
    @flow
    async def total(a: int, b: int) -> int:
        return await add(a, b) + await add(a)

    assert await total(1, b=2) == 5
    run = await newest_flow()
    assert run.flow_name == "total"
    assert run.state.is_completed()
    assert run.parameters == {"a": 1, "b": 2}
    assert [(each.task_name, each.state.is_completed()) for each in await tasks_of(run)] == [("add", True)] * 2
    assert await get_client().read_result(run.id) == 5


async def test_a_task_outside_of_any_flow_is_an_outermost_run() -> None:
    run_id = await own_id()
    run = await get_client().read_task_run(run_id)
    assert (run.flow_run_id, run.parent_task_run_id) == (None, None)
    assert run.state.is_completed()


async def test_a_task_called_in_a_task_is_its_child() -> None:
    @task
    async def outer() -> tuple[str, str]:
        return str(runtime.task_run.id), await own_id()

    @flow
    async def holds() -> tuple[str, str]:
        return await outer()

    outer_id, inner_id = await holds()
    inner = await get_client().read_task_run(inner_id)
    assert str(inner.parent_task_run_id) == outer_id
    assert inner.flow_run_id == (await newest_flow()).id
    assert (await get_client().read_task_run(outer_id)).parent_task_run_id is None


async def test_a_call_is_a_coroutine_that_begins_nothing_until_awaited() -> None:
    coroutine = add(1)
    assert inspect.iscoroutine(coroutine)
    coroutine.close()
    assert await get_client().read_task_runs() == []


async def test_nothing_is_current_after_a_call() -> None:
    @flow
    async def main() -> None:
        before = runtime.flow_run.id
        with pytest.raises(ValueError, match="no"):
            await fails()
        assert runtime.flow_run.id == before
        assert runtime.task_run.id is None

    @task
    async def fails() -> None:
        raise ValueError("no")

    await main()
    assert runtime.flow_run.id is None


async def test_return_values_are_the_very_objects() -> None:
    thing = object()

    @task(persist_result=False)
    async def give() -> object:
        return thing

    @flow(persist_result=False)
    async def main() -> object:
        return await give()

    assert await main() is thing
    assert await main.acall() is thing


async def test_a_context_variable_set_in_an_async_body_is_seen_by_its_caller() -> None:
    @task
    async def paint() -> None:
        colour.set("red")

    @flow
    async def main() -> str:
        await paint()
        return colour.get()

    assert await main() == "red"
    assert colour.get() == "red"  # like a plain `await` of a plain function


async def test_a_context_variable_of_the_caller_reaches_every_body() -> None:
    @task
    async def look() -> str:
        return colour.get()

    @task
    def look_sync() -> str:
        return colour.get()

    @flow
    async def main() -> list[str]:
        colour.set("green")
        return [await look(), await look_sync.acall(), await anyio.to_thread.run_sync(look_sync)]

    assert await main() == ["green"] * 3


async def test_the_context_of_a_worker_thread_does_not_leak_back() -> None:
    @task
    def paint() -> None:
        colour.set("red")

    await paint.acall()
    assert colour.get() == "none"


# --- sync bodies from async code ---------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["outermost", "in a flow"])
async def test_a_plain_call_of_a_sync_body_on_a_loop_is_refused_with_the_line_to_write(inside: bool) -> None:
    async def call() -> None:
        with pytest.raises(SyncCallOnEventLoopError) as caught:
            double(2)
        assert "'double' is a plain function" in str(caught.value)
        assert "    await double.acall(...)" in str(caught.value)
        assert caught.value.kind == "task"

    await (flow(name="calls")(call)() if inside else call())
    assert await get_client().read_task_runs() == []


async def test_a_plain_call_of_a_sync_flow_on_a_loop_is_refused() -> None:
    @flow
    def parse() -> None: ...

    with pytest.raises(SyncCallOnEventLoopError, match=r"flow 'parse' is a plain function(.|\n)*await parse\.acall"):
        parse()


async def test_acall_of_a_sync_body_runs_in_a_worker_thread() -> None:
    @flow
    async def main() -> int:
        return await thread_here.acall()

    assert await main() != threading.get_ident()
    assert await thread_here.acall() != threading.get_ident()


async def test_acall_of_an_async_body_runs_on_the_loop() -> None:
    @task
    async def here() -> int:
        return threading.get_ident()

    assert await here.acall() == threading.get_ident()
    assert await add.acall(1, b=2) == 3


async def test_a_sync_task_of_a_sync_flow_runs_on_the_flows_own_thread() -> None:
    @flow
    def main() -> tuple[int, int]:
        return threading.get_ident(), thread_here()

    flow_thread, task_thread = await main.acall()
    assert flow_thread == task_thread != threading.get_ident()
    run = await newest_flow()
    assert [each.task_name for each in await tasks_of(run)] == ["thread_here"]


async def test_anyio_to_thread_links_the_run_to_its_caller() -> None:
    @flow
    async def main() -> list[str]:
        return [await anyio.to_thread.run_sync(own_id_sync) for _ in range(2)]

    ids = await main()
    run = await newest_flow()
    assert [str(each.id) for each in await tasks_of(run)] == ids


async def test_asyncio_to_thread_links_the_run_to_its_caller(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("asyncio.to_thread is asyncio's")

    @flow
    async def main() -> str:
        return await asyncio.to_thread(own_id_sync)

    run_id = await main()
    assert (await get_client().read_task_run(run_id)).flow_run_id == (await newest_flow()).id


async def test_run_in_executor_copies_no_context_so_its_run_is_outermost(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("run_in_executor is asyncio's")

    @flow
    async def main() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, own_id_sync)

    assert (await get_client().read_task_run(await main())).flow_run_id is None


async def test_a_sync_flow_in_a_thread_of_anyio_is_outermost_without_a_flow_around_it() -> None:
    @flow
    def main() -> str:
        own_id_sync()
        return str(runtime.flow_run.id)

    run_id = await anyio.to_thread.run_sync(main)
    assert (await get_client().read_flow_run(run_id)).parent_flow_run_id is None
    assert len(await tree(run_id)) == 2


async def test_a_body_in_our_worker_thread_reaches_the_loop_with_anyio() -> None:
    @task
    def sync_body() -> tuple[str, str, int]:
        return str(runtime.task_run.id), anyio.from_thread.run(own_id), anyio.from_thread.run_sync(threading.get_ident)

    @flow
    async def main() -> tuple[str, str, int]:
        return await sync_body.acall()

    outer, inner, thread = await main()
    assert thread == threading.get_ident()
    assert str((await get_client().read_task_run(inner)).parent_task_run_id) == outer


async def test_a_worker_thread_reaches_the_loop_again_and_again() -> None:
    @task
    def sync_body(n: int) -> int:
        return anyio.from_thread.run(functools.partial(add.fn, n, 1))

    @flow
    async def main() -> list[int]:
        return [await sync_body.acall(n) for n in range(20)]

    assert await main() == list(range(1, 21))


@pytest.mark.parametrize("runner", [asyncio.run, anyio.run], ids=["asyncio.run", "anyio.run on trio"])
async def test_a_body_in_a_worker_thread_may_run_a_loop_of_its_own(runner: Any) -> None:
    @task
    def sync_body() -> str:
        return asyncio.run(own_id()) if runner is asyncio.run else anyio.run(own_id, backend="trio")

    @flow
    async def main() -> str:
        return await sync_body.acall()

    run = await get_client().read_task_run(await main())
    assert run.parent_task_run_id is not None
    assert run.flow_run_id == (await newest_flow()).id


async def test_many_sync_bodies_at_once_each_give_their_own_value() -> None:
    @flow
    async def main() -> list[int]:
        found = [0] * 200

        async def one(index: int) -> None:
            found[index] = await double.acall(index)

        async with anyio.create_task_group() as group:
            for index in range(200):
                group.start_soon(one, index)
        return found

    assert await main() == [2 * index for index in range(200)]
    assert len(await tree(str((await newest_flow()).id))) == 201


async def test_more_sync_bodies_than_threads_wait_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "2")
    lock = threading.Lock()
    now = most = 0

    @task
    def busy() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.001)
        with lock:
            now -= 1

    @flow
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(busy.acall)

    await main()
    assert most <= 2


async def test_a_chain_of_nested_sync_runs_needs_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCFLOW_MAX_THREADS", "1")

    @task
    def down(depth: int) -> int:
        return down(depth - 1) + 1 if depth else 0

    assert await down.acall(30) == 30


# --- without a loop -------------------------------------------------------------------------------


def test_a_sync_flow_runs_on_the_calling_thread_without_a_loop(anyio_backend: Backend) -> None:
    @flow
    def main(x: int) -> tuple[int, list[int]]:
        return double(x), [threading.get_ident(), thread_here()]

    assert main(2) == (4, [threading.get_ident()] * 2)
    run = anyio.run(newest_flow, backend=anyio_backend[0])
    assert run.state.is_completed()
    assert run.parameters == {"x": 2}


def test_a_sync_task_alone_is_an_outermost_run() -> None:
    run_id = own_id_sync()

    async def look() -> TaskRun:
        return await get_client().read_task_run(run_id)

    assert anyio.run(look).flow_run_id is None


def test_a_context_variable_set_in_a_sync_body_is_seen_by_its_caller() -> None:
    @flow
    def main() -> str:
        paint()
        return colour.get()

    @task
    def paint() -> None:
        colour.set("blue")

    assert copy_context().run(main) == "blue"
    assert colour.get() == "none"


def test_a_sync_flow_may_run_a_loop_inside(anyio_backend: Backend) -> None:
    @flow
    def main() -> tuple[str, str]:
        return str(runtime.flow_run.id), anyio.run(own_id, backend=anyio_backend[0])

    flow_run_id, task_run_id = main()

    async def look() -> TaskRun:
        return await get_client().read_task_run(task_run_id)

    assert str(anyio.run(look).flow_run_id) == flow_run_id


def test_a_deep_chain_of_sync_runs() -> None:
    @task
    def down(depth: int) -> int:
        return down(depth - 1) + 1 if depth else 0

    assert down(60) == 60


def test_a_plain_thread_starts_an_outermost_run() -> None:
    found: list[str] = []

    @flow
    def main() -> str:
        thread = threading.Thread(target=lambda: found.append(own_id_sync()))
        thread.start()
        thread.join()
        return found[0]

    run_id = main()

    async def look() -> TaskRun:
        return await get_client().read_task_run(run_id)

    assert anyio.run(look).flow_run_id is None


def test_threads_with_a_copied_context_share_the_parent() -> None:
    @flow
    def main() -> str:
        threads = [threading.Thread(target=copy_context().run, args=(double, n)) for n in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return str(runtime.flow_run.id)

    run_id = main()
    assert len(anyio.run(tree, run_id)) == 31


async def test_a_deep_chain_of_async_runs() -> None:
    @task
    async def down(depth: int) -> int:
        return await down(depth - 1) + 1 if depth else 0

    assert await down(50) == 50


# --- in a fresh process -----------------------------------------------------------------------

SCRIPT = """
import asyncio, sys, threading
from asyncflow import flow, task, runtime, get_client

@task
def part(x):
    return x * 2, threading.current_thread() is threading.main_thread()

@flow
def main(x: int):
    return part(x)

print(main("21"))
print(sorted(each.name for each in threading.enumerate() if each.name.startswith("asyncflow")))
print("asyncio" in sys.modules and asyncio._get_running_loop())
"""


def test_a_plain_script_calls_a_sync_flow(run_python: RunPython) -> None:
    lines = run_python(SCRIPT).stdout.splitlines()
    assert lines == ["(42, True)", "['asyncflow-bell', 'asyncflow-upkeep', 'asyncflow-writer']", "None"]


@pytest.mark.parametrize(
    "start", ["asyncio.run(main(2))", "anyio.run(main, 2)", "anyio.run(main, 2, backend='trio')", "trio.run(main, 2)"]
)
def test_a_plain_script_starts_an_async_flow_in_any_way(start: str, run_python: RunPython) -> None:
    done = run_python(
        f"""
import asyncio, anyio, trio
from asyncflow import flow, task

@task
async def part(x):
    await anyio.sleep(0)
    return x + 1

@task
def sync_part(x):
    return x * 10

@flow
async def main(x: int) -> int:
    return await sync_part.acall(await part(x))

print({start})
"""
    )
    assert done.stdout == "30\n"
    assert done.stderr == ""


def test_a_process_that_ends_right_after_its_flow_has_everything_on_disk(run_python: RunPython, home: Path) -> None:
    run_python(
        """
import os
from asyncflow import flow, task, get_run_logger

@task
def part(x):
    get_run_logger().info("part %d", x)
    return x

@flow
def main():
    get_run_logger().info("begin")
    return [part(x) for x in range(300)]

main()
os._exit(0)
"""
    )

    async def look() -> tuple[int, int]:
        run = await newest_flow()
        assert run.state.is_completed()
        return len(await tree(str(run.id))), len(await get_client().read_logs(run.id, limit=1000))

    assert (home / "asyncflow.db").exists()
    assert anyio.run(look) == (301, 301)


def test_what_is_recorded_after_the_last_barrier_is_written_at_exit(run_python: RunPython) -> None:
    """A hook's log line comes after the final state that the flow waited for."""
    run_python(
        """
from asyncflow import flow, get_run_logger

def late(flow, run, state):
    for number in range(50):
        get_run_logger().info("late %d", number)

@flow(on_completion=[late])
def main():
    return 1

main()
"""
    )

    async def look() -> list[str]:
        run = await newest_flow()
        return [each.message for each in await get_client().read_logs(run.id)]

    assert anyio.run(look) == [f"late {number}" for number in range(50)]


@pytest.mark.parametrize(
    ("last", "state"), [("sys.exit(3)", "CRASHED"), ("raise ValueError('x')", "FAILED"), ("return 1", "COMPLETED")]
)
def test_every_way_out_of_a_script_leaves_a_final_state(last: str, state: str, run_python: RunPython) -> None:
    done = run_python(
        f"""
import sys
from asyncflow import flow, task

@task
def part():
    {last}

@flow
def main():
    part()

main()
""",
        check=False,
    )
    assert done.returncode == {"CRASHED": 3, "FAILED": 1, "COMPLETED": 0}[state]

    async def look() -> list[str]:
        return [each.state.type.value for each in await tree(str((await newest_flow()).id))]

    assert anyio.run(look) == [state, state]


def test_nothing_of_ours_is_in_the_traceback_a_script_prints_but_calls(run_python: RunPython) -> None:
    done = run_python(
        "from asyncflow import flow\n@flow\ndef main():\n    raise ValueError('the reason')\nmain()\n", check=False
    )
    assert done.stderr.rstrip().endswith("ValueError: the reason")
    assert "During handling" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not hasattr(sys, "getandroidapilevel") and sys.platform == "win32", reason="there is no fork")
def test_a_fork_refuses_the_runtime_of_its_parent_and_may_open_its_own(run_python: RunPython) -> None:
    done = run_python(
        """
import os, sys, warnings
warnings.simplefilter("ignore")
import asyncflow
from asyncflow import flow, task, Runtime
from asyncflow.exceptions import ForkedRuntimeError

@task
def part(): return 1

@flow
def main(): return part()

with Runtime("explicit") as opened:
    main()
    pid = os.fork()
    if pid == 0:
        try:
            main()
        except ForkedRuntimeError as error:
            assert str(os.getpid()) in str(error), error
            with Runtime("of the child"):
                assert main() == 1
            sys.exit(7)
        sys.exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert main() == 1
print(os.path.exists("of the child/asyncflow.db"))
"""
    )
    assert done.stdout == "True\n"
    assert done.stderr == ""


def test_a_fork_opens_a_default_runtime_of_its_own(run_python: RunPython) -> None:
    run_python(
        """
import os, sys, warnings
warnings.simplefilter("ignore")
from asyncflow import flow

@flow
def main(who: str): return who

main("parent")
pid = os.fork()
if pid == 0:
    main("child")
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
main("parent again")
"""
    )

    async def look() -> list[Any]:
        return [each.parameters["who"] for each in await get_client().read_flow_runs()]

    assert sorted(anyio.run(look)) == ["child", "parent", "parent again"]


def test_a_fork_inside_a_run_cannot_record_under_it(run_python: RunPython) -> None:
    run_python(
        """
import os, warnings
warnings.simplefilter("ignore")
from asyncflow import flow, task
from asyncflow.exceptions import ForkedRuntimeError

@task
def part(): return 1

@flow
def main():
    pid = os.fork()
    if pid == 0:
        code = 8
        try:
            part()
        except ForkedRuntimeError:
            code = 7
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    return part()

assert main() == 1
"""
    )

    async def look() -> list[str]:
        return [each.state.type.value for each in await tree(str((await newest_flow()).id))]

    assert anyio.run(look) == ["COMPLETED", "COMPLETED"]


# --- detached and ended runs ----------------------------------------------------------------------


async def test_detached_starts_an_outermost_run() -> None:
    @flow
    async def main() -> list[str]:
        with detached():
            assert runtime.flow_run.id is None
            loose = await own_id()
        return [loose, await own_id()]

    loose, linked = await main()
    assert (await get_client().read_task_run(loose)).flow_run_id is None
    assert (await get_client().read_task_run(linked)).flow_run_id == (await newest_flow()).id


async def test_a_flow_does_not_wait_for_a_detached_run() -> None:
    go = anyio.Event()
    ids: list[str] = []

    @task
    async def waits() -> None:
        ids.append(str(runtime.task_run.id))
        await go.wait()

    async def in_background() -> None:
        with detached():
            await waits()

    async with anyio.create_task_group() as group:

        @flow
        async def main() -> int:
            group.start_soon(in_background)
            while not ids:
                await anyio.lowlevel.checkpoint()
            return 1

        assert await main() == 1
        go.set()
    assert (await get_client().read_task_run(ids[0])).state.is_completed()


async def test_a_call_under_a_run_that_has_ended_is_refused_with_the_line_to_write() -> None:
    ended = anyio.Event()
    errors: list[BaseException] = []

    @flow
    async def leaves_something_behind(group: Any) -> None:
        group.start_soon(late)

    async def late() -> None:
        await ended.wait()
        for call in (add(1), nested(), double.acall(1), add(1, return_state=True)):
            try:
                await call
            except RunEndedError as error:
                errors.append(error)

    @flow
    async def nested() -> None: ...

    async with anyio.create_task_group() as group:
        await leaves_something_behind(group)
        ended.set()
    assert len(errors) == 4
    name = (await newest_flow()).name
    assert f"'add' was called under run {name!r}, which is ending or has ended" in str(errors[0])
    assert "with asyncflow.detached():" in str(errors[0])
    assert len(await get_client().read_flow_runs()) == 1
    assert await get_client().read_task_runs() == []


def test_a_sync_call_under_a_run_that_has_ended_is_refused() -> None:
    context = copy_context()

    @flow
    def main() -> None:
        nonlocal context
        context = copy_context()

    main()
    with pytest.raises(RunEndedError, match="'double' was called under run"):
        context.run(double, 1)


async def test_a_flow_waits_for_what_a_foreign_task_still_runs() -> None:
    """The child began under the flow, in a task group outside of it: the flow ends after it."""
    release = anyio.Event()
    began = anyio.Event()
    has_ended = False

    @task
    async def slow() -> None:
        began.set()
        await release.wait()

    @flow
    async def main(group: Any) -> str:
        group.start_soon(slow)
        await began.wait()
        group.start_soon(open_later)
        return str(runtime.flow_run.id)

    async def open_later() -> None:
        with detached():
            await add(1)  # takes until the disk has it
        assert not has_ended
        release.set()

    async with anyio.create_task_group() as group:
        run_id = await main(group)
        has_ended = True
    runs = await tree(run_id)
    assert [each.state.is_completed() for each in runs] == [True, True]
    assert runs[1].end_time is not None
    assert runs[0].end_time is not None
    assert runs[1].end_time <= runs[0].end_time


# --- calling wrongly --------------------------------------------------------------------------------


async def test_a_call_that_does_not_match_the_signature_is_a_type_error_before_any_run() -> None:
    @flow
    async def main(a: int, *, b: int) -> None: ...

    with pytest.raises(TypeError, match=r"main\(\) missing 1 required positional argument: 'a'"):
        main(b=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        await main(1, b=2, c=3, return_state=True)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        await main.acall(1, 2, b=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="missing 1 required"):
        add()  # type: ignore[call-overload]
    assert await get_client().read_flow_runs() == []
    assert await get_client().read_task_runs() == []


def test_a_sync_call_that_does_not_match_the_signature_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="double"):
        double()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="double"):
        double(1, 2, return_state=True)


async def test_positional_only_keyword_only_and_starred_arguments_reach_the_body() -> None:
    @flow
    async def main(a: int, /, b: int, *rest: int, c: int, d: int = 4, **more: int) -> tuple[Any, ...]:
        return a, b, rest, c, d, more

    assert await main(1, 2, 3, 4, c=5, a=6) == (1, 2, (3, 4), 5, 4, {"a": 6})
    assert (await newest_flow()).parameters == {"a": 1, "b": 2, "rest": [3, 4], "c": 5, "d": 4, "more": {"a": 6}}


async def test_a_task_takes_what_it_is_given() -> None:
    class Client: ...

    @task(persist_result=False)
    async def uses(client: Client, number: int) -> tuple[Any, Any]:
        return client, number

    client = Client()
    assert await uses(client, "3") == (client, "3")  # type: ignore[call-overload]
