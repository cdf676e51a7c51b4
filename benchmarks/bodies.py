"""The flows and tasks that are measured, and the plain functions beside them."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import anyio

from asyncflow import flow, runtime, task

TEN_MICROSECONDS = 10e-6


async def empty() -> None:
    """A child that does nothing."""


def empty_sync() -> None:
    """The same, for a thread."""


async def burn_ten_microseconds() -> None:
    """A child that computes."""
    end = time.perf_counter() + TEN_MICROSECONDS
    while time.perf_counter() < end:
        pass


noop = task(empty)
noop_sync = task(empty_sync)
durable_noop = task(empty, durability="task")
burn = task(burn_ten_microseconds)
nested = flow(empty, name="nested")
outermost = flow(empty, name="outermost")


@flow
async def tasks_in_sequence(count: int) -> None:
    """One after the other."""
    for _ in range(count):
        await noop()


@flow
async def tasks_gathered(count: int) -> None:
    """All at once, by asyncio's own means."""
    await asyncio.gather(*[noop() for _ in range(count)])


@flow
async def tasks_in_a_group(count: int) -> None:
    """All at once, in the user's own task group."""
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(noop)


@flow
async def flows_in_sequence(count: int) -> None:
    """Nested flow runs, one after the other."""
    for _ in range(count):
        await nested()


@flow
async def threads_in_sequence(count: int) -> None:
    """Sync tasks from async code."""
    for _ in range(count):
        await noop_sync.acall()


@flow
def sync_tasks_in_sequence(count: int) -> None:
    """Sync tasks in a sync flow: no loop, no thread."""
    for _ in range(count):
        noop_sync()


@flow
async def durable_tasks(rounds: int, at_once: int) -> None:
    """Tasks that each wait for the disk."""
    for _ in range(rounds):
        async with anyio.create_task_group() as group:
            for _ in range(at_once):
                group.start_soon(durable_noop)


@flow
async def burning_tasks(count: int) -> None:
    """Tasks that compute, without a pause."""
    for _ in range(count):
        await burn()


@flow
async def paced_tasks(count: int, interval: float) -> None:
    """A task run every `interval` seconds."""
    begin = anyio.current_time()
    for number in range(count):
        await anyio.sleep_until(begin + number * interval)
        await noop()


@flow
async def tasks_submitted(count: int) -> None:
    """All at once, in the flow's task runner; then each is awaited."""
    futures = [noop.submit() for _ in range(count)]
    for future in futures:
        await future


@flow
async def threads_submitted(count: int) -> None:
    """Sync tasks in worker threads, all at once."""
    futures = [noop_sync.submit() for _ in range(count)]
    for future in futures:
        await future


@task
async def double(number: int) -> int:
    """An item's run."""
    return number * 2


@flow(persist_result=False)
async def items_streamed(count: int, limit: int) -> int:
    """A sum over the results of a stream of runs."""
    total = 0
    async with double.map_stream(range(count), limit=limit) as results:
        async for result in results:
            total += result
    return total


class Sleepers:
    """A flow whose children wait until they are cancelled, and what became of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asleep = 0
        self.all_asleep = anyio.Event()
        self.last_finally = 0.0
        self.run_id: UUID | None = None

    async def _sleep(self) -> None:
        self.asleep += 1
        if self.asleep == self.count:
            self.all_asleep.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.last_finally = time.perf_counter()

    async def run(self, nested: bool) -> None:
        """Submit them, in a nested flow or not, and wait."""
        sleeping = task(self._sleep, name="sleeping")

        @flow(name="sleepers")
        async def start() -> None:
            for _ in range(self.count):
                sleeping.submit()

        @flow(name="around")
        async def around() -> None:
            self.run_id = runtime.flow_run.id
            await (start() if nested else start.fn())
            await anyio.sleep_forever()

        await around(return_state=True)
