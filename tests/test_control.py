"""Cancelling, pausing, suspending and resuming runs of another process, by their id."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any
from uuid import UUID

import anyio
import orjson
import pytest

from asyncflow import (
    Operation,
    Runtime,
    cancel_flow_run,
    flow,
    get_client,
    pause_flow_run,
    resume_flow_run,
    send_input,
    suspend_flow_run,
    task,
)
from asyncflow._control.orders import error_of, told
from asyncflow.exceptions import (
    CannotCancelNestedRunError,
    CannotPauseError,
    CannotResumeError,
    InputValidationError,
    RunElsewhereError,
    RunNotFoundError,
    StoreBusyError,
    StoreError,
)
from asyncflow.stores.memory import MemoryStore
from tests import control_program
from tests.conftest import Backend

pytestmark = pytest.mark.anyio

LONG = 60
PROJECT = Path(__file__).parent.parent


class Program:
    """Another process, and what it says."""

    def __init__(self, home: Path, flow_name: str, *settings: str, backend: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.control_program", str(home), backend, flow_name, *settings],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: Queue[list[str]] = Queue()
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.split())

    def hear(self, word: str) -> list[str]:
        """What it says after this word; what it said before is passed over."""
        until = time.monotonic() + LONG
        while True:
            first, *rest = self._lines.get(timeout=until - time.monotonic())
            if first == word:
                return rest

    def has_said(self, word: str) -> bool:
        """Whether it has said this since it was listened to."""
        found = False
        while True:
            try:
                found |= self._lines.get_nowait()[0] == word
            except Empty:
                return found

    def begun(self) -> UUID:
        """The id of the flow run that it tells of next."""
        return UUID(self.hear("begun")[0])

    def kill(self) -> None:
        """End it as a machine does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, and let go of it."""
        self.process.kill()
        self.process.communicate()
        self._thread.join()


Start = Callable[..., Program]


@pytest.fixture
def start(home: Path, anyio_backend: Backend) -> Iterator[Start]:
    """Starts a process that runs a flow, on the test's backend."""
    with ExitStack() as stack:

        def started(flow_name: str, *settings: str) -> Program:
            program = Program(home, flow_name, *settings, backend=anyio_backend[0])
            stack.callback(program.close)
            return program

        yield started


@pytest.fixture(params=[pytest.param(("asyncio", {}), id="asyncio"), pytest.param(("trio", {}), id="trio")])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    """Two are enough: what differs between event loops is not in what processes say to each other."""
    backend: Backend = request.param
    return backend


on_one_loop = pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {}), id="asyncio")], indirect=True)
"""For what is between processes alone."""


async def states_of(run_id: UUID) -> list[str]:
    return [state.name for state in await get_client().read_states(run_id)]


async def until_state(run_id: UUID, name: str) -> None:
    with anyio.fail_after(LONG):
        while True:
            with suppress(RunNotFoundError):  # it says that it has begun a moment before that is on disk
                if (await states_of(run_id))[-1] == name:
                    return
            await anyio.sleep(0.002)


# --- cancelling ------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_name", ["waits", "waits-in-a-thread"])
async def test_a_run_of_another_process_is_cancelled(home: Path, start: Start, flow_name: str) -> None:
    program = start(flow_name)
    run_id = program.begun()
    async with Runtime(home):
        await until_state(run_id, "Running")
        state = await cancel_flow_run(run_id, reason="enough")
        assert (state.type.name, state.message) == ("CANCELLED", "cancelled through cancel_flow_run: enough")
        if flow_name == "waits":
            program.hear("cleaned")
        assert program.hear("ended") == ["Cancelled"]
        assert (await get_client().read_flow_run(run_id)).state == state
        assert await cancel_flow_run(run_id) == state


