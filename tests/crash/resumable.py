"""What the children do that are killed and whose flows are resumed: every execution leaves a line in a file.

The tasks below wait a random time, another one in each life, so that a resumed flow comes to its
calls in another order than the flow that was killed did.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio

from asyncflow import Runtime, flow, get_client, resume_flow_run, task
from tests.crash.programs import say

LANES = 2
STEPS = 3
POSITIONS = 6
ROUNDS = 3
LONGEST = 0.006
"""Seconds a task may wait."""

_executions: int | None = None


def note_executions(home: Path) -> None:
    global _executions
    home.mkdir(exist_ok=True)
    _executions = os.open(home / "executions.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def executed(*what: object) -> None:
    assert _executions is not None
    os.write(_executions, (" ".join(map(str, what)) + "\n").encode())
    say("executed")


async def some_time() -> None:
    await anyio.sleep(random.uniform(0, LONGEST))


async def together(bodies: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """`asyncio.gather`, and what is nearest to it on trio."""
    if _is_asyncio():
        return list(await asyncio.gather(*(body() for body in bodies)))
    results: list[Any] = [None] * len(bodies)

    async def one(number: int, body: Callable[[], Awaitable[Any]]) -> None:
        results[number] = await body()

    async with anyio.create_task_group() as group:
        for number, body in enumerate(bodies):
            group.start_soon(one, number, body)
    return results


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- two lanes of three tasks, each given what the one before returned ------------------------------


@task
async def step(seed: int, lane: int, number: int, before: int) -> dict[str, int]:
    executed(seed, lane, number)
    await some_time()
    return {"seed": seed, "lane": lane, "number": number, "total": value_of_step(before, seed, lane, number)}


def value_of_step(before: int, seed: int, lane: int, number: int) -> int:
    return (before * 31 + seed * 7 + lane * 3 + number) % 1_000_003


async def lane_of(seed: int, lane: int) -> int:
    total = 0
    for number in range(STEPS):
        await some_time()
        total = (await step(seed, lane, number, total))["total"]
    return total


@flow
async def lanes(seed: int) -> list[int]:
    return await together([partial(lane_of, seed, lane) for lane in range(LANES)])


@flow(name="durable lanes", durability="task")
async def durable_lanes(seed: int) -> list[int]:
    return await together([partial(lane_of, seed, lane) for lane in range(LANES)])


def value_of_lanes(seed: int) -> list[int]:
    totals = [0] * LANES
    for lane in range(LANES):
        for number in range(STEPS):
            totals[lane] = value_of_step(totals[lane], seed, lane, number)
    return totals


# --- six positions that call one task with equal arguments -------------------------------------------


@task(durability="task")
async def draw(queue: str) -> str:
    """Another value each time it is executed."""
    await some_time()
    token = str(uuid4())
    executed("draw", token)
    return token


@flow
async def drawing(seed: int) -> list[list[str]]:
    async def position(place: int) -> list[str]:
        tokens: list[str] = []
        for number in range(ROUNDS):
            await some_time()
            tokens.append(await draw("orders", run_key=f"position {place}, round {number}"))
            say("got", seed, place, number, tokens[-1])
        return tokens

    return await together([partial(position, place) for place in range(POSITIONS)])


# --- an argument that cannot be digested ---------------------------------------------------------------


class Tenant:
    """Nothing of it can be compared between two processes."""

    def __init__(self, name: str) -> None:
        self._socket = object()
        self.name = name


@task(durability="task")
async def fetch(tenant: Tenant, page: int) -> str:
    await some_time()
    executed("fetch", tenant.name, page)
    return f"{tenant.name} {page}"


@flow
async def of_tenants(seed: int) -> list[list[str]]:
    async def pages(tenant: Tenant) -> list[str]:
        return [await fetch(tenant, page) for page in range(ROUNDS)]

    tenants = [Tenant(f"tenant {number}") for number in range(POSITIONS)]
    return await together([partial(pages, tenant) for tenant in tenants])


# --- their lives -------------------------------------------------------------------------------------

FLOWS: dict[str, Any] = {each.name: each for each in (lanes, durable_lanes, drawing, of_tenants)}


def _live(home: str, backend: str, life: Callable[[], Awaitable[None]]) -> None:
    note_executions(Path(home))
    random.seed()

    async def main() -> None:
        async with Runtime(home):
            say("ready", os.getpid(), 0)
            await life()

    anyio.run(main, backend=backend)


def first_life(home: str, backend: str, name: str, first: str, seeds: str) -> None:
    """So many runs of a flow, one for each seed, at once."""

    async def life() -> None:
        async with anyio.create_task_group() as group:
            for seed in range(int(first), int(first) + int(seeds)):
                group.start_soon(_told, seed, partial(FLOWS[name], seed))

    _live(home, backend, life)


def next_life(home: str, backend: str, name: str) -> None:
    """Resume all runs that did not complete."""

    async def life() -> None:
        left = [run for run in await get_client().read_flow_runs(limit=10_000) if not run.state.is_completed()]
        async with anyio.create_task_group() as group:
            for run in left:
                again = partial(resume_flow_run, UUID(str(run.id)), flow=FLOWS[name])
                group.start_soon(_told, run.parameters["seed"], again)

    _live(home, backend, life)


async def _told(seed: int, call: Callable[[], Awaitable[Any]]) -> None:
    say("value", seed, await call())
