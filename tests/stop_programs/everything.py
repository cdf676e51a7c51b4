"""A service that is stopped again and again until its flow has come to its end: `python -m ... BACKEND`.

The flow has something of all that can be under way when a runtime stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import trio

from asyncflow import Runtime, checkpoint, concurrency, detached, flow, get_client, task, transaction
from asyncflow.cache_policies import INPUTS
from asyncflow.runtime import task_run

PARTS = 3


@task(retries=3, retry_delay_seconds=0.02)
async def shaky(number: int) -> int:
    await anyio.sleep(0.005)
    if task_run.run_count < 3:
        raise ConnectionError
    return number


@task
def in_thread(number: int) -> int:
    for _ in range(10):
        checkpoint()
        time.sleep(0.001)
    return number


@task
def waits_for_others(number: int) -> int:
    return sum(future.result() for future in in_thread.map([number, number + 1]))


@task(cache_policy=INPUTS)
async def cached(number: int) -> int:
    await anyio.sleep(0.01)
    return number


@task
async def in_turn(number: int) -> int:
    async with concurrency("turn", 1):
        await anyio.sleep(0.005)
    return number


@task
async def items(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number
        await anyio.sleep(0.002)


@flow
async def nested(number: int) -> int:
    async with transaction():
        total = await cached(number) + await shaky(number)
    async with in_turn.map_stream(range(6), limit=3) as values:
        async for value in values:
            total += value
    return total


@flow
def sync_nested(number: int) -> int:
    return in_thread(number) + waits_for_others(number)


@flow(resume="auto")
async def follow_up(number: int) -> int:
    return await shaky(number)


@flow(resume="auto")
async def everything() -> int:
    totals: list[int] = []

    async def add(call: Any, *arguments: Any) -> None:
        totals.append(await call(*arguments))

    for number in range(PARTS):
        async with anyio.create_task_group() as group:
            group.start_soon(add, nested, number)
            group.start_soon(add, sync_nested.acall, number)
            group.start_soon(add, cached, number)
        async with items.stream(5) as values:
            totals.extend([value async for value in values])
        totals.extend(await in_turn.map(range(3)))
    with detached():
        follow_up.submit(sum(totals))
    return sum(totals)


def expected() -> int:
    return sum(2 * n + 15 + n + (2 * n + 1) + n + 10 + 3 for n in range(PARTS))


async def main(stop: asyncio.Event | trio.Event) -> None:
    async with Runtime() as opened:
        if not await get_client(opened).read_flow_runs(flow_name="everything"):
            await everything.submit().recorded()
        Path(os.environ["READY"]).touch()
        await stop.wait()


async def on_asyncio() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await main(stop)


async def on_trio() -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def listen() -> None:
            await anext(signals)
            stop.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await main(stop)


if __name__ == "__main__":
    if sys.argv[1] == "asyncio":
        asyncio.run(on_asyncio())
    else:
        trio.run(on_trio)
