"""Sync bodies: in worker threads, and on the calling thread."""

from __future__ import annotations

import time

import anyio.to_thread

from benchmarks import bodies
from benchmarks.registry import PROCESS, Sample, Scale, reference, row
from benchmarks.rows.loops import per_item


@reference
async def to_thread(scale: Scale) -> Sample:
    """An empty function in a worker thread, by anyio."""
    count = scale.of(3_000, 500)

    async def calls() -> None:
        for _ in range(count):
            await anyio.to_thread.run_sync(bodies.empty_sync)

    return await per_item(calls, count)


@row("sync task from an async flow (acall)", reference="to_thread", budget=1.2)
async def acall(scale: Scale) -> Sample:
    """There and back again."""
    count = scale.of(3_000, 500)
    return await per_item(lambda: bodies.threads_in_sequence(count), count)


@row("sync task from an async flow (submit)", reference="to_thread")
async def submitted_to_thread(scale: Scale) -> Sample:
    """All at once, in at most 64 threads."""
    count = scale.of(3_000, 500)
    return await per_item(lambda: bodies.threads_submitted(count), count)


@row("sync task in a sync flow", reference="bare", budget=0.2, backends=PROCESS)
def sync_in_sync(scale: Scale) -> Sample:
    """On the calling thread: no loop is started."""
    count = scale.of(20_000, 5_000)
    begin = time.perf_counter()
    bodies.sync_tasks_in_sequence(count)
    return Sample((time.perf_counter() - begin) / count)
