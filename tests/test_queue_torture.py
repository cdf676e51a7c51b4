"""Runs that two processes ask for and three others execute, all of them killed at random: what was asked for is done.

`RUNS=10000 KILLS=50 pytest tests/test_queue_torture.py` (nox -s crash) is as much as a release wants.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest

from asyncflow import Runtime, StateType, flow, get_client, run_deployment, serve
from asyncflow._rows import FIRST_FINAL, FLOW, STATE_CODES
from asyncflow.runtime import flow_run
from tests.deployment_programs.fleet import Fleet, count_open, fleet, rows_of
from tests.deployment_programs.notes import count_notes, notes

RUNS = int(os.environ.get("RUNS", "300"))
KILLS = int(os.environ.get("KILLS", "5"))
WORKERS, CLIENTS = 3, 2
PATIENCE = 50.0
COMPLETED, CRASHED, CANCELLED = (
    STATE_CODES[each] for each in (StateType.COMPLETED, StateType.CRASHED, StateType.CANCELLED)
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")


# --- what a death must find ------------------------------------------------------------------------


async def test_a_body_is_entered_when_it_is_on_disk_that_its_run_is_running(home: Path) -> None:
    """Else the death of its process would have it executed a second time: it would be taken for one that waits."""
    found: list[str] = []

    @flow
    def look(number: int) -> None:
        sql = "SELECT state_name FROM flow_runs WHERE id = ?"
        found.extend(row[0] for row in rows_of(home, sql, str(flow_run.id)))

    async with Runtime(home), anyio.create_task_group() as group:
        group.start_soon(serve, look.to_deployment("own"))
        with anyio.fail_after(PATIENCE):
            while not await get_client().read_deployments():
                await anyio.sleep(0.01)
            for number in range(5):
                await run_deployment("look/own", parameters={"number": number})
        group.cancel_scope.cancel()
    assert found == ["Running"] * 5


# --- total queue: attempted, acknowledged, executed ------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run as the disk has it, and what its executions noted."""

    request: str
    flow: str
    state: int
    history: list[list[Any]]
    executions: int

    @property
    def deaths(self) -> int:
        """How often its process died over it, as far as is recorded, after it had begun."""
        return sum(message.startswith("its process died") for message in self._messages) - self.requeued

    @property
    def requeued(self) -> int:
        """How often its process died before that."""
        return sum("before it had begun" in message for message in self._messages)

    @property
    def _messages(self) -> list[str]:
        return [entry[2] or "" for entry in self.history]


def runs_of(home: Path, folder: Path) -> dict[str, Run]:
    executed = Counter(run_id for run_id, *_ in notes(folder, "executed"))
    found: dict[str, Run] = {}
    for row in rows_of(home, f"SELECT id, function, state, parameters, history FROM run WHERE kind = {FLOW}"):
        run_id, request = str(UUID(bytes=row["id"])), json.loads(row["parameters"])["request"]
        history = json.loads(row["history"])
        found[run_id] = Run(request, row["function"], row["state"], history, executed[run_id])
    return found


def kill_by_progress(group: Fleet, folder: Path, home: Path) -> None:
    """A worker at so many points of what there is to execute, and a client now and then, until all has ended."""
    clients = [each for each in group.members if each.name.startswith("client")]
    workers = [each for each in group.members if each not in clients]
    points = sorted(random.sample(range(1, RUNS), KILLS), reverse=True)

    def is_over() -> bool:
        if points and count_notes(folder, "executed") >= points[-1]:
            points.pop()
            # Not those that have ended: what they asked for is all there is.
            going = [each for each in clients if each.is_running]
            for member in [random.choice(workers), *going[: len(points) % 5 == 0]]:
                member.kill()
                member.restart()
        return not any(each.is_running for each in clients) and not points and not count_open(home)

    group.wait_until(is_over, "the end of all runs", 60 + RUNS / 20)


@pytest.mark.timeout(180 + RUNS / 10)
def test_what_was_asked_for_is_executed_whoever_is_killed(home: Path, tmp_path: Path) -> None:
    with fleet(home, tmp_path) as group:
        for number in range(WORKERS):
            group.serve(f"worker{number}", "ledger", ("asyncio", "trio")[number % 2], {"LIMIT": "30"})
        group.wait_until(lambda: are_served(home, 3), "deployments")
        for number in range(CLIENTS):
            group.start(f"client{number}", "tests.deployment_programs.client", f"c{number}", str(RUNS // CLIENTS))
        kill_by_progress(group, tmp_path, home)
    judge(tmp_path, runs_of(home, tmp_path))


def are_served(home: Path, count: int) -> bool:
    if not (home / "asyncflow.db").exists() or not rows_of(home, "SELECT 1 FROM sqlite_master WHERE name = 'rule'"):
        return False
    return len(rows_of(home, "SELECT id FROM deployment")) == count


def judge(folder: Path, runs: dict[str, Run]) -> None:
    attempted = [request for request, *_ in notes(folder, "attempted")]
    acknowledged = {request: run_id for request, run_id in notes(folder, "acknowledged")}  # noqa: C416  # of lists
    executed = Counter(run_id for run_id, *_ in notes(folder, "executed"))
    ended = Counter(run.state for run in runs.values())
    deaths, duplicates = sum(run.deaths for run in runs.values()), executed.total() - len(executed)
    print(
        f"{KILLS} kills: {len(set(attempted))} attempted, {len(acknowledged)} acknowledged, {len(runs)} recorded, "
        f"{len(executed)} executed; {ended[COMPLETED]} completed, {ended[CRASHED]} crashed, "
        f"{ended[CANCELLED]} cancelled; {duplicates} duplicates, {deaths} executions died, "
        f"{sum(run.requeued for run in runs.values())} claimed again"
    )
    lost = {run_id for run_id in acknowledged.values() if run_id not in runs or runs[run_id].state < FIRST_FINAL}
    lost |= {run_id for run_id, run in runs.items() if run.state == COMPLETED and not run.executions}
    assert not lost
    assert executed.keys() <= runs.keys(), "something was executed that is not on record"
    assert {run.request for run in runs.values()} <= set(attempted), "something is on record that nobody asked for"
    assert max(Counter(run.request for run in runs.values()).values()) == 1, "one request has made two runs"
    assert len(acknowledged) > RUNS * 0.9
    assert ended[COMPLETED] + ended[CRASHED] + ended[CANCELLED] == len(runs)
    assert duplicates <= deaths
    for run in runs.values():
        assert run.executions <= (1 if run.flow == "once" else 1 + run.deaths), run
        assert run.state != CRASHED or run.flow == "once", run
    cancelled = {run_id for (run_id,) in notes(folder, "cancelling")}
    called_off = {request for run_id in cancelled for request in (runs[run_id].request, f"{runs[run_id].request}/part")}
    assert {run.request for run in runs.values() if run.state == CANCELLED} <= called_off, "nobody has cancelled it"
    parts = {run.request for run in runs.values() if run.request.endswith("/part")}
    wholes = {run.state: set[str]() for run in runs.values()}
    for run in runs.values():
        if run.flow == "whole":
            wholes[run.state].add(f"{run.request}/part")
    assert wholes[COMPLETED] <= parts <= wholes[COMPLETED] | wholes.get(CANCELLED, set())
    for run_id, state in notes(folder, "waited"):
        assert runs[run_id].state == STATE_CODES[StateType[state]]
