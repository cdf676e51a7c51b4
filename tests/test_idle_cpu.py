"""Ten thousand cancelled, timed out and closed runs later, a process that does nothing costs nothing."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio

from asyncflow import Runtime, flow, task
from asyncflow.exceptions import RunCancelledError
from asyncflow.stores.memory import MemoryStore
from tests.conftest import RunPython

OPERATIONS = 10_000
AT_ONCE = 50
IDLE_SECONDS = 2.0
MOST_CPU = 0.01
"""Part of the idle time."""
SOON, LONG = 0.001, 1000.0  # seconds


@task
async def asleep() -> None:
    await anyio.sleep(LONG)


@task(timeout_seconds=LONG)
async def asleep_with_a_deadline() -> None:
    await anyio.sleep(LONG)


@task(timeout_seconds=SOON)
async def late() -> None:
    await anyio.sleep(LONG)


@task
async def numbers() -> AsyncIterator[int]:
    number = 0
    while True:
        yield number
        number += 1


@flow
async def nested() -> None:
    asleep.submit()
    await asleep_with_a_deadline()


@flow(timeout_seconds=SOON)
async def late_nested() -> None:
    await nested()


async def a_scope_is_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(nested)
            await anyio.lowlevel.checkpoint()
            scope.cancel()


async def a_future_is_cancelled() -> None:
    future = random.choice([asleep, asleep_with_a_deadline]).submit()
    await anyio.lowlevel.checkpoint()
    assert future.cancel()
    with pytest.raises(RunCancelledError):
        await future


async def a_nested_future_is_cancelled() -> None:
    future = nested.submit()
    for _ in range(random.randrange(4)):
        await anyio.lowlevel.checkpoint()
    assert future.cancel()
    with pytest.raises(RunCancelledError):
        await future


async def a_run_times_out() -> None:
    with pytest.raises(TimeoutError):
        await late()


async def a_tree_times_out() -> None:
    with pytest.raises(TimeoutError):
        await late_nested()


async def a_stream_is_closed() -> None:
    last = random.randrange(3)
    async with numbers.stream() as items:
        async for item in items:
            if item == last:
                break


async def a_stream_is_dropped() -> None:
    async for item in numbers():
        if item == 1:
            break


OPERATIONS_KNOWN: list[Callable[[], Awaitable[None]]] = [
    a_scope_is_cancelled,
    a_future_is_cancelled,
    a_nested_future_is_cancelled,
    a_run_times_out,
    a_tree_times_out,
    a_stream_is_closed,
    a_stream_is_dropped,
]


@flow
async def everything() -> None:
    """All operations, `AT_ONCE` side by side."""
    chosen = iter(random.choices(OPERATIONS_KNOWN, k=OPERATIONS))

    async def work() -> None:
        for operation in chosen:
            await operation()

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)


def left_behind() -> dict[str, int]:
    """Tasks and timers of this loop."""
    if sniffio.current_async_library() == "trio":
        statistics = trio.lowlevel.current_statistics()
        return {"tasks": statistics.tasks_living, "runnable": statistics.tasks_runnable}
    loop: Any = asyncio.get_running_loop()
    timers = [each for each in loop._scheduled if not each.cancelled()]
    return {"tasks": len(asyncio.all_tasks()), "timers": len(timers), "ready": len(loop._ready)}


async def spent_idle() -> float:
    """CPU seconds of this process while it does nothing, after all operations."""
    random.seed(1)
    before = left_behind()
    with Runtime(store=MemoryStore()):
        await everything()
        gc.collect()
        await anyio.sleep(0.1)
        assert left_behind() == before
        spent = time.process_time()
        await anyio.sleep(IDLE_SECONDS)
        spent = time.process_time() - spent
        assert left_behind() == before
    return spent


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_after_ten_thousand_cancellations_an_idle_process_costs_nothing(backend: str, run_python: RunPython) -> None:
    # In a process of its own: threads that other tests left idle end meanwhile, which costs as well.
    done = run_python(Path(__file__), backend, env={"PYTHONPATH": str(Path(__file__).parents[1])})
    assert float(done.stdout) < IDLE_SECONDS * MOST_CPU


if __name__ == "__main__":
    print(anyio.run(spent_idle, backend=sys.argv[1]))
