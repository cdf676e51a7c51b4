"""What a process of `test_control` runs: flows that wait, pause, receive; it tells by lines what it has done.

`python -m tests.control_program HOME BACKEND FLOW [SETTING=VALUE ...]`
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import anyio
from pydantic import BaseModel, field_validator

from asyncflow import Runtime, checkpoint, flow, pause_flow_run, receive_input, runtime, suspend_flow_run, task


class Approval(BaseModel):
    """What a person is asked for."""

    approved: bool
    by: str = "nobody"


class Share(BaseModel):
    """An input whose check has a bug."""

    share: int

    @field_validator("share")
    @classmethod
    def _part(cls, share: int) -> int:
        return 100 // share


def tell(*words: object) -> None:
    """Say something to whoever has started this process."""
    print(*words, flush=True)


@task
async def work(name: str) -> str:
    """Something that is recorded."""
    tell("work", name)
    return name


@flow
async def waits() -> None:
    """A body that goes on until it is cancelled, and then cleans up."""
    tell("begun", runtime.flow_run.id)
    try:
        await anyio.sleep(3600)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        tell("cleaned up")


@flow
def waits_in_a_thread() -> None:
    """The same in a sync body."""
    tell("begun", runtime.flow_run.id)
    while True:
        checkpoint()
        time.sleep(0.001)


@flow
async def nests() -> None:
    """A flow run in a flow run."""
    await waits()


@flow
async def pauses() -> str:
    """Waits in place for a typed input."""
    tell("begun", runtime.flow_run.id)
    approval = await pause_flow_run(wait_for_input=Approval, key="approval")
    tell("resumed", approval.approved, approval.by)
    return approval.by


@flow
def pauses_in_a_thread() -> int:
    """The same in a sync body."""
    tell("begun", runtime.flow_run.id)
    number = pause_flow_run(wait_for_input=int).result()
    tell("resumed", number)
    return number


@flow
async def pauses_with_a_bug() -> None:
    """Waits for an input that is not checked as it should be."""
    tell("begun", runtime.flow_run.id)
    tell("resumed", (await pause_flow_run(wait_for_input=Share)).share)


@flow
async def steps() -> None:
    """Runs one task after another."""
    tell("begun", runtime.flow_run.id)
    number = 0
    while True:
        await work(str(number))
        number += 1
        await anyio.sleep(0.005)


@flow
async def suspends() -> list[str]:
    """Waits for an input without a process."""
    tell("begun", runtime.flow_run.id)
    first = await work("first")
    approval = await suspend_flow_run(wait_for_input=Approval)
    return [first, approval.by, await work("second")]


@flow
async def receives() -> None:
    """Says what it receives."""
    tell("begun", runtime.flow_run.id)
    while True:
        tell("received", await receive_input(int), time.time())


FLOWS: dict[str, Any] = {each.name: each for each in (
    waits, waits_in_a_thread, nests, pauses, pauses_in_a_thread, pauses_with_a_bug, steps, suspends, receives,
)}  # fmt: skip


async def main(home: str, name: str, **fields: Any) -> None:
    """Run one of them, and stay when it has ended; `many` is one that waits after another."""
    async with Runtime(home, **fields):
        while name == "many":
            await waits(return_state=True)
        future = FLOWS[name].submit()
        await future.wait_async()
        tell("ended", future.state.name)
        await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


if __name__ == "__main__":
    threading.excepthook = lambda args: tell("a thread raised", args.exc_value)
    folder, backend, flow_name, *settings = sys.argv[1:]
    given = {each.partition("=")[0]: float(each.partition("=")[2]) for each in settings}

    async def begin() -> None:
        """With the settings by keyword."""
        await main(folder, flow_name.replace("_", "-"), **given)

    anyio.run(begin, backend=backend)
