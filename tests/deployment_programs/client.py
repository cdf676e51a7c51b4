"""`python -m tests.deployment_programs.client NAME COUNT`: asks for so many runs, in every way there is.

It notes each request before it is made, and each answer. Started again after a kill it goes on: a request with
an idempotency key whose answer it does not know is made again, one without is not.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import anyio

from asyncflow import FlowRun, Runtime, cancel_flow_run, get_client, run_deployment
from tests.deployment_programs.ledger import AGAIN, LONGEST, ONCE, WHOLE
from tests.deployment_programs.notes import NOTES, note, notes

WAITS_EVERY = 25
"""One in so many requests waits for the end of its run."""
CANCELS_EVERY = 7
"""Likewise cancels what it has asked for."""
MOST_WHOLE = 30
"""Most requests for what waits for a part of itself: fewer than go on at once, or no part would."""


async def main(name: str, count: int) -> None:
    folder = Path(os.environ[NOTES])
    attempted = {request for request, *_ in notes(folder, "attempted")}
    answered = {request for request, *_ in notes(folder, "acknowledged")}
    async with Runtime():
        for number in range(count):
            request = f"{name}-{number}"
            is_keyed = number % 3 != 0
            if request in answered or (request in attempted and not is_keyed):
                continue
            note("attempted", request)
            is_whole = number % max(10, count // MOST_WHOLE + 1) == 1
            made = await ask(WHOLE if is_whole else (ONCE, AGAIN)[number % 2], request, request if is_keyed else None)
            note("acknowledged", request, made.id)
            if number % CANCELS_EVERY == 3:
                note("cancelling", made.id)
                await anyio.sleep(random.uniform(0, LONGEST))
                state = await cancel_flow_run(made.id)
                note("waited", made.id, state.type.name)
            if number % WAITS_EVERY == 0:
                ended = await get_client().wait_for_flow_run(made.id)
                note("waited", made.id, ended.state.type.name)


async def ask(deployment: str, request: str, key: str | None) -> FlowRun:
    if deployment == AGAIN:
        return await run_deployment(deployment, parameters={"request": request}, idempotency_key=key, timeout=0)
    return await get_client().create_flow_run_from_deployment(
        deployment, parameters={"request": request}, idempotency_key=key
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
