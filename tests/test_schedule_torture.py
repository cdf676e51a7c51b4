"""Three processes serve the same schedules, are killed, and have wrong clocks for a while: each slot is one run.

`SLOTS=10000 KILLS=30 pytest tests/test_schedule_torture.py` (nox -s crash) is as much as a release wants.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncflow import Runtime, StateType
from asyncflow._rows import FIRST_FINAL, STATE_CODES, microseconds
from asyncflow.schedules import Schedule
from asyncflow.serving import Server
from tests.deployment_programs import slots
from tests.deployment_programs.clock import Step, in_environment
from tests.deployment_programs.fleet import Fleet, fleet, rows_of
from tests.deployment_programs.notes import notes

COUNT = int(os.environ.get("SLOTS", "600"))
KILLS = int(os.environ.get("KILLS", "6"))
SPAN = timedelta(hours=3 if COUNT < 2000 else 10)
SECONDS = max(6.0, COUNT / 100)
"""That the span lasts on the machine's clock."""
HOUR = 3600.0
LOOK = "0.02"
COMPLETED, CRASHED = STATE_CODES[StateType.COMPLETED], STATE_CODES[StateType.CRASHED]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")


def steps(begin: float, parts: Iterable[tuple[float, float, float]]) -> list[Step]:
    """Steps of an hour, from parts of the time that all this lasts."""
    return [Step(begin + first * SECONDS, begin + last * SECONDS, offset) for first, last, offset in parts]


def expected(schedules: list[Schedule]) -> dict[str, int]:
    """Each slot that there is, in microseconds, by the idempotency key of its run."""
    found: dict[str, int] = {}
    for schedule in schedules:
        assert schedule.start is not None
        for slot in schedule.slots_after(schedule.start - timedelta(seconds=1)):
            found[f"{schedule.slug}@{slot.isoformat()}"] = microseconds(slot)
    return found


def register(home: Path) -> None:
    """Make the deployments known while none of their slots has come."""
    with Runtime(home) as runtime:
        services = runtime.services
        assert services is not None
        Server(services, slots.deployments()).register()


def kill_now_and_then(group: Fleet, begin: float) -> None:
    """One of them, at random moments all through the span."""
    for moment in sorted(random.uniform(0.05, 1) for _ in range(KILLS)):
        time.sleep(max(begin + moment * SECONDS - time.time(), 0))
        member = random.choice(group.members)
        member.kill()
        member.restart()


@pytest.mark.timeout(180 + COUNT / 10)
def test_each_slot_is_one_run_whatever_becomes_of_processes_and_clocks(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = datetime.now(UTC) + timedelta(minutes=1)
    env = slots.in_environment(first, SPAN, COUNT)
    wanted = expected(slots.schedules(env[slots.SLOTS]))
    assert len(wanted) >= COUNT
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    register(home)
    begin, speed = time.time(), (SPAN.total_seconds() + 60) / SECONDS
    clocks = [
        steps(begin, [(0.25, 0.35, HOUR)]),
        steps(begin, [(0.5, 0.65, -HOUR)]),
        steps(begin, [(0.1, 0.2, -HOUR), (0.7, 0.75, HOUR)]),
    ]
    with fleet(home, tmp_path) as group:
        for number, wrong in enumerate(clocks):
            clock = in_environment(begin, speed, wrong)
            group.serve(f"server{number}", "slots", ("asyncio", "trio")[number % 2], {**clock, "LOOK": LOOK})
        kill_now_and_then(group, begin)
        group.wait_until(lambda: is_over(home, len(wanted)), "a run of each slot", 60 + COUNT / 20)
    judge(home, wanted, Counter(run_id for (run_id,) in notes(tmp_path, "executed")))


def is_over(home: Path, count: int) -> bool:
    counted = rows_of(home, f"SELECT count(*) AS n, count(*) FILTER (WHERE state < {FIRST_FINAL}) AS going FROM run")[0]
    return counted["n"] >= count and not counted["going"]


def judge(home: Path, wanted: dict[str, int], executed: Counter[str]) -> None:
    rows = rows_of(home, "SELECT lower(hex(id)) AS id, idempotency_key, scheduled, state, history FROM run")
    ended = Counter(row["state"] for row in rows)
    requeued = sum("before it had begun" in row["history"] for row in rows)
    print(
        f"{len(wanted)} slots, {KILLS} kills: {len(rows)} runs, {ended[COMPLETED]} completed, "
        f"{ended[CRASHED]} crashed, {requeued} claimed again; {executed.total()} executions"
    )
    # Not when they are due: one that waits while a clock is set back is due when that is noticed.
    assert {row["idempotency_key"] for row in rows} == wanted.keys()
    assert len(rows) == len(wanted)
    assert ended[COMPLETED] + ended[CRASHED] == len(rows), [json.loads(row["history"])[-1] for row in rows][:5]
    check_executions(rows, {run_id.replace("-", ""): count for run_id, count in executed.items()})
    assert rows_of(home, "PRAGMA quick_check")[0][0] == "ok"


def check_executions(rows: list[Any], executed: dict[str, int]) -> None:
    """Each that has completed was executed, and none more than once: nobody has said that it may be."""
    twice = {run_id: count for run_id, count in executed.items() if count > 1}
    assert not twice, [json.loads(row["history"]) for row in rows if row["id"] in twice]
    assert executed.keys() <= {row["id"] for row in rows}
    assert {row["id"] for row in rows if row["state"] == COMPLETED} <= executed.keys()
