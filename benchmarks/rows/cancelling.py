"""How long a cancellation takes to reach everything."""

from __future__ import annotations

import time

import anyio

from asyncflow import cancel_flow_run
from benchmarks import bodies
from benchmarks.registry import LOOPS, Sample, Scale, row


async def cancel(count: int, *, nested: bool) -> tuple[float, float]:
    """Seconds from the call until the last `finally`, and until all is on disk."""
    sleepers = bodies.Sleepers(count)
    async with anyio.create_task_group() as group:
        group.start_soon(sleepers.run, nested)
        await sleepers.all_asleep.wait()
        await anyio.sleep(0.02)  # what was recorded of their beginning is written
        assert sleepers.run_id is not None
        begin = time.perf_counter()
        await cancel_flow_run(sleepers.run_id)
        end = time.perf_counter()
    return sleepers.last_finally - begin, end - begin


@row("cancel 1,000 running tasks: last finally", unit="ms", budget={"*": 60, "trio": 100}, backends=LOOPS)
async def cancel_thousand(scale: Scale) -> Sample:
    """By the id of their flow run."""
    last, _ = await cancel(1_000, nested=False)
    return Sample(last)


@row("cancel 1,000 running tasks: all on disk", unit="ms", budget={"*": 100, "trio": 150}, backends=LOOPS)
async def cancel_thousand_on_disk(scale: Scale) -> Sample:
    """The same, until `cancel_flow_run` returns."""
    _, on_disk = await cancel(1_000, nested=False)
    return Sample(on_disk)


@row("cancel flow > nested flow > 50 tasks: p99", unit="ms", budget=100, backends=LOOPS, repetitions=1)
async def cancel_tree(scale: Scale) -> Sample:
    """The 99th percentile of so many tries, until all is on disk."""
    tries = scale.of(100, 20)
    times = sorted([(await cancel(50, nested=True))[1] for _ in range(tries)])
    return Sample(times[-1 - tries // 100], f"median {times[tries // 2] * 1e3:.1f} ms, of {tries}")
