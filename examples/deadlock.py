"""Two tasks that each hold what the other one waits for, and a program that says so instead of hanging.

    python examples/deadlock.py            # asyncio
    python examples/deadlock.py trio

`transfer` takes the locks of two accounts, but in the order that its caller names them. Two transfers
in opposite directions at once wait for each other for ever. While it hangs, `kill -USR1 <pid>` prints
the same tree, and `asyncflow runs tree` shows it from another terminal.
"""

from __future__ import annotations

import signal
import sys

import anyio

import asyncflow
from asyncflow import concurrency, flow, task


@task
async def transfer(source: str, target: str) -> None:
    async with concurrency(f"account {source}", 1):
        await anyio.sleep(0.1)  # the other one takes its first lock meanwhile
        async with concurrency(f"account {target}", 1):
            pass


@flow
async def settle() -> None:
    there = transfer.submit("A", "B")
    back = transfer.submit("B", "A")
    await there
    await back


async def main() -> None:
    # What a service needs to be asked why it hangs: from a shell, without a debugger.
    signal.signal(signal.SIGUSR1, lambda *_: print(asyncflow.await_tree.snapshot(), file=sys.stderr))

    async with asyncflow.Runtime(), anyio.create_task_group() as group:
        group.start_soon(settle)
        while not (tree := await asyncflow.get_client().await_tree()).cycles:  # noqa: ASYNC110  # nobody tells
            await anyio.sleep(0.05)
        print(tree)
        group.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
