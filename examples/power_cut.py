"""A program that dies in the middle and goes on where it was. Run it twice:

    python examples/power_cut.py
    python examples/power_cut.py

The first process is killed while it bills its fourth customer: no `finally`, no signal handler, nothing. The second
finds the run, because the operating system says that its process is gone, and goes on with it: three customers are
billed already and are not billed again. The fourth is: whether its payment went through before the kill nobody can
know, so it carries a reference that tells the bank it is the same one.
"""

from __future__ import annotations

import os
import signal

import anyio

from asyncflow import Runtime, flow, get_client, runtime, task

CUSTOMERS = ["Ada", "Bela", "Chen", "Dora", "Eden", "Finn"]


@task
async def bill(customer: str, cents: int, reference: str) -> str:
    """Charge a customer; the reference makes it safe to do twice."""
    if customer == "Dora" and runtime.flow_run.run_count == 1:
        print("... and the lights go out")
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"billed {customer} {cents / 100:.2f}")
    return reference


@flow(resume="auto", durability="task")  # "task": what was paid is on disk before the next payment begins
async def billing(month: str) -> list[str]:
    return [await bill(customer, 1_200, f"{month}-{customer}") for customer in CUSTOMERS]


async def main() -> None:
    async with Runtime():  # runs that were interrupted go on from here, and are waited for
        if not await get_client().read_flow_runs(flow_name="billing"):
            await billing("2025-01")
    print("all are billed")


if __name__ == "__main__":
    anyio.run(main)
