"""Ctrl-C and its kin: whatever is torn apart, and wherever, each run that was recorded has an end on record."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest
import trio

import asyncflow
from asyncflow import FlowRun, Runtime, TaskRun, flow, get_client, runtime, task
from asyncflow._recorded import ENDING
from asyncflow._rows import FIRST_FINAL
from tests.conftest import RunPython

LONG = 30.0


class Custom(BaseException):
    """Of nobody's making but ours."""


INTERRUPTS: list[BaseException] = [KeyboardInterrupt("k"), SystemExit(3), Custom("c"), GeneratorExit()]
IDS: Callable[[object], str] = lambda error: type(error).__name__  # noqa: E731


async def read_runs(home: Path | None = None) -> dict[str, FlowRun | TaskRun]:
    async with Runtime(home) as opened:
        client = get_client(opened)
        found: dict[str, FlowRun | TaskRun] = {each.flow_name: each for each in await client.read_flow_runs()}
        found |= {each.task_name: each for each in await client.read_task_runs() if not each.child_flow_run_id}
        return found


def recorded(home: Path) -> dict[str, tuple[str, str | None]]:
    """Each run's state, read anew from disk after the runtime that wrote it was closed."""
    asyncflow.runtime.HOME.close_default()
    return {name: (run.state.type.value, run.state.message) for name, run in trio.run(read_runs, home).items()}


Runner = Callable[[Callable[[], Any]], Any]


def on_asyncio(fn: Callable[[], Any]) -> Any:
    return asyncio.run(fn())


RUNNERS = pytest.mark.parametrize("run", [on_asyncio, trio.run], ids=["asyncio", "trio"])


def innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# --- raised by people's code -------------------------------------------------------------------


@pytest.mark.parametrize("error", INTERRUPTS, ids=IDS)
def test_a_sync_body_that_is_interrupted_is_crashed(error: BaseException, home: Path) -> None:
    @task
    def child() -> None:
        raise error

    @flow
    def parent() -> None:
        child()

    with pytest.raises(type(error)) as caught:
        parent()
    assert caught.value is error
    found = recorded(home)
    assert {type_ for type_, _ in found.values()} == {"CRASHED"}
    assert set(found) == {"child", "parent"}
    assert all(type(error).__name__ in (message or "") for _, message in found.values())


@RUNNERS
@pytest.mark.parametrize("error", INTERRUPTS, ids=IDS)
def test_an_async_body_that_is_interrupted_is_crashed(run: Runner, error: BaseException, home: Path) -> None:
    @task
    async def child() -> None:
        await anyio.sleep(0)
        raise error

    @flow
    async def parent() -> None:
        await child()

    with pytest.raises(type(error)) as caught:
        run(parent)
    assert caught.value is error
    found = recorded(home)
    assert {name: type_ for name, (type_, _) in found.items()} == {"child": "CRASHED", "parent": "CRASHED"}


@RUNNERS
@pytest.mark.parametrize("error", INTERRUPTS[:3], ids=IDS)
def test_a_body_in_a_thread_that_is_interrupted_is_crashed(run: Runner, error: BaseException, home: Path) -> None:
    @task
    def child() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run(child.acall)
    assert caught.value is error
    assert recorded(home)["child"][0] == "CRASHED"


@RUNNERS
@pytest.mark.parametrize("error", INTERRUPTS[:3], ids=IDS)
def test_a_generator_that_is_interrupted_is_crashed(run: Runner, error: BaseException, home: Path) -> None:
    @task
    async def items() -> AsyncIterator[int]:
        yield 1
        raise error

    async def consume() -> None:
        async for _ in items():
            pass

    with pytest.raises(type(error)) as caught:
        run(consume)
    assert caught.value is error
    assert recorded(home)["items"][0] == "CRASHED"


@pytest.mark.parametrize("error", INTERRUPTS[:3], ids=IDS)
def test_a_sync_generator_that_is_interrupted_is_crashed(error: BaseException, home: Path) -> None:
    @task
    def items() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(type(error)) as caught:
        list(items())
    assert caught.value is error
    assert recorded(home)["items"][0] == "CRASHED"


