"""A loop that does not turn is told of once, with the task and the line that block it; nothing else is."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from asyncflow import Runtime, flow, get_client, task
from asyncflow._watchdog import WATCHDOG, Watchdog
from asyncflow.stores.memory import MemoryStore
from tests.conftest import RunPython

LONG = 30.0
SPAN = 0.05


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the watchdog has said so far."""
    lines = [record.getMessage() for record in list(caplog.records) if record.name == "asyncflow"]
    return [line for line in lines if line.startswith("the event loop of thread")]


def block_until(is_so: Callable[[], bool]) -> None:
    """Block this thread, as no body on a loop should."""
    until = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < until, "it was not told of"
        time.sleep(0.001)


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(LONG):
        while not is_so():
            await anyio.sleep(0.002)


@pytest.fixture(autouse=True)
def may_sleep(blockbuster: object) -> None:
    """Blocking the loop is what these tests do; asyncflow itself still may not."""
    from blockbuster import BlockBuster

    assert isinstance(blockbuster, BlockBuster)
    blockbuster.functions["time.sleep"].can_block_in("test_watchdog.py", "block_until")


async def test_a_body_that_blocks_its_loop_is_told_of_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    @task
    async def stubborn() -> None:
        block_until(lambda: bool(told(caplog)))
        block_until(lambda: time.monotonic() > began + 6 * SPAN)

    @flow
    async def service() -> None:
        await anyio.sleep(0)
        await stubborn()

    async with Runtime(store=MemoryStore(), blocked_loop_seconds=SPAN):
        began = time.monotonic()
        await service()
        await until(lambda: len(told(caplog)) == 2)
        (run,) = await get_client().read_task_runs()
        kept = [record.message for record in await get_client().read_logs(run.id)]
    first, second = told(caplog)
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.name == "asyncflow")
    headline, *stack = first.splitlines()
    assert headline.startswith("the event loop of thread 'MainThread' has not turned for 0.")
    assert f": it executes task run {run.name!r}, in task '" in headline
    here = Path(__file__).name
    assert stack[0].startswith(f"  {here}:")
    assert stack[0].endswith(" in block_until: time.sleep(0.001)")
    assert " in test_a_body_that_blocks_its_loop_is_told_of_once_and_its_end_too.<locals>.stubborn: " in stack[1]
    assert any(" in execute: " in line for line in stack)
    assert second.startswith("the event loop of thread 'MainThread' turns again, after ")
    assert second.endswith(f" s (task run {run.name!r})")
    seconds = float(second.split(" after ")[1].split()[0])
    assert SPAN <= seconds < time.monotonic() - began
    assert kept == [first, second]


async def test_each_block_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    @flow
    async def twice() -> None:
        for number in (1, 3):
            block_until(lambda: len(told(caplog)) == number)  # noqa: B023  # called at once
            await until(lambda: len(told(caplog)) == number + 1)  # noqa: B023  # likewise

    async with Runtime(store=MemoryStore(), blocked_loop_seconds=SPAN):
        await twice()
    assert [" turns again, " in line for line in told(caplog)] == [False, True, False, True]


async def test_code_outside_of_any_run_that_blocks_the_loop_of_runs_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = anyio.Event()

    @flow
    async def patient() -> None:
        await ended.wait()

    async def rude() -> None:
        block_until(lambda: bool(told(caplog)))

    async with Runtime(store=MemoryStore(), blocked_loop_seconds=SPAN), anyio.create_task_group() as group:
        group.start_soon(patient)
        await anyio.sleep(0.01)
        group.start_soon(rude, name="the rude one")
        await until(lambda: len(told(caplog)) == 2)
        ended.set()
    first, second = told(caplog)
    assert "it executes in task " in first.splitlines()[0]
    assert "the rude one" in first.splitlines()[0]
    assert second.endswith(" s")


async def test_a_loop_is_told_of_by_the_runtimes_that_ask_for_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    blocked = threading.Event()

    @flow
    async def blocking() -> None:
        block_until(blocked.is_set)

    @flow
    async def quiet() -> None:
        block_until(lambda: time.monotonic() > began + 4 * SPAN)

    async with Runtime(store=MemoryStore(), blocked_loop_seconds=SPAN) as asks:
        # The one that asks has a run, on another loop; so the watchdog looks.
        def elsewhere() -> None:
            async def program() -> None:
                with asks.as_current():
                    await waiting()

            anyio.run(program)

        ended = threading.Event()

        @flow
        async def waiting() -> None:
            while not ended.is_set():
                await anyio.sleep(0.005)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await until(lambda: WATCHDOG.asked > 0)
        async with Runtime(store=MemoryStore()) as silent:
            with silent.as_current():
                began = time.monotonic()
                await quiet()
        ended.set()
        await anyio.to_thread.run_sync(thread.join)
    assert told(caplog) == []


async def test_an_idle_loop_is_not_woken(caplog: pytest.LogCaptureFixture) -> None:
    ended = anyio.Event()

    @flow
    async def idle() -> None:
        await ended.wait()

    async with Runtime(store=MemoryStore(), blocked_loop_seconds=0.02), anyio.create_task_group() as group:
        group.start_soon(idle)
        await anyio.sleep(0.05)
        before = WATCHDOG.asked
        await anyio.sleep(0.5)  # a hundred looks
        # Once or twice it may be seen just as it goes to sleep, or wakes.
        assert WATCHDOG.asked - before <= 2
        ended.set()
    assert told(caplog) == []


IDLE = """
import sys, time, anyio
from asyncflow import Runtime, flow
from asyncflow.stores.memory import MemoryStore

@flow
async def idle():
    spent = time.process_time()
    await anyio.sleep(1)
    print(time.process_time() - spent)

async def main():
    async with Runtime(store=MemoryStore(), blocked_loop_seconds=0.1):
        await idle()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_looking_costs_next_to_nothing(run_python: RunPython, backend: str) -> None:
    assert float(run_python(IDLE, backend).stdout) < 0.02


SUSPENDED = """
import sys, time, anyio
from asyncflow import Runtime, flow
from asyncflow.stores.memory import MemoryStore

@flow
async def busy():
    print("ready", flush=True)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        await anyio.sleep(0)

async def main():
    async with Runtime(store=MemoryStore(), blocked_loop_seconds=1):
        await busy()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_that_was_stopped_is_not_blamed(tmp_path: Path, home: Path, backend: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, backend],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0, errors
    assert "has not turned" not in errors


def test_it_ends_with_the_last_runtime_that_asks_for_it() -> None:
    def watching() -> bool:
        return any(thread.name == "asyncflow-watchdog" for thread in threading.enumerate())

    with Runtime(store=MemoryStore()):
        assert not watching()
        with (
            Runtime(store=MemoryStore(), blocked_loop_seconds=0.02),
            Runtime(store=MemoryStore(), blocked_loop_seconds=1),
        ):
            assert watching()
    block_until(lambda: not watching())


def test_closing_what_is_not_watched_does_nothing() -> None:
    watchdog = Watchdog()
    with Runtime(store=MemoryStore()) as runtime:
        assert runtime.services is not None
        watchdog.forget(runtime.services)
    assert watchdog.asked == 0
