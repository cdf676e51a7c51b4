"""A program that has a runtime, and handles SIGTERM itself: `python -m tests.stop_programs.bare asyncio LOAD`."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress

import anyio
import trio

from asyncflow import Runtime
from asyncflow.exceptions import RunInterruptedError
from tests.stop_programs.work import FLOWS, ready, ticks


async def main(load: str, stop: asyncio.Event | trio.Event) -> None:
    async with anyio.create_task_group() as group, Runtime():
        if load == "idle":
            ready()
        elif load == "open stream":
            group.start_soon(read)
        else:
            await FLOWS[load].submit().recorded()
        await stop.wait()


async def read() -> None:
    with suppress(RunInterruptedError):
        async with ticks.stream() as items:
            async for _ in items:
                pass


async def on_asyncio(load: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await main(load, stop)


async def on_trio(load: str) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def listen() -> None:
            await anext(signals)
            stop.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await main(load, stop)


if __name__ == "__main__":
    _, backend, load = sys.argv
    if backend == "asyncio":
        asyncio.run(on_asyncio(load))
    else:
        trio.run(on_trio, load)