@RUNNERS
@pytest.mark.parametrize("error", INTERRUPTS[:3], ids=IDS)
def test_return_state_does_not_keep_an_interrupt(run: Runner, error: BaseException, home: Path) -> None:
    @task
    async def child() -> None:
        raise error

    async def call() -> str:
        state: Any = await child(return_state=True)
        return str(state.type.value)

    if isinstance(error, KeyboardInterrupt | SystemExit):
        with pytest.raises(type(error)):
            run(call)
    else:
        assert run(call) == "CRASHED"
    assert recorded(home)["child"][0] == "CRASHED"


def _hooked(place: str, hook: Callable[..., Any], body_error: Exception | None) -> Any:
    options: dict[str, Any] = {place: hook if place.endswith(("_fn", "_name")) else [hook]}

    def body() -> None:
        if body_error is not None:
            raise body_error

    return task(body, retries=1, **options) if place == "retry_condition_fn" else task(body, **options)


PLACES = [
    ("on_running", None),
    ("on_completion", None),
    ("on_failure", LookupError("body")),
    ("task_run_name", None),
    ("retry_condition_fn", LookupError("body")),
]


@pytest.mark.parametrize("error", INTERRUPTS[:3], ids=IDS)
@pytest.mark.parametrize(("place", "body_error"), PLACES, ids=[place for place, _ in PLACES])
def test_an_interrupt_in_a_function_beside_the_body(
    place: str, body_error: Exception | None, error: BaseException, home: Path
) -> None:
    def raises(*_: Any) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        _hooked(place, raises, body_error)()
    assert caught.value is error
    state = recorded(home)["body"][0]
    # A state that was final before its hook ran stays: it is written once.
    assert state == {"on_completion": "COMPLETED", "on_failure": "FAILED"}.get(place, "CRASHED")


@RUNNERS
@pytest.mark.parametrize("error", INTERRUPTS[:3], ids=IDS)
@pytest.mark.parametrize(("place", "body_error"), PLACES, ids=[place for place, _ in PLACES])
def test_an_interrupt_in_a_function_beside_an_async_body(
    run: Runner, place: str, body_error: Exception | None, error: BaseException, home: Path
) -> None:
    def raises(*_: Any) -> Any:
        raise error

    with pytest.raises(type(error)) as caught:
        run(_hooked(place, raises, body_error).acall)
    assert caught.value is error
    state = recorded(home)["body"][0]
    assert state == {"on_completion": "COMPLETED", "on_failure": "FAILED"}.get(place, "CRASHED")


@RUNNERS
def test_an_interrupt_in_the_hook_of_a_cancelled_run(run: Runner, home: Path) -> None:
    error = Custom("hook")

    async def raises(*_: Any) -> None:
        await anyio.sleep(0)
        raise error

    @task(on_crashed=[raises])
    async def child() -> None:
        raise Custom("body")

    with pytest.raises(Custom):
        run(child)
    assert recorded(home)["child"][0] == "CRASHED"


def test_an_interrupt_while_a_result_is_encoded(home: Path) -> None:
    class Result(dict[str, int]):
        def items(self) -> Any:
            raise KeyboardInterrupt

        __iter__ = items

    @flow
    def returns() -> Any:
        return Result(a=1)

    try:
        returns()
    except KeyboardInterrupt:
        expected = "CRASHED"
    else:
        expected = "COMPLETED"  # the encoder did not ask
    assert recorded(home)["returns"][0] == expected


def test_ctrl_c_in_a_hook_leaves_the_context_of_its_thread_as_it_was(home: Path) -> None:
    """Else what is called next would be taken for a hook's, and would not be found again when a flow is tried again."""
    ran: list[int] = []

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    @flow(on_running=[interrupted])
    def first() -> None: ...

    @task
    def step() -> None:
        ran.append(1)

    @flow(retries=1)
    def second() -> None:
        step()
        if runtime.flow_run.run_count == 1:
            raise LookupError

    with pytest.raises(KeyboardInterrupt), trap_of_the_reset():
        first()
    second()
    assert ran == [1]


@contextlib.contextmanager
def trap_of_the_reset() -> Iterator[None]:
    """A second Ctrl-C, in the very line that puts the context back."""

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        return line if frame.f_code.co_name == "run_hooks" else None

    def line(frame: FrameType, event: str, arg: object) -> Any:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and "current_transaction.reset" in text:
            raise KeyboardInterrupt
        return line

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


