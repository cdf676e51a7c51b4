"""Flows that note each execution of what was asked for, before they do anything else."""

from __future__ import annotations

import os
import random

import anyio

from asyncflow import Deployment, flow, run_deployment
from asyncflow.runtime import flow_run
from tests.deployment_programs.notes import note

__all__ = ["AGAIN", "LONGEST", "ONCE", "WHOLE", "deployments"]

ONCE, AGAIN, WHOLE = "once/ledger", "again/ledger", "whole/ledger"
LONGEST = 0.1
"""Seconds that an execution takes at most."""


@flow
async def once(request: str) -> None:
    """Nobody has said that it may be executed again."""
    await _execute(request)


@flow(resume="auto")
async def again(request: str) -> None:
    """Executed until it has completed."""
    await _execute(request)


@flow(resume="auto")
async def whole(request: str) -> None:
    """Has a run of another deployment as a part of itself, which whoever comes next has as well."""
    await _execute(request)
    part = f"{request}/part"
    note("attempted", part)
    run = await run_deployment(AGAIN, parameters={"request": part})
    note("waited", run.id, run.state.type.name)


async def _execute(request: str) -> None:
    note("executed", flow_run.id, request, os.getpid())
    await anyio.sleep(random.uniform(0, LONGEST))


def deployments() -> list[Deployment]:
    return [each.to_deployment("ledger") for each in (once, again, whole)]
