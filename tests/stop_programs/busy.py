"""Flows that end by themselves, for signals at any instant of their programs; and where they are told at."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio

from asyncflow import flow, task

STAGE = os.environ.get("STAGE", "")
"""Where the program is to wait for the signal."""


def here(name: str) -> float:
    """If the signal is to come here, tell the test and give the seconds to wait for it."""
    if name != STAGE:
        return 0
    Path(os.environ["READY"]).touch()
    return 30


def must_wait() -> bool:
    """Whether the test has something to do before the run may end."""
    return STAGE == "recording" and not Path(os.environ["READY"]).with_name("go").exists()


time.sleep(0.02 + here("import"))


@task
async def step(number: int) -> int:
    try:
        await anyio.sleep(0.01 + here("body"))
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.002)
    return number


@flow
async def part(number: int) -> int:
    async with anyio.create_task_group() as group:
        for each in range(3):
            group.start_soon(step, each)
    return sum(await step.map([number, number + 1]))


@flow
async def busy(parts: int = 4) -> int:
    total = 0
    try:
        for number in range(parts):
            total += await part(number)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.02 + min(here("finally"), 0.5))
        await step(-1)
    here("recording")
    while must_wait():
        await anyio.sleep(0.01)
    return total


@task
def sync_step(number: int) -> int:
    try:
        time.sleep(0.005 + here("body"))
    finally:
        time.sleep(0.002)
    return number


@flow
def sync_part(number: int) -> int:
    return sum(sync_step(each) for each in range(number, number + 3))


@flow
def sync_busy(parts: int = 4) -> int:
    total = 0
    try:
        for number in range(parts):
            total += sync_part(number)
    finally:
        time.sleep(0.02 + min(here("finally"), 0.5))
    here("recording")
    while must_wait():
        time.sleep(0.01)
    return total