# --- Ctrl-C at every line of ours ----------------------------------------------------------------

OURS = str(Path(asyncflow.__file__).parent) + os.sep


class InterruptAt:
    """Raises KeyboardInterrupt at the k-th line that this thread executes in asyncflow's code."""

    def __init__(self, k: int) -> None:
        self.left = k
        self.where: str | None = None

    def __enter__(self) -> InterruptAt:
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_frame(self, frame: FrameType, event: str, arg: object) -> Any:
        if self.where is not None or not frame.f_code.co_filename.startswith(OURS):
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        # Where trio holds a real Ctrl-C back, there is none. A finalizer cannot raise.
        if event == "line" and self.where is None and not _protected(frame) and not _in_finalizer(frame):
            self.left -= 1
            if self.left <= 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt(self.where)
        return self._line


def _protected(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    if line.startswith(("with ENDING", "with self._lock")):
        # Nothing comes between a lock written in C and its block. Raised here on the way out, it would stay locked.
        return True
    if not trio.lowlevel.in_trio_run():
        return False
    # A real one comes when a function is called: at a `with` statement, in `__enter__` and `__exit__`.
    return line.startswith("with ") or trio.lowlevel.currently_ki_protected()


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename.startswith(OURS):
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@task(retries=1)
def flaky(log: list[int]) -> int:
    log.append(1)
    if len(log) < 2:
        raise LookupError("first")
    return 1


def note(*_: Any) -> None:
    """A hook."""


@flow(on_completion=[note])
def nested(number: int) -> int:
    return number


@flow(on_running=[note])
def scripted() -> int:
    return flaky([]) + nested(1)


@task(retries=1)
async def aflaky(log: list[int]) -> int:
    log.append(1)
    await anyio.sleep(0)
    if len(log) < 2:
        raise LookupError("first")
    return 1


@flow(on_completion=[note])
async def anested(number: int) -> int:
    await anyio.sleep(0)
    return number


@flow(on_running=[note])
async def ascripted() -> int:
    async with anyio.create_task_group() as group:
        group.start_soon(anested, 1)
    return await aflaky([])


def open_rows(home: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(home / "asyncflow.db") as connection:
        rows = connection.execute(f"SELECT function, state, history FROM run WHERE state < {FIRST_FINAL}").fetchall()
    connection.close()
    return rows


BATCH = 50


def in_a_frame_of_its_own(once: Callable[[], object]) -> Iterator[object]:
    """Runs `once` where what it leaves behind as "being handled" is dropped with the generator.

    Only a trace function can raise at the `return` of an `except` block, after CPython has ended the
    block and before it has left it: the block's exception then stays the context of all that follow.
    """
    yield once()


def interrupt_everywhere(root: Path, once: Callable[[], object]) -> int:
    """Run `once` again and again, interrupted one line later each time; gives the number of lines."""
    once()  # what is imported and compiled at first use is there
    problems: list[str] = []
    k = 0
    while True:
        home, places = root / f"home{k}", list[str | None]()
        with Runtime(home, durability_seconds=0.3, grace_seconds=0.3, synchronous="normal"):
            for _ in range(BATCH):
                k += 1
                trap = InterruptAt(k)
                came_out = "nothing"
                try:
                    with trap:
                        next(in_a_frame_of_its_own(once))
                except BaseException as error:
                    came_out = repr(innermost(error))
                if came_out != ("nothing" if trap.where is None else f"KeyboardInterrupt({trap.where!r})"):
                    problems.append(f"{k}: {trap.where}: {came_out} came out")
                places.append(trap.where)
            gc.collect()
        problems += [f"{k}: one of {places}: left {row}" for row in open_rows(home)]
        if places[-1] is None:
            assert problems == []
            return k


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_ctrl_c_at_every_line_of_a_sync_flow(tmp_path: Path) -> None:
    assert interrupt_everywhere(tmp_path, scripted) > 300


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@RUNNERS
def test_ctrl_c_at_every_line_of_an_async_flow(tmp_path: Path, run: Runner) -> None:
    assert interrupt_everywhere(tmp_path, lambda: run(ascripted)) > 300


# --- runs that nobody can finish any more --------------------------------------------------------


def test_a_coroutine_that_is_closed_is_crashed(home: Path) -> None:
    @task
    async def child() -> None:
        await asyncio.sleep(LONG)

    @flow
    async def parent() -> None:
        await child()

    async def main() -> None:
        await read_runs_quietly()
        coroutine = parent()
        while coroutine.send(None) is None:  # a future: it waits for something
            pass
        coroutine.close()

    async def read_runs_quietly() -> None:
        await get_client().read_flow_runs()  # opens the store: the coroutine waits in the body

    asyncio.run(main())
    found = recorded(home)
    assert {name: type_ for name, (type_, _) in found.items()} == {"parent": "CRASHED", "child": "CRASHED"}


def test_the_lock_of_endings_is_free_again() -> None:
    """An interrupt that left it locked would stop every other thread of the process, here of all later tests."""
    freed: list[bool] = []

    def take() -> None:
        freed.append(ENDING.acquire(timeout=5))
        ENDING.release()

    other = threading.Thread(target=take)
    other.start()
    other.join()
    assert freed == [True]


def test_what_a_closed_coroutine_started_is_told(home: Path) -> None:
    @task
    async def child() -> None:
        await asyncio.sleep(LONG)

    @flow
    async def parent() -> None:
        started.append(asyncio.ensure_future(child()))
        await asyncio.sleep(0.01)
        await asyncio.sleep(LONG)

    started: list[asyncio.Task[None]] = []

    async def main() -> None:
        await get_client().read_flow_runs()
        coroutine = parent()
        while coroutine.send(None) is None:  # a future: it waits for something
            pass
        await asyncio.sleep(0.01)
        coroutine.close()
        with pytest.raises(asyncio.CancelledError):
            await started[0]

    asyncio.run(main())
    found = recorded(home)
    assert {name: type_ for name, (type_, _) in found.items()} == {"parent": "CRASHED", "child": "CANCELLED"}


LOOP_CLOSED = """
import asyncio
import contextlib
from asyncflow import flow, task

@task
async def child():
    loop.call_later(0.05, loop.stop)
    await asyncio.sleep(60)

@flow
async def parent():
    await child()

loop = asyncio.new_event_loop()
kept = [loop.create_task(parent())]
loop.run_forever()
loop.close()
{end}
"""


@pytest.mark.parametrize("end", ["kept.clear()", "pass"], ids=["dropped", "kept until the end"])
def test_a_loop_closed_in_the_middle(run_python: RunPython, home: Path, end: str) -> None:
    run_python(LOOP_CLOSED.replace("{end}", end))
    found = recorded(home)
    assert {name: type_ for name, (type_, _) in found.items()} == {"parent": "CRASHED", "child": "CRASHED"}


# --- real signals ----------------------------------------------------------------------------------

PROGRAM = """
import sys, time, anyio, asyncio
from asyncflow import flow, task

@task
def step(n):
    time.sleep(0.002)
    return n

@flow
def inner(n: int):
    return step(n)

@flow
def script():
    print("begin", flush=True)
    for n in range(100000):
        step(n)
        inner(n)

@task
async def astep(n):
    await anyio.sleep(0.002)

@flow
async def ainner(n: int):
    await astep(n)

@flow
async def ascript():
    print("begin", flush=True)
    for n in range(100000):
        async with anyio.create_task_group() as group:
            group.start_soon(astep, n)
            group.start_soon(ainner, n)
        await step.acall(n)

kind = sys.argv[1]
if kind == "script":
    script()
elif kind == "asyncio":
    asyncio.run(ascript())
else:
    import trio
    trio.run(ascript)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["script", "asyncio", "trio"])
def test_a_real_ctrl_c_leaves_nothing_running(tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    spread = random.Random(7)
    for moment in range(8):
        home = tmp_path / f"home{moment}"
        process = subprocess.Popen(
            [sys.executable, str(program), kind],
            env={**os.environ, "ASYNCFLOW_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        time.sleep(spread.uniform(0, 0.15))  # the moment is the test's matter, not a wait for anything
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        # Of a group that a nursery made of a KeyboardInterrupt, Python makes 1.
        assert process.returncode in (-signal.SIGINT, 130, *([1] if kind == "trio" else [])), errors
        assert "KeyboardInterrupt" in errors
        assert open_rows(home) == [], errors
