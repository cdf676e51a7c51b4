"""Memory and disk."""

from __future__ import annotations

import resource
import sqlite3
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from asyncflow import Runtime, flow, task
from asyncflow.runtime import HOME
from benchmarks import bodies
from benchmarks.registry import Sample, Scale, row

ONE_LOOP = ("asyncio",)


def resident() -> int:
    """Bytes of this process in memory now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the most there ever was, in KiB or (macOS) bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


@row("memory: drift over 1,000,000 sequential runs", unit="MB", budget=5, backends=ONE_LOOP, repetitions=1)
async def drift(scale: Scale) -> Sample:
    """From the first tenth, when everything has its size, to the end; in one flow run."""
    count = scale.of(1_000_000, 100_000)
    await bodies.tasks_in_sequence(count // 10)
    before = resident()
    await bodies.tasks_in_sequence(count)
    return Sample((resident() - before) / 1e6, f"{count:,} runs, {resident() / 1e6:.0f} MB in all")


@row("memory: a waiting submitted task", unit="B", backends=ONE_LOOP, repetitions=3)
async def waiting(scale: Scale) -> Sample:
    """10,000 of each, asleep on one event. The budget is a ratio: 1.3."""
    count = 10_000
    event = anyio.Event()

    async def wait() -> None:
        await event.wait()

    async def size_of(start: Callable[[], Awaitable[object]]) -> float:
        tracemalloc.start()
        kept = await start()
        for _ in range(3):
            await anyio.sleep(0.05)
        size = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        del kept
        return size

    sizes: list[float] = []
    waiting_task = task(wait, name="waiting", persist_result=False)

    async def submit() -> object:
        return [waiting_task.submit() for _ in range(count)]

    async def spawn() -> object:
        return [group.start_soon(wait) for _ in range(count)]

    async def measured() -> None:
        sizes.append(await size_of(submit))
        event.set()

    await flow(measured)()
    event = anyio.Event()
    async with anyio.create_task_group() as group:
        sizes.append(await size_of(spawn))
        event.set()
    return Sample(sizes[0], f"{sizes[0] / sizes[1]:.2f} x the {sizes[1]:.0f} B of an anyio child")


@row(
    "memory: 1,000,000 items through map_stream", unit="MB", budget=150, backends=ONE_LOOP, repetitions=1, optional=True
)
async def streamed_memory(scale: Scale) -> Sample:
    """All that the process takes at its end."""
    count = scale.of(1_000_000, 100_000)
    begin = time.perf_counter()
    await bodies.items_streamed(count, 100)
    return Sample(resident() / 1e6, f"{count:,} items in {time.perf_counter() - begin:.0f} s")


@row("memory: a finished run not yet written", unit="B", budget=1024, backends=ONE_LOOP, repetitions=3)
async def unwritten(scale: Scale) -> Sample:
    """While another process holds the database's write lock."""
    count = 5_000
    services: Any = HOME.in_force()
    await bodies.tasks_in_sequence(count)
    blocker = sqlite3.connect(services.settings.home / "asyncflow.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    size = 0

    async def measured() -> None:
        nonlocal size
        tracemalloc.start()
        for _ in range(count):
            await bodies.noop()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        blocker.execute("ROLLBACK")

    await flow(measured)()
    blocker.close()
    return Sample(size / count)


def disk_of(home: Path) -> tuple[int, int]:
    """Bytes of the database and of the result files."""
    database = sum(path.stat().st_size for path in home.glob("asyncflow.db*"))
    results = sum(path.stat().st_size for path in (home / "results").rglob("*") if path.is_file())
    return database, results


@row("disk per task run: the database", unit="B", budget=300, backends=ONE_LOOP, repetitions=1)
async def disk(scale: Scale) -> Sample:
    """In a home of its own, closed, so that the log is folded into the file."""
    count = scale.of(100_000, 20_000)
    services: Any = HOME.in_force()
    home = services.settings.home.parent / "disk"
    async with Runtime(home):
        await bodies.outermost()
    before = disk_of(home)
    async with Runtime(home):
        await bodies.tasks_in_sequence(count)
    database, results = (after - first for after, first in zip(disk_of(home), before, strict=True))
    return Sample(database / count, f"and {results / count:.0f} B in result files")
