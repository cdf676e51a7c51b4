"""The flows that are in the middle of something when their program is told to stop."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from asyncflow import Flow, flow, task

MANY = 1000
FEW = 20

goes_on = "RESUMED" in os.environ
"""Whether this is the next start, where nothing waits any more."""
_inside = 0


def ready() -> None:
    """Tell the test that the program is where it is to be when the signal comes."""
    Path(os.environ["READY"]).touch()


async def _wait(count: int) -> None:
    """Never return, and be `ready` when so many are here."""
    global _inside
    _inside += 1
    if not goes_on:
        if _inside == count:
            ready()
        await anyio.sleep_forever()


@task
async def wait_among(count: int, number: int) -> int:
    await _wait(count)
    return number


@flow(resume="auto")
async def waits() -> str:
    await _wait(1)
    return "done"


@flow(resume="auto")
async def many() -> int:
    return sum(await wait_among.map(count=MANY, number=list(range(MANY))))


@flow(resume="auto")
async def few() -> int:
    return sum(await wait_among.map(count=FEW, number=list(range(FEW))))


@task
def sleep_in_thread() -> None:
    if not goes_on:
        ready()
        time.sleep(3600)


@flow(resume="auto")
async def stuck() -> str:
    await sleep_in_thread.acall()
    return "done"


@task
async def swallow_cancellation() -> None:
    ready()
    while not goes_on:
        with suppress(BaseException):  # what nobody should do, and many do
            await anyio.sleep(3600)


@flow(resume="auto")
async def deaf() -> str:
    await swallow_cancellation()
    return "done"


@flow
async def ticks() -> AsyncIterator[int]:
    number = 0
    while True:
        yield number
        if number == 1:
            ready()  # the first was taken
        number += 1
        await anyio.sleep(0.01)


FLOWS: dict[str, Flow[..., Any]] = {"1000 tasks": many, "stuck thread": stuck, "deaf body": deaf, "stalled store": few}
"""What is started in the background, by the name of the load. `idle` starts nothing and `open stream` reads `ticks`."""
