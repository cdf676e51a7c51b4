"""Runs on an event loop, against an empty child of an anyio task group on the same loop."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from asyncflow import get_client
from asyncflow.runtime import HOME
from benchmarks import bodies
from benchmarks.registry import Sample, Scale, reference, row

ASYNCIO_ONLY = ("asyncio", "uvloop")


async def per_item(call: Callable[[], Awaitable[Any]], count: int) -> Sample:
    """Seconds per item of a call that does `count` of them."""
    begin = time.perf_counter()
    await call()
    return Sample((time.perf_counter() - begin) / count)


@reference
async def bare(scale: Scale) -> Sample:
    """An empty child of an anyio task group."""
    count = scale.of(20_000, 5_000)

    async def children() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(bodies.empty)

    return await per_item(children, count)


@row("asyncio.TaskGroup child", reference="bare", backends=ASYNCIO_ONLY)
async def asyncio_child(scale: Scale) -> Sample:
    """For scale: what asyncio's own group costs."""
    count = scale.of(20_000, 5_000)

    async def children() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(bodies.empty())

    return await per_item(children, count)


@row("await noop() in sequence inside a flow", reference="bare", budget={"*": 0.5, "trio": 0.7})
async def sequence(scale: Scale) -> Sample:
    """The tightest loop a flow can be."""
    count = scale.of(20_000, 5_000)
    return await per_item(lambda: bodies.tasks_in_sequence(count), count)


@row("asyncio.gather of 20,000 noop()", reference="bare", budget=0.9, backends=ASYNCIO_ONLY)
async def gather(scale: Scale) -> Sample:
    """What most async code does."""
    count = scale.of(20_000, 5_000)
    return await per_item(lambda: bodies.tasks_gathered(count), count)


@row("20,000 children of the user's own anyio task group", reference="bare", budget={"*": 2.0, "trio": 2.4})
async def task_group(scale: Scale) -> Sample:
    """The reference's own work, with noop() for its child."""
    count = scale.of(20_000, 5_000)
    return await per_item(lambda: bodies.tasks_in_a_group(count), count)


@row("submit of 20,000, then await all", reference="bare", budget={"*": 1.0, "trio": 1.6})
async def submitted(scale: Scale) -> Sample:
    """Each in a task of its own, with a future."""
    count = scale.of(20_000, 5_000)
    return await per_item(lambda: bodies.tasks_submitted(count), count)


@row("map_stream of 20,000, at most 100 in flight", reference="bare")
async def streamed(scale: Scale) -> Sample:
    """Results as they come, in constant memory."""
    count = scale.of(20_000, 5_000)
    return await per_item(lambda: bodies.items_streamed(count, 100), count)


@row("nested async flow run in sequence", reference="bare", budget={"*": 1.2, "trio": 1.6})
async def nested_flows(scale: Scale) -> Sample:
    """Two records each: the flow run, and the task run that stands for it."""
    count = scale.of(10_000, 2_000)
    return await per_item(lambda: bodies.flows_in_sequence(count), count)


@row("outermost flow run, one at a time, less one commit each", reference="bare", budget=5)
async def outermost_flows(scale: Scale) -> Sample:
    """Each waits until it is on disk; a commit of the same kind, measured beside it, is taken off."""
    count = scale.of(500, 100)
    await bodies.outermost()
    commits = CommitCounter()

    async def one_by_one() -> None:
        for _ in range(count):
            await bodies.outermost()

    whole = (await per_item(one_by_one, count)).value
    per_run = commits.stop() / count
    commit = await anyio.to_thread.run_sync(seconds_per_commit, count)
    note = f"{whole * 1e6:.0f} us with it, a commit {commit * 1e6:.0f} us, {per_run:.2f} commits per run"
    return Sample(max(whole - commit, 0), note)


class CommitCounter:
    """Counts the transactions of the store's writing connection."""

    def __init__(self) -> None:
        services: Any = HOME.in_force()
        self._connection = services.store._writer._connection
        self._statements: list[str] = []
        self._connection.set_trace_callback(self._statements.append)

    def stop(self) -> int:
        """How many there were: single statements outside of BEGIN and COMMIT, and such pairs."""
        self._connection.set_trace_callback(None)
        count = 0
        inside = False
        for statement in self._statements:
            word = statement.split(maxsplit=1)[0].upper()
            if word in ("BEGIN", "COMMIT", "ROLLBACK"):
                inside = word == "BEGIN"
                count += word == "COMMIT"
            elif word == "INSERT" and not inside:
                count += 1
        return count


def seconds_per_commit(count: int) -> float:
    """What SQLite itself needs to bring one small row to this disk, as the store is set up."""
    with TemporaryDirectory(dir=HOME.in_force().settings.home.parent) as folder:  # type: ignore[union-attr]
        connection = sqlite3.connect(Path(folder) / "commits.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE run (id BLOB PRIMARY KEY, row TEXT)")
        times: list[float] = []
        for number in range(count):
            begin = time.perf_counter()
            connection.execute("INSERT INTO run VALUES (?, ?)", (number.to_bytes(16, "big"), "x" * 300))
            times.append(time.perf_counter() - begin)
        connection.close()
    return statistics.median(times)


@row("1,000 outermost flow runs at once, each", reference="bare", budget={"*": 4, "trio": 8})
async def outermost_at_once(scale: Scale) -> Sample:
    """A web service under load."""
    count = 1_000

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(bodies.outermost)

    return await per_item(all_at_once, count)


@row('durability="task", 100 at once, each', reference="bare", budget=2)
async def durable(scale: Scale) -> Sample:
    """Each waits for the disk; a hundred share a commit."""
    rounds = scale.of(50, 10)
    return await per_item(lambda: bodies.durable_tasks(rounds, 100), rounds * 100)


@row("200,000 runs with 10 us bodies: on top of the body", reference="bare", budget=0.5, repetitions=3)
async def sustained(scale: Scale) -> Sample:
    """Whether the disk keeps up while the loop never rests."""
    count = scale.of(200_000, 20_000)

    async def bodies_alone() -> None:
        for _ in range(count):
            await bodies.burn_ten_microseconds()

    alone = (await per_item(bodies_alone, count)).value
    deepest = 0
    services: Any = HOME.in_force()

    async def watch() -> None:
        nonlocal deepest
        while True:
            deepest = max(deepest, services.store.backlog)
            await anyio.sleep(0.005)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        tracked = (await per_item(lambda: bodies.burning_tasks(count), count)).value
        group.cancel_scope.cancel()
    note = f"body {alone * 1e6:.1f} us, at most {deepest:,} records waited"
    return Sample(max(tracked - alone, 0), note)


@row("read_flow_run of a finished run", unit="us")
async def read_run(scale: Scale) -> Sample:
    """What looking at a record costs; no budget."""
    client = get_client()
    await bodies.outermost()
    (newest,) = await client.read_flow_runs(limit=1)
    count = scale.of(500, 100)

    async def reads() -> None:
        for _ in range(count):
            await client.read_flow_run(newest.id)

    return await per_item(reads, count)