@on_one_loop
async def test_it_is_cancelled_within_milliseconds_also_where_upkeep_is_off(home: Path, start: Start) -> None:
    program = start("many", "upkeep_seconds=0")
    async with Runtime(home):
        took: list[float] = []
        for _ in range(15):
            run_id = program.begun()
            await until_state(run_id, "Running")
            began = time.monotonic()
            await cancel_flow_run(run_id)
            took.append(time.monotonic() - began)
            program.hear("cleaned")
    assert sorted(took)[len(took) // 2] < 0.5  # a second would be the look at what nobody rang for


@on_one_loop
async def test_a_flow_cancels_one_of_another_process_and_a_sync_body_does(home: Path, start: Start) -> None:
    @flow
    def cancels(run_id: str) -> str:
        return cancel_flow_run(run_id).result().message or ""

    @flow
    async def asks(run_id: str) -> str:
        return (await cancel_flow_run(run_id)).message or ""

    async with Runtime(home):
        for canceller in (cancels.acall, asks):
            run_id = start("waits").begun()
            await until_state(run_id, "Running")
            message = await canceller(str(run_id))
            assert message.startswith("cancelled by flow run '")


@on_one_loop
async def test_a_nested_run_of_another_process_is_not_cancelled_alone(home: Path, start: Start) -> None:
    program = start("nests")
    nested = program.begun()
    async with Runtime(home):
        await until_state(nested, "Running")
        run = await get_client().read_flow_run(nested)
        with pytest.raises(CannotCancelNestedRunError, match=str(run.parent_flow_run_id)):
            await cancel_flow_run(nested)
        with pytest.raises(CannotPauseError, match=str(run.parent_flow_run_id)):
            await pause_flow_run(nested)
        assert run.parent_flow_run_id is not None
        assert (await cancel_flow_run(run.parent_flow_run_id)).is_cancelled()
        assert (await get_client().read_flow_run(nested)).state.is_cancelled()


@on_one_loop
async def test_whoever_stops_waiting_takes_nothing_back(home: Path, start: Start) -> None:
    program = start("waits")
    run_id = program.begun()
    async with Runtime(home):
        await until_state(run_id, "Running")
        program.process.send_signal(signal.SIGSTOP)
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_flow_run, run_id)
            with anyio.fail_after(LONG):
                while not await anyio.to_thread.run_sync(requests_of, home):
                    await anyio.sleep(0.002)
            group.cancel_scope.cancel()
        program.process.send_signal(signal.SIGCONT)
        assert program.hear("ended") == ["Cancelled"]


def requests_of(home: Path) -> int:
    import sqlite3

    connection = sqlite3.connect(f"file:{home / 'asyncflow.db'}?mode=ro", uri=True)
    try:
        (count,) = connection.execute("SELECT count(*) FROM request").fetchone()
        return int(count)
    finally:
        connection.close()


@on_one_loop
async def test_a_process_that_dies_while_it_is_asked(home: Path, start: Start) -> None:
    """Its run is what that has made of it, and whoever asked does not wait for ever."""
    program = start("waits")
    run_id = program.begun()
    async with Runtime(home):
        await until_state(run_id, "Running")
        program.process.send_signal(signal.SIGSTOP)
        states: list[Any] = []

        async def cancel() -> None:
            states.append(await cancel_flow_run(run_id))

        async with anyio.create_task_group() as group:
            group.start_soon(cancel)
            with anyio.fail_after(LONG):
                while not await anyio.to_thread.run_sync(requests_of, home):
                    await anyio.sleep(0.002)
            program.kill()
        assert states[0].is_crashed()
        assert await anyio.to_thread.run_sync(requests_of, home) == 0


@on_one_loop
async def test_of_a_process_that_has_died_it_says_what_the_run_is(home: Path, start: Start) -> None:
    program = start("waits")
    run_id = program.begun()
    async with Runtime(home, upkeep_seconds=0):
        await until_state(run_id, "Running")
        program.kill()
        assert (await cancel_flow_run(run_id)).is_crashed()


