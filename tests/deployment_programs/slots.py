"""Schedules of every kind over some hours, and a flow that notes each of its executions."""

from __future__ import annotations

import json
import os
import random
from datetime import UTC, datetime, timedelta
from typing import TypedDict

import anyio

from asyncflow import Deployment, flow
from asyncflow.runtime import flow_run
from asyncflow.schedules import CatchUp, Cron, Interval, RRule, Schedule
from tests.deployment_programs.notes import note

__all__ = ["SLOTS", "deployments", "in_environment", "schedules"]

SLOTS = "SLOTS"
"""The variable that says which schedules there are."""
_SHARE = 5
"""Schedules that the slots are shared among."""

LONGEST = 0.1
"""Seconds that an execution takes at most: kills are to hit some."""


class _Rest(TypedDict):
    catch_up: CatchUp
    catch_up_limit: int


_ALL: _Rest = {"catch_up": "all", "catch_up_limit": 10_000}


@flow
async def slot() -> None:
    note("executed", flow_run.id)
    await anyio.sleep(random.uniform(0, LONGEST))


def in_environment(begin: datetime, span: timedelta, count: int) -> dict[str, str]:
    """What a program's environment says of its schedules: `count` slots or a few more, within `span` of `begin`."""
    return {SLOTS: json.dumps([begin.timestamp(), span.total_seconds(), count])}


def schedules(text: str) -> list[Schedule]:
    """Those that an environment speaks of."""
    begin, span, count = json.loads(text)
    start, each = datetime.fromtimestamp(begin, UTC), count // _SHARE

    def window(at: float, seconds: float) -> tuple[datetime, datetime]:
        first = start + timedelta(seconds=span * at)
        return first, min(first + timedelta(seconds=seconds), start + timedelta(seconds=span))

    step = span / each
    made: list[Schedule] = [Interval(step, slug="whole", start=start, end=window(0, span)[1], **_ALL)]
    first, last = window(0.1, each * 10)
    made.append(Cron("*/10 * * * * *", slug="cron", start=first, end=last, timezone="Europe/Berlin", **_ALL))
    first, last = window(0.05, each * 15)
    rule = "FREQ=MINUTELY;BYSECOND=0,15,30,45"
    made.append(RRule(rule, slug="rule", start=first, end=last, timezone="America/New_York", **_ALL))
    for place, slug in ((0.4, "burst"), (0.85, "last-burst")):
        first, last = window(place, each * 0.25)
        made.append(Interval(0.25, slug=slug, start=first, end=last, **_ALL))
    return made


def deployments() -> list[Deployment]:
    """Two of them, so that rules of several are decided in each turn."""
    made = schedules(os.environ[SLOTS])
    return [slot.to_deployment("even", schedules=made[::2]), slot.to_deployment("odd", schedules=made[1::2])]
