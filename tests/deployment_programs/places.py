"""Flows of which few may go on at once, in all processes together, and who go on for as long as they are let."""

from __future__ import annotations

import os
import random
from pathlib import Path

import anyio

from asyncflow import Deployment, flow
from asyncflow.runtime import flow_run
from tests.deployment_programs.notes import NOTES, note, now

__all__ = ["GATE", "LIMITS", "deployments"]

LIMITS = {"one": 1, "few": 3, "held": 1}
GATE = "gate"
"""The file that those wait for who are held."""
_LONGEST = 0.04
_LOOK = 0.02


@flow
async def place(name: str, number: int) -> None:
    """Noted are the moments between which it is in a place, on a clock that all processes share."""
    note("entered", name, number, flow_run.id, os.getpid(), now())
    await (until_let_go() if name == "held" else anyio.sleep(random.uniform(0, _LONGEST)))
    note("left", name, number, flow_run.id, os.getpid(), now())


@flow(resume="auto")
async def again(number: int) -> int:
    """Goes on in another process when its own one is stopped."""
    note("entered", "again", number, flow_run.id, os.getpid(), now())
    await until_let_go()
    note("left", "again", number, flow_run.id, os.getpid(), now())
    return number


@flow
async def free(number: int) -> int:
    """Interrupted where its process is stopped, and then for good."""
    note("entered", "free", number, flow_run.id, os.getpid(), now())
    await until_let_go()
    note("left", "free", number, flow_run.id, os.getpid(), now())
    return number


async def until_let_go() -> None:
    gate = Path(os.environ[NOTES]) / GATE
    while not gate.exists():
        await anyio.sleep(_LOOK)


def deployments() -> list[Deployment]:
    limited = [
        place.to_deployment(name, parameters={"name": name}, concurrency_limit=limit) for name, limit in LIMITS.items()
    ]
    return [*limited, again.to_deployment("gate"), free.to_deployment("gate")]
