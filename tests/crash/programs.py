"""What the children do: flows that are killed or whose disk fails, and what they tell of it.

A child says one line of JSON at a time, in one write to a pipe, which is whole or not there at
all. `ack` says that an await returned: the id of the run and the digest of its value.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import trio  # noqa: F401  # so that no child has to

from asyncflow import Runtime, flow, task
from asyncflow.exceptions import DurabilityError, StoreError
from asyncflow.runtime import flow_run, task_run

LARGE = 70_000
"""Characters of a value that does not fit into a row."""
TASKS = 20


def say(*words: object) -> None:
    # Not `write`: the tests that count or fail that one mean the library's.
    os.writev(1, [orjson.dumps(words) + b"\n"])


def hear() -> str:
    return os.read(0, 64).decode().strip()


def digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def acknowledge(value: dict[str, Any]) -> dict[str, Any]:
    say("ack", value["id"], digest(value))
    return value


def own_value(number: int, *, large: bool = False) -> dict[str, Any]:
    """The value of the run whose body asks: no two are equal."""
    run_id = str(task_run.id or flow_run.id)
    return {"id": run_id, "number": number, "filler": run_id[-1] * LARGE if large else ""}


# --- a small flow: 20 tasks, one of them with a large value, a nested flow among them -------------


@task
def small_task(number: int) -> dict[str, Any]:
    return own_value(number, large=number == TASKS // 2)


@task(durability="task")
def durable_small_task(number: int) -> dict[str, Any]:
    return own_value(number)


@flow
def small_part(numbers: list[int]) -> dict[str, Any]:
    return {"id": str(flow_run.id), "number": sum(small_task(number)["number"] for number in numbers)}


@flow
def small_flow() -> dict[str, Any]:
    total = acknowledge(durable_small_task(0))["number"]
    total += sum(small_task(number)["number"] for number in range(1, TASKS - 4))
    total += small_part(list(range(TASKS - 4, TASKS)))["number"]
    return {"id": str(flow_run.id), "number": total}


SUM = sum(range(TASKS))


def warm_up(folder: Path) -> None:
    with Runtime(folder / "warm-up"):
        small_flow()


def thread_of_writer() -> int:
    (writer,) = (thread for thread in threading.enumerate() if thread.name == "asyncflow-writer")
    return writer.native_id or 0


def open_then_run(home: str) -> None:
    """Ready before the store is opened: what its thread, the main one, does can be counted."""
    say("ready", os.getpid(), threading.get_native_id())
    hear()
    with Runtime(home):
        acknowledge(small_flow())


def run_when_open(home: str) -> None:
    """Ready when the store is open: what the writer's thread does can be counted."""
    with Runtime(home):
        say("ready", os.getpid(), thread_of_writer())
        hear()
        acknowledge(small_flow())


# --- as many flows as there is time for, on every kind of host -------------------------------------


@task
async def step(number: int) -> dict[str, Any]:
    await anyio.sleep(0)
    return own_value(number)


@task
async def large_step(number: int) -> dict[str, Any]:
    return own_value(number, large=True)


@task(durability="task")
async def durable_step(number: int) -> dict[str, Any]:
    return own_value(number, large=number % 7 == 0)


@flow(durability="task")
async def durable_part(number: int) -> dict[str, Any]:
    for each in range(3):
        acknowledge(await step(number + each))
    return own_value(number)


@flow
async def part(number: int) -> dict[str, Any]:
    await step(number)
    acknowledge(await durable_step(number))
    return own_value(number)


@flow
async def whole(number: int) -> dict[str, Any]:
    async def durable() -> None:
        acknowledge(await durable_part(number))

    async with anyio.create_task_group() as group:
        group.start_soon(durable)
        group.start_soon(large_step, number)
        for each in range(8):
            group.start_soon(step, each)
    await part(number)
    return own_value(number, large=number % 3 == 0)


def run_without_end(home: str, backend: str) -> None:
    """Outermost flows, three at a time, until somebody kills this."""

    async def rounds(first: int) -> None:
        number = first
        while True:
            acknowledge(await whole(number))
            number += 3

    async def main() -> None:
        async with Runtime(home), anyio.create_task_group() as group:
            for first in range(3):
                group.start_soon(rounds, first)

    say("ready", os.getpid(), 0)
    if backend == "sync":
        with Runtime(home):
            while True:
                acknowledge(small_flow())
    anyio.run(main, backend=backend)


# --- a disk that fails -------------------------------------------------------------------------------


def told(action: Callable[[], Any]) -> bool:
    """Do it and say how it ended; whether it worked. Any error but the two documented ones ends the child."""
    try:
        value = action()
    except (StoreError, DurabilityError) as error:
        say("error", type(error).__name__, str(error))
        return False
    if isinstance(value, dict):
        acknowledge(value)
    return True


def wait_for_the_disk(backlog: int) -> None:
    say("waiting", backlog)
    hear()


def survive_opening(home: str, seconds: str) -> None:
    """Open the store on a failing disk until that works, as a service that is started again would."""
    say("ready", os.getpid(), threading.get_native_id())
    hear()
    while not _ran_two_flows(runtime := Runtime(home, durability_seconds=float(seconds))):
        told(runtime.close)
        wait_for_the_disk(0)


def survive_writing(home: str, seconds: str) -> None:
    """Run flows on a disk that fails under the writer's thread, and go on when it works again."""
    runtime = Runtime(home, durability_seconds=float(seconds))
    runtime.open()
    say("ready", os.getpid(), thread_of_writer())
    hear()
    assert _ran_two_flows(runtime)


def _ran_two_flows(runtime: Runtime) -> bool:
    """Whether it came to the end of them: what is told outside of them is of the opening or the closing."""
    done: list[bool] = []

    def two_flows() -> None:
        with runtime:
            store = runtime.open().store
            repaired: float | None = None
            for _ in range(2):
                while not told(small_flow):
                    assert repaired is None, "the disk works again, and a flow failed"
                    wait_for_the_disk(store.backlog)
                    repaired = time.monotonic()
                    while store.backlog or store.last_error:
                        time.sleep(0.001)
                    say("caught up", time.monotonic() - repaired)
            say("done", store.backlog)
            done.append(True)

    told(two_flows)
    return bool(done)


def fill_the_queue(home: str, limit: str) -> None:
    """A flow of many more tasks than may wait to be written, on a disk that has no space."""

    @flow
    async def many() -> dict[str, Any]:
        async with anyio.create_task_group() as group:
            for number in range(int(limit) * 20):
                group.start_soon(step, number)
        return own_value(0)

    async def main() -> None:
        async with Runtime(home, queue_limit=int(limit), durability_seconds=30) as runtime:
            say("ready", os.getpid(), 0)
            hear()
            store = runtime.open().store
            most = 0
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    nonlocal most
                    while store.last_error is None:
                        most = max(most, store.backlog)
                        await anyio.sleep(0.001)
                    for _ in range(300):
                        most = max(most, store.backlog)
                        await anyio.sleep(0.001)
                    say("waiting", most)
                    hear()

                group.start_soon(watch)
                acknowledge(await many())
            say("done", most)

    anyio.run(main)