async def test_a_run_that_nobody_can_be_asked_for(home: Path) -> None:
    """Two runtimes on one store in memory: the other one's record is all there is."""
    store = MemoryStore()
    begun = anyio.Event()

    @flow
    async def body() -> None:
        begun.set()
        await anyio.sleep(LONG)

    async with Runtime(store=store, drain_seconds=0) as opened:
        future = body.submit()
        await begun.wait()
        assert opened.services is not None
        opened.services.outermost.discard(future.run)  # as in a process that has lost it
        try:
            with pytest.raises(RunElsewhereError, match="no other process can reach its store"):
                await cancel_flow_run(future.flow_run_id)
        finally:
            opened.services.outermost.add(future.run)
    with pytest.raises(RunNotFoundError):
        async with Runtime(home):
            await cancel_flow_run(future.flow_run_id)


# --- pausing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_name", ["pauses", "pauses-in-a-thread"])
async def test_a_pause_is_answered_from_another_process(home: Path, start: Start, flow_name: str) -> None:
    program = start(flow_name)
    run_id = program.begun()
    good, bad = ({"approved": True, "by": "me"}, {"by": 3}) if flow_name == "pauses" else (7, "seven")
    async with Runtime(home):
        await until_state(run_id, "Paused")
        with pytest.raises(InputValidationError) as caught:
            await resume_flow_run(run_id, run_input=bad)
        told = {(problem[0], problem[2]) for problem in caught.value.problems}
        assert told == ({("approved", "nothing"), ("by", "3")} if flow_name == "pauses" else {("input", "'seven'")})
        with pytest.raises(CannotResumeError, match="it is in no pause 'other'"):
            await resume_flow_run(run_id, run_input=good, key="other")
        assert (await states_of(run_id))[-1] == "Paused"
        assert await resume_flow_run(run_id, run_input=good) is None
        assert program.hear("resumed") == (["True", "me"] if flow_name == "pauses" else ["7"])
        assert program.hear("ended") == ["Completed"]
        assert await states_of(run_id) == ["Pending", "Running", "Paused", "Running", "Completed"]
        with pytest.raises(CannotResumeError, match="Completed"):
            await resume_flow_run(run_id)


@on_one_loop
async def test_the_process_of_a_paused_run_dies_and_another_goes_on(home: Path, start: Start) -> None:
    program = start("pauses")
    run_id = program.begun()
    async with Runtime(home):
        await until_state(run_id, "Paused")
        program.kill()
        values: list[str] = []

        async def go_on() -> None:
            values.append(await resume_flow_run(run_id, flow=control_program.pauses))

        async with anyio.create_task_group() as group:
            group.start_soon(go_on)
            with anyio.fail_after(LONG):
                while True:
                    try:
                        await resume_flow_run(run_id, run_input={"approved": False, "by": "her"})
                    except CannotResumeError:
                        await anyio.sleep(0.01)  # it has not come to its pause yet
                    else:
                        break
        assert values == ["her"]


@on_one_loop
async def test_a_run_of_another_process_is_paused_and_goes_on(home: Path, start: Start) -> None:
    program = start("steps")
    run_id = program.begun()
    program.hear("work")
    async with Runtime(home):
        await pause_flow_run(run_id)
        await until_state(run_id, "Paused")
        await anyio.sleep(0.05)  # the task that had begun ends
        program.has_said("work")
        await anyio.sleep(0.1)
        assert not program.has_said("work")
        with pytest.raises(CannotResumeError, match="waits for no input"):
            await resume_flow_run(run_id, run_input=1)
        state = await resume_flow_run(run_id, return_state=True)
        assert not state.is_final()
        program.hear("work")
        with pytest.raises(CannotResumeError, match="and goes on"):
            await resume_flow_run(run_id)
        await suspend_flow_run(run_id)
        assert program.hear("ended") == ["Suspended"]
        assert (await states_of(run_id))[-1] == "Suspended"
        with pytest.raises(CannotPauseError, match="Suspended"):
            await suspend_flow_run(run_id)
        assert (await cancel_flow_run(run_id)).is_cancelled()


