"""What runs do to a loop that has other things to do, and what such a loop does to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from benchmarks import bodies
from benchmarks.registry import Sample, Scale, row

RATE = 1_000


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@asynccontextmanager
async def always_ready(backend: str) -> AsyncIterator[None]:
    """A loop that always has something to do next, so that it never sleeps."""
    going = True
    if backend != "trio":
        loop = asyncio.get_running_loop()

        def again() -> None:
            if going:
                loop.call_soon(again)

        loop.call_soon(again)
        try:
            yield
        finally:
            going = False
        return

    async def spin() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(spin)
        yield
        group.cancel_scope.cancel()


@row("outermost flow on a loop that is never idle, p99", unit="ms", budget=60, repetitions=3)
async def busy_loop(scale: Scale) -> Sample:
    """The store's thread gets the GIL only when it is given."""
    times: list[float] = []
    async with always_ready(scale.backend):
        for _ in range(scale.of(300, 50)):
            begin = time.perf_counter()
            await bodies.outermost()
            times.append(time.perf_counter() - begin)
    return Sample(quantile(times, 0.99), f"median {quantile(times, 0.5) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")


@row("CPU at 1,000 runs/s on an idle loop, per run", unit="us", budget=100, repetitions=3)
async def idle_cpu(scale: Scale) -> Sample:
    """Of all threads; what the pacing itself costs is taken off."""
    count = scale.of(5 * RATE, RATE)

    async def paced_plain() -> None:
        begin = anyio.current_time()
        for number in range(count):
            await anyio.sleep_until(begin + number / RATE)
            await bodies.empty()

    before = time.process_time()
    await paced_plain()
    between = time.process_time()
    await bodies.paced_tasks(count, 1 / RATE)
    pacing = between - before
    return Sample((time.process_time() - between - pacing) / count, f"pacing {pacing / count * 1e6:.0f} us")


async def tick_beside_runs(scale: Scale) -> list[float]:
    """How late each tick of a 1 ms ticker is, in seconds."""
    count = scale.of(10 * RATE, 2 * RATE)
    late: list[float] = []

    async def tick() -> None:
        due = anyio.current_time()
        while True:
            due += 1 / RATE
            await anyio.sleep_until(due)
            now = anyio.current_time()
            late.append(now - due)
            due = max(due, now - 1 / RATE)  # a late tick is one late tick, not a row of them

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await bodies.paced_tasks(count, 1 / RATE)
        group.cancel_scope.cancel()
    return late


@row("1 ms ticker beside 1,000 task runs/s: late, p99.9", unit="ms", budget=3, repetitions=3)
async def ticker(scale: Scale) -> Sample:
    """Whether the rest of the program notices."""
    late = await tick_beside_runs(scale)
    return Sample(quantile(late, 0.999), f"median {quantile(late, 0.5) * 1e3:.2f} ms")


@row("1 ms ticker beside 1,000 task runs/s: late, worst", unit="ms", budget=10, repetitions=3)
async def ticker_worst(scale: Scale) -> Sample:
    """One pause is one too many."""
    return Sample(max(await tick_beside_runs(scale)))
