"""Hooks: which run when, with what, in which order, on which thread; and that one that raises changes nothing."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any

import anyio
import pytest

from asyncflow import FlowRun, State, TaskRun, detached, flow, get_client, get_run_logger, runtime, task
from asyncflow.exceptions import OptionError
from asyncflow.states import Cancelled, Completed, Crashed
from tests.conftest import RunPython

Seen = list[tuple[str, str]]

ALL = ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")


def recorders(seen: Seen) -> dict[str, Any]:
    """One hook for each option, which notes its option and the state it was given."""

    def make(option: str) -> Any:
        def hook(declared: Any, run: Any, state: State[Any]) -> None:
            seen.append((option, state.name))

        return [hook]

    return {option: make(option) for option in ALL}


@pytest.mark.parametrize("kind", [flow, task])
@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda: 1, ("on_completion", "Completed")),
        (lambda: Completed(name="Skipped"), ("on_completion", "Skipped")),
        (lambda: 1 // 0, ("on_failure", "Failed")),
        (lambda: Cancelled("by hand"), ("on_cancellation", "Cancelled")),
        (lambda: Crashed("by hand"), ("on_crashed", "Crashed")),
        (lambda: sys.exit(1), ("on_crashed", "Crashed")),
    ],
    ids=["value", "state", "exception", "cancelled", "crashed", "exit"],
)
async def test_the_hooks_of_the_state_that_was_reached_run(kind: Any, colour: str, end: Any, expected: Any) -> None:
    seen: Seen = []

    async def body() -> Any:
        return end()

    def sync_body() -> Any:
        return end()

    declared = kind(name="main", **recorders(seen))(body if colour == "async" else sync_body)
    with contextlib.suppress(SystemExit):
        await declared.acall(return_state=True)
    assert seen == [("on_running", "Running"), expected]


async def test_a_hook_gets_the_declaration_the_run_and_the_state() -> None:
    given: list[tuple[Any, Any, Any]] = []

    @flow(on_completion=[lambda *args: given.append(args)], on_running=[lambda *args: given.append(args)])
    async def main(x: int) -> int:
        return x + await part(x)

    @task(on_completion=[lambda *args: given.append(args)])
    async def part(x: int) -> int:
        return x

    state = await main(2, return_state=True)
    running, of_task, completed = given
    assert running[0] is completed[0] is main
    assert of_task[0] is part
    assert isinstance(running[1], FlowRun)
    assert isinstance(of_task[1], TaskRun)
    assert running[1].parameters == {"x": 2}
    assert running[2].is_running()
    assert completed[2] == completed[1].state == state
    assert completed[2].result() == 4
    recorded = (await get_client().read_flow_runs())[0]
    assert completed[1].id == recorded.id
    assert completed[1].name == recorded.name
    assert completed[1].end_time == recorded.end_time
    assert of_task[1].flow_run_id == recorded.id


async def test_a_failure_hook_sees_the_exception() -> None:
    given: list[State[Any]] = []
    error = ValueError("why")

    @task(on_failure=[lambda _, __, state: given.append(state)])
    async def part() -> None:
        raise error

    with pytest.raises(ValueError, match="why"):
        await part()
    assert given[0].data is error
    assert given[0].message == "ValueError: why"


async def test_sync_and_async_hooks_run_in_the_order_given() -> None:
    seen: list[int] = []

    def sync_hook(number: int) -> Any:
        return lambda *_: seen.append(number)

    def async_hook(number: int) -> Any:
        async def hook(*_: Any) -> None:
            await anyio.sleep(0)
            seen.append(number)

        return hook

    @flow(on_completion=[sync_hook(0), async_hook(1), sync_hook(2), async_hook(3)])
    async def main() -> None: ...

    await main()
    await main.acall()
    assert seen == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_hook_that_raises_is_logged_and_changes_nothing(colour: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def bad(*_: Any) -> None:
        raise ZeroDivisionError("in the hook")

    async def async_bad(*_: Any) -> None:
        bad()

    hook = bad if colour == "sync" else async_bad

    @flow(on_running=[hook], on_completion=[hook, lambda *_: seen.append("after")])
    async def main() -> int:
        return 7

    assert await main() == 7
    assert seen == ["after"]
    run = (await get_client().read_flow_runs())[0]
    assert run.state.is_completed()
    logged = [each for each in caplog.records if each.name == "asyncflow"]
    assert [each.levelno for each in logged] == [logging.ERROR] * 2
    assert hook.__qualname__ in logged[0].getMessage()
    assert repr(run.name) in logged[0].getMessage()
    assert "in the hook" in caplog.text


async def test_a_hook_that_takes_other_arguments_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @flow(on_completion=[lambda: None])  # type: ignore[list-item, misc]
    async def main() -> int:
        return 7

    assert await main() == 7
    assert "TypeError" in caplog.text


async def test_a_hook_that_raises_leaves_the_runs_own_exception_alone() -> None:
    def bad(*_: Any) -> None:
        raise ZeroDivisionError("in the hook")

    @task(on_failure=[bad])
    async def part() -> None:
        raise ValueError("the body's")

    with pytest.raises(ValueError, match="the body's") as caught:
        await part()
    assert caught.value.__context__ is None


async def test_the_final_state_is_recorded_before_its_hooks_run() -> None:
    found: list[str] = []

    async def hook(_: Any, run: FlowRun, state: State[Any]) -> None:
        found.append((await get_client().read_flow_run(run.id)).state.name)

    @flow(on_completion=[hook])
    async def main() -> None: ...

    await main()
    assert found == ["Completed"]


async def test_a_hook_is_in_its_run() -> None:
    seen: list[Any] = []

    def hook(_: Any, run: FlowRun, __: Any) -> None:
        seen.append((runtime.flow_run.id == run.id, runtime.flow_run.parameters))
        get_run_logger().info("from the hook")

    @flow(on_running=[hook], on_completion=[hook], on_failure=[hook])
    async def main(x: int) -> float:
        return 1 / x

    await main(1)
    await main(0, return_state=True)
    assert seen == [(True, {"x": 1})] * 2 + [(True, {"x": 0})] * 2
    assert runtime.flow_run.id is None
    run = (await get_client().read_flow_runs())[0]
    lines = await get_client().read_logs(run.id)
    assert "from the hook" in [each.message for each in lines]


async def test_on_running_runs_for_every_attempt_and_failure_once() -> None:
    seen: Seen = []

    @task(retries=2, **recorders(seen))
    async def part() -> None:
        raise ValueError

    await part(return_state=True)
    assert seen == [("on_running", "Running"), *[("on_running", "Retrying")] * 2, ("on_failure", "Failed")]


async def test_invalid_parameters_run_the_failure_hooks_alone() -> None:
    seen: Seen = []

    @flow(**recorders(seen))
    async def main(x: int) -> None: ...

    await main("many", return_state=True)
    assert seen == [("on_failure", "Failed")]


async def test_a_hook_may_call_a_task_before_every_attempt() -> None:
    """While a run is Running, also again, what its hooks call belongs to it."""
    flow_runs: list[Any] = []

    @task
    async def prepare() -> None:
        flow_runs.append(runtime.task_run.flow_run_id)

    async def hook(*_: Any) -> None:
        await prepare()

    @flow(retries=1, on_running=[hook])
    async def main() -> None:
        raise ValueError

    await main(return_state=True)
    run = (await get_client().read_flow_runs())[0]
    assert flow_runs == [run.id] * 2


async def test_a_hook_after_the_end_calls_a_task_detached() -> None:
    ids: list[Any] = []

    @task
    async def notify() -> None:
        ids.append(runtime.task_run.id)

    async def hook(*_: Any) -> None:
        with detached():
            await notify()

    @flow(on_completion=[hook])
    async def main() -> None: ...

    await main()
    assert (await get_client().read_task_run(ids[0])).flow_run_id is None


async def test_hooks_of_a_cancelled_run_get_their_time() -> None:
    seen: list[str] = []

    async def hook(_: Any, __: Any, state: State[Any]) -> None:
        await anyio.sleep(0.01)
        seen.append(state.name)

    with anyio.CancelScope() as scope:

        @flow(on_cancellation=[hook])
        async def main() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await main()
    assert scope.cancelled_caught
    assert seen == ["Cancelled"]


async def test_with_options_replaces_hooks() -> None:
    seen: list[str] = []

    @flow(on_completion=[lambda *_: seen.append("first")])
    async def main() -> None: ...

    await main.with_options(on_completion=[lambda *_: seen.append("second")])()
    await main.with_options(on_completion=[])()
    await main.with_options(name="other")()
    assert seen == ["second", "first"]


@pytest.mark.parametrize("hooks", [print, "print", [3], [None]])
def test_hooks_that_are_none_are_refused_at_declaration(hooks: Any) -> None:
    with pytest.raises(OptionError, match="on_failure"):
        flow(on_failure=hooks)(lambda: None)


# --- on threads without a loop ------------------------------------------------------------------------


def test_hooks_of_a_sync_run_run_on_its_own_thread() -> None:
    threads: list[int] = []

    @flow(on_running=[lambda *_: threads.append(threading.get_ident())])
    def main() -> None: ...

    main()
    assert threads == [threading.get_ident()]


async def test_hooks_of_a_sync_body_in_a_worker_thread_run_on_the_loop() -> None:
    threads: list[int] = []

    async def hook(*_: Any) -> None:
        await anyio.sleep(0)
        threads.append(threading.get_ident())

    @flow(on_running=[hook], on_completion=[hook])
    def main() -> None: ...

    await main.acall()
    assert threads == [threading.get_ident()] * 2


async def test_an_async_hook_of_a_sync_task_in_a_worker_thread_runs() -> None:
    seen: list[Any] = []

    async def hook(_: Any, run: TaskRun, __: Any) -> None:
        await anyio.sleep(0)
        seen.append(runtime.task_run.id == run.id)

    @task(on_running=[hook], on_completion=[hook])
    def part() -> None: ...

    @flow
    def main() -> None:
        part()

    await main.acall()
    assert seen == [True, True]


def test_async_hooks_of_a_sync_flow_in_a_script(run_python: RunPython) -> None:
    done = run_python(
        """
import asyncio, threading
from asyncflow import flow, task, runtime, get_run_logger

async def hook(declared, run, state):
    await asyncio.sleep(0)
    get_run_logger().info("hook")
    print(declared.name, state.name, runtime.flow_run.name == run.name, threading.current_thread().name)

@flow(on_running=[hook], on_completion=[hook], on_failure=[hook])
def main(x: int):
    return 1 // x

main(1)
print(main(0, return_state=True))
"""
    )
    assert done.stdout.splitlines() == [
        "main Running True asyncflow-loop",
        "main Completed True asyncflow-loop",
        "main Running True asyncflow-loop",
        "main Failed True asyncflow-loop",
        "Failed('ZeroDivisionError: integer division or modulo by zero')",
    ]
    assert done.stderr == ""


def test_an_async_hook_that_raises_in_a_script_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def hook(*_: Any) -> None:
        raise ZeroDivisionError("in the hook")

    @flow(on_completion=[hook])
    def main() -> int:
        return 1

    assert main() == 1
    assert "in the hook" in caplog.text
