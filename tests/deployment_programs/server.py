"""`python -m tests.deployment_programs.server MODULE [BACKEND]`: serves what the module's `deployments()` gives.

It stops as services do: with SIGTERM it begins no more runs, drains, and interrupts what is left.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import anyio
import anyio.abc

from asyncflow import Deployment, Runtime, serve
from tests.deployment_programs.clock import clock_of_environment


async def main(deployments: list[Deployment]) -> None:
    limit, look = os.environ.get("LIMIT"), os.environ.get("LOOK")
    async with Runtime(clock=clock_of_environment()) as runtime, anyio.create_task_group() as group:
        await group.start(listen, runtime)
        if look is not None:
            group.start_soon(ring, runtime, float(look))
        Path(os.environ["READY"]).touch()
        await serve(*deployments, limit=None if limit is None else int(limit))
        group.cancel_scope.cancel()


async def listen(runtime: Runtime, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            runtime.stop()


async def ring(runtime: Runtime, seconds: float) -> None:
    """Have the server look as often as its clock is faster than the machine's."""
    services = runtime.services
    assert services is not None
    while True:
        await anyio.sleep(seconds)
        services.store.ring([services.store.owner])


if __name__ == "__main__":
    module = import_module(f"tests.deployment_programs.{sys.argv[1]}")
    anyio.run(partial(main, module.deployments()), backend=sys.argv[2] if sys.argv[2:] else "asyncio")