@on_one_loop
async def test_what_one_process_has_suspended_another_resumes(home: Path, start: Start) -> None:
    program = start("suspends")
    run_id = program.begun()
    assert program.hear("ended") == ["Suspended"]
    program.kill()
    async with Runtime(home):
        with pytest.raises(InputValidationError, match="approved: Field required"):
            await resume_flow_run(run_id, run_input={"by": "me"}, flow=control_program.suspends)
        value = await resume_flow_run(run_id, run_input={"approved": True, "by": "me"}, flow=control_program.suspends)
        assert value == ["first", "me", "second"]
        names = [run.state.name for run in await get_client().read_tree(run_id)]
        assert names == ["Completed"] * 3


# --- inputs ----------------------------------------------------------------------------------


async def test_inputs_come_from_another_process_at_once_and_in_order(home: Path, start: Start) -> None:
    program = start("receives")
    run_id = program.begun()
    async with Runtime(home):
        await until_state(run_id, "Running")
        took: list[float] = []
        for number in range(10):
            sent = time.time()
            await send_input(number, run_id)
            heard, at = program.hear("received")
            assert int(heard) == number
            took.append(float(at) - sent)
        assert sorted(took)[5] < 0.5  # a second would be the look at what nobody rang for
        await cancel_flow_run(run_id)


# --- how they are called ---------------------------------------------------------------------


async def test_an_operation_is_a_coroutine(home: Path) -> None:
    @task
    async def leaf() -> None: ...

    async with Runtime(home):
        state = await leaf(return_state=True)
        run_id = state.state_details.task_run_id
        assert run_id is not None
        operation = cancel_flow_run(run_id)
        assert isinstance(operation, Operation)
        assert "cancel_flow_run" in repr(operation)
        with pytest.raises(RunNotFoundError):
            await operation
        async with anyio.create_task_group() as group:

            async def look() -> None:
                with pytest.raises(RunNotFoundError):
                    await cancel_flow_run(run_id)

            group.start_soon(look)


def test_an_operation_runs_in_each_way_that_a_coroutine_does(home: Path) -> None:
    import asyncio

    import trio

    @flow
    async def body() -> None: ...

    with Runtime(home):
        anyio.run(body)
        [run] = anyio.run(get_client().read_flow_runs)
        assert cancel_flow_run(run.id).result().is_completed()
        assert asyncio.run(cancel_flow_run(run.id)).is_completed()
        assert trio.run(cancel_flow_run, run.id).is_completed()
        assert anyio.run(cancel_flow_run, run.id).is_completed()

        async def as_task() -> Any:
            return await asyncio.gather(cancel_flow_run(run.id), asyncio.create_task(cancel_flow_run(run.id)))

        assert [state.is_completed() for state in asyncio.run(as_task())] == [True, True]


def test_an_operation_that_is_forgotten_is_told_of(home: Path) -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        cancel_flow_run("some id")


def test_an_error_comes_back_from_another_process_as_it_was() -> None:
    run_id = UUID(int=7)
    for error in (
        CannotResumeError(run_id, "it is Running", "Wait for it."),
        CannotPauseError(run_id, "it is Failed", "Only a run that goes on can be paused."),
        CannotCancelNestedRunError(run_id, UUID(int=8)),
        InputValidationError(run_id, "approval", [("by", "Input should be a valid string", "3")]),
        StoreError("writing", "some/file", "no space"),
    ):
        data = told(error)
        assert data is not None
        back = error_of(orjson.loads(orjson.dumps(data)))
        assert (type(back), str(back)) == (type(error), str(error))
    assert told(StoreBusyError("writing", "some/file", "locked")) is None
    assert told(KeyError("x")) is None


@on_one_loop
async def test_what_goes_wrong_in_the_other_process_is_told(home: Path, start: Start) -> None:
    program = start("pauses-with-a-bug")
    run_id = program.begun()
    async with Runtime(home):
        await until_state(run_id, "Paused")
        with pytest.raises(RunElsewhereError, match="its process could not do it: ZeroDivisionError"):
            await resume_flow_run(run_id, run_input={"share": 0})
        await resume_flow_run(run_id, run_input={"share": 4})
        assert program.hear("resumed") == ["25"]
