"""Random programs, broken off at random points and resumed in another order, have to end as if nothing had been.

A program is a tree of sequences, task groups and nested flows whose leaves call tasks. Every leaf
counts how often its body came to its end: exactly once, however often the program was broken off.
(A sync body in a thread may come to its end after it was cancelled; its value is dropped then.)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import Runtime, flow, get_client, resume_flow_run, task
from asyncflow.abc import RunStore
from asyncflow.stores.memory import MemoryStore

PROGRAMS = 40
"""For each loop and store."""

UNFINISHED = object()
Node = tuple[Any, ...]


class BrokenOff(Exception):
    pass


@dataclass
class World:
    """What the bodies share: when the next one is to break off, what has ended, and in which order groups begin."""

    dice: random.Random
    left: int
    ended: Counter[str] = field(default_factory=Counter[str])

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise BrokenOff


world: World


@task
async def work(label: str) -> str:
    await anyio.sleep(0)
    world.step()
    await anyio.sleep(0)
    world.ended[label] += 1
    return label


@task(retries=1)
async def flaky(label: str) -> str:
    world.step()  # the second attempt goes through
    world.ended[label] += 1
    return label


@task
def blocking(label: str) -> str:
    return label


@task
async def chained(label: str) -> str:
    """A task that calls a task."""
    return await work(f"{label}+")


@flow
async def nested(node: Node) -> Any:
    return await run(node)


async def run(node: Node) -> Any:
    kind, *rest = node
    if kind == "sequence":
        return [await run(each) for each in rest]
    if kind == "group":
        found: dict[int, Any] = {}

        async def keep(index: int, each: Node) -> None:
            found[index] = await run(each)

        async with anyio.create_task_group() as group:
            for index, each in world.dice.sample(list(enumerate(rest)), len(rest)):
                group.start_soon(keep, index, each)
        return [found[index] for index in range(len(rest))]
    if kind == "flow":
        return await nested(rest[0])
    if kind == "submit":
        return await chosen(rest[0]).submit(rest[1])
    if kind == "equal":  # calls with equal arguments, told apart
        return await work("equal", run_key=rest[0])
    return await chosen(kind).acall(rest[0])


def chosen(kind: str) -> Any:
    return {"work": work, "flaky": flaky, "blocking": blocking, "chained": chained}[kind]


@flow
async def program(node: Node) -> Any:
    return await run(node)


def grow(dice: random.Random, labels: list[str], depth: int = 0) -> Node:
    """A random program; each leaf takes a label of its own."""
    if depth >= 4 or (depth and dice.random() < 0.35):
        label = f"leaf{dice.getrandbits(48)}"
        kind = dice.choice(["work", "work", "flaky", "blocking", "chained", "submit", "equal"])
        how = (dice.choice(["work", "blocking"]), label) if kind == "submit" else (label,)
        if "blocking" not in (kind, *how):
            labels.append(f"{label}+" if kind == "chained" else "equal" if kind == "equal" else label)
        return (kind, *how)
    if depth and dice.random() < 0.25:
        return ("flow", grow(dice, labels, depth + 1))
    return (dice.choice(["sequence", "group"]), *(grow(dice, labels, depth + 1) for _ in range(dice.randint(1, 3))))


def expected(node: Node) -> Any:
    kind, *rest = node
    if kind in ("sequence", "group"):
        return [expected(each) for each in rest]
    if kind == "flow":
        return expected(rest[0])
    label = rest[-1]
    return f"{label}+" if kind == "chained" else "equal" if kind == "equal" else label


async def until_it_completes(node: Node, dice: random.Random) -> Any:
    """Run a program, break it off, resume it, break it off again ..."""
    value = await broken_off(program(node), dice)
    [record] = await get_client().read_flow_runs(flow_name="program", limit=1)
    while value is UNFINISHED:
        value = await broken_off(resume_flow_run(record.id), dice)
    return value


async def broken_off(running: Awaitable[Any], dice: random.Random) -> Any:
    world.left = dice.randint(1, 8)
    value: Any = UNFINISHED
    try:
        value = await running
    except* BrokenOff:
        pass
    return value


@pytest.mark.parametrize("in_memory", [False, True], ids=["sqlite", "memory"])
async def test_random_programs(tmp_path: Path, in_memory: bool) -> None:
    global world
    store: RunStore | None = MemoryStore() if in_memory else None
    async with Runtime(tmp_path / "home", store=store, synchronous="normal"):
        for seed in range(PROGRAMS):
            dice = random.Random(seed)
            labels: list[str] = []
            node = grow(dice, labels)
            world = World(dice, 0)
            value = await until_it_completes(node, dice)
            assert value == expected(node), f"seed {seed}"
            assert world.ended == Counter(labels), f"seed {seed}"
            unfinished = await get_client().read_flow_runs(state=["PENDING", "RUNNING", "SCHEDULED"])
            assert unfinished == [], f"seed {seed}"
