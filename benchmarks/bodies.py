"""The flows and tasks that are measured, and the plain functions beside them."""

from __future__ import annotations

import asyncio
import time

import anyio

from asyncflow import flow, task

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
