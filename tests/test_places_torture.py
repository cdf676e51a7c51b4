"""Concurrency limits, stopped processes and wrong clocks, and the end of a server.

`KILLS=30 STOPPED=20 pytest tests/test_places_torture.py` (nox -s crash) is as much as a release wants.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncflow import Runtime, get_client
from asyncflow._rows import FIRST_FINAL
from tests.deployment_programs.clock import Step, in_environment
from tests.deployment_programs.fleet import Fleet, count_open, fleet, rows_of
from tests.deployment_programs.notes import count_notes, notes
from tests.deployment_programs.places import GATE, LIMITS, deployments

KILLS = int(os.environ.get("KILLS", "4"))
STOPPED = float(os.environ.get("STOPPED", "2.5"))
"""Seconds; more than it takes until a dead process is noticed."""
EACH = KILLS * 10
HOLDERS = max(2, KILLS // 2)
DAY = 86_400.0
DRAIN, GRACE = 1.0, 1.0
SERVED = len(deployments())

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")


@contextmanager
def servers(home: Path, folder: Path, *envs: dict[str, str]) -> Iterator[Fleet]:
    """A server for each environment, which are all there when the block begins."""
    with fleet(home, folder) as group:
        for number, env in enumerate(envs):
            group.serve(f"server{number}", "places", ("asyncio", "trio")[number % 2], env)
            group.wait_until(lambda: group.members[-1].is_ready, "a server")
        group.wait_until(lambda: len(rows_of(home, "SELECT id FROM deployment")) == SERVED, "deployments")
        yield group


def ask(home: Path, deployment: str, numbers: range) -> None:
    """Ask for a run for each number, in order."""

    async def create() -> None:
        async with Runtime(home, upkeep_seconds=0):
            for number in numbers:
                await get_client().create_flow_run_from_deployment(deployment, parameters={"number": number})

    anyio.run(create)


def entered(folder: Path, name: str) -> list[tuple[int, int, int]]:
    """Who came to a place: the number, the process, when."""
    return [(int(number), int(pid), int(at)) for of, number, _, pid, at in notes(folder, "entered") if of == name]


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.timeout(180 + KILLS * 5)
def test_no_more_runs_go_on_than_may_whoever_is_killed(home: Path, tmp_path: Path) -> None:
    killed: dict[int, int] = {}
    with servers(home, tmp_path, {}, {}, {}) as group:
        for name in ("one", "few"):
            ask(home, f"place/{name}", range(EACH))
        for number in range(KILLS):
            group.wait_until(lambda: count_notes(tmp_path, "entered") >= 2 * EACH * number / KILLS, "executions")  # noqa: B023
            member = random.choice(group.members)
            killed[member.process.pid] = member.kill()
            member.restart()
        group.wait_until(lambda: not count_open(home), "the end of all runs")
    most = {name: most_at_once(tmp_path, name, killed) for name in ("one", "few")}
    requeued = len(rows_of(home, "SELECT id FROM run WHERE history LIKE '%before it had begun%'"))
    crashed = len(rows_of(home, "SELECT id FROM flow_runs WHERE state_type = 'CRASHED'"))
    print(f"{KILLS} kills, {2 * EACH} runs: at most {most} at once; {crashed} crashed, {requeued} claimed again")
    assert most["one"] == 1
    assert most["few"] <= LIMITS["few"]
    # First in, first out; who had a place and had not begun when his process was killed still is the first.
    numbers = [number for number, _, _ in entered(tmp_path, "one")]
    assert numbers == sorted(set(numbers))


def most_at_once(folder: Path, name: str, killed: dict[int, int]) -> int:
    """By what the bodies noted. One that was killed was in its place until then, at least."""
    left = {run_id: int(at) for of, _, run_id, _, at in notes(folder, "left") if of == name}
    events: list[tuple[int, int]] = []
    for of, _, run_id, pid, at in notes(folder, "entered"):
        if of == name:
            events += [(int(at), 1), (left.get(run_id) or killed[int(pid)], -1)]
    return max(accumulate(change for _, change in sorted(events)))


@pytest.mark.timeout(120 + KILLS * 10)
def test_the_place_of_a_killed_holder_is_soon_free(home: Path, tmp_path: Path) -> None:
    waits: list[float] = []
    with servers(home, tmp_path, {}, {}) as group:
        ask(home, "place/held", range(HOLDERS + 1))
        for number in range(HOLDERS):
            group.wait_until(lambda: len(entered(tmp_path, "held")) > number, "the next one")  # noqa: B023
            _, pid, _ = entered(tmp_path, "held")[number]
            (holder,) = (each for each in group.members if each.process.pid == pid)
            time.sleep(random.uniform(0, 1))  # anywhere between two looks of the others
            at = holder.kill()
            group.wait_until(lambda: len(entered(tmp_path, "held")) > number + 1, "the next one")  # noqa: B023
            waits.append((entered(tmp_path, "held")[number + 1][2] - at) / 1e9)
            holder.restart()
            group.wait_until(lambda: holder.is_ready, "a server")  # noqa: B023
    print(f"a killed holder's place: taken after {statistics.median(waits):.2f} s, at most {max(waits):.2f} s")
    assert [number for number, _, _ in entered(tmp_path, "held")] == list(range(HOLDERS + 1))
    assert max(waits) < 5


# --- stopped processes, wrong clocks ---------------------------------------------------------------


@pytest.mark.timeout(120 + STOPPED * 2)
def test_the_runs_of_a_stopped_process_are_not_touched(home: Path, tmp_path: Path) -> None:
    """Nor by processes whose clocks are a day ahead, or behind; nor by their own when its clock is set."""
    now = time.time()
    own = in_environment(now, steps=[Step(now + 1, now + 3, DAY), Step(now + 3, now + 5, -DAY)])
    with servers(home, tmp_path, own) as group:
        stopped = group.members[0]
        for name in ("again", "free"):
            ask(home, f"{name}/gate", range(3))
        ask(home, "place/held", range(1))
        group.wait_until(lambda: count_notes(tmp_path, "entered") == 7, "runs")
        group.wait_until(lambda: states(home) == ["Running"] * 7, "their records")
        before = records(home)
        stopped.send(signal.SIGSTOP)
        for number, offset in enumerate((DAY, -DAY)):
            other = group.serve(f"other{number}", "places", env=in_environment(now + offset))
            group.wait_until(lambda: other.is_ready, "another server")  # noqa: B023
        ask(home, "again/gate", range(3, 5))
        ask(home, "place/held", range(1, 2))  # for which there is no room
        group.wait_until(lambda: len(entered(tmp_path, "again")) == 5, "what was asked for meanwhile")
        assert stopped.process.pid not in {pid for number, pid, _ in entered(tmp_path, "again") if number >= 3}
        time.sleep(STOPPED)
        assert {run_id: row for run_id, row in records(home).items() if run_id in before} == before
        stopped.send(signal.SIGCONT)
        (tmp_path / GATE).touch()
        group.wait_until(lambda: not count_open(home), "the end of all runs")
    assert states(home) == ["Completed"] * 10
    assert count_notes(tmp_path, "entered") == count_notes(tmp_path, "left") == 10


def records(home: Path) -> dict[bytes, tuple[Any, ...]]:
    return {row["id"]: tuple(row) for row in rows_of(home, "SELECT * FROM run")}


def states(home: Path) -> list[str]:
    return [row[0] for row in rows_of(home, "SELECT state_name FROM flow_runs ORDER BY created")]


# --- the end of a server ---------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_server_that_is_told_to_stop_leaves_nothing_running(home: Path, tmp_path: Path, backend: str) -> None:
    env = {"ASYNCFLOW_DRAIN_SECONDS": str(DRAIN), "ASYNCFLOW_GRACE_SECONDS": str(GRACE)}
    with fleet(home, tmp_path) as group:
        first = group.serve("first", "places", backend, env)
        group.wait_until(lambda: first.is_ready and len(rows_of(home, "SELECT id FROM deployment")) == SERVED, "it")
        for name in ("again", "free"):
            ask(home, f"{name}/gate", range(3))
        ask(home, "place/held", range(2))
        group.wait_until(lambda: count_notes(tmp_path, "entered") == 7, "runs")
        began = time.monotonic()
        first.send(signal.SIGTERM)
        assert first.end() == 0, first.output()
        took = time.monotonic() - began
        assert sorted(states(home)) == ["Interrupted"] * 7 + ["Scheduled"], states(home)
        print(f"{backend}: stopped after {took:.2f} s, with a drain window of {DRAIN:g} s")
        assert DRAIN <= took <= DRAIN + GRACE + 2
        (tmp_path / GATE).touch()
        group.serve("second", "places", backend, env)
        group.wait_until(lambda: len(entered(tmp_path, "again")) == 6, "those that go on")
        group.wait_until(lambda: states(home).count("Completed") == 4, "their end")  # and the one that had no room
    by_flow: dict[str, list[str]] = defaultdict(list)
    for flow, state in rows_of(home, "SELECT flow_name, state_name FROM flow_runs"):
        by_flow[flow].append(state)
    assert by_flow["again"] == ["Completed"] * 3
    assert by_flow["free"] == ["Interrupted"] * 3  # nobody has said that they go on by themselves
    assert sorted(by_flow["place"]) == ["Completed", "Interrupted"]
    assert not rows_of(home, f"SELECT id FROM run WHERE state < {FIRST_FINAL} AND state_name <> 'Interrupted'")
