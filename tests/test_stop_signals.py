"""Ctrl-C and SIGTERM to `asyncflow run` at any instant, once or more often: it ends, and nothing is left Running.

`INSTANTS=500` is for a release. Each instant has a seed, which says everything about it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from asyncflow import Runtime
from tests.stop_programs.everything import expected
from tests.stop_programs.process import Program, checked_states, running

FEW = 24
INSTANTS = int(os.environ.get("INSTANTS", FEW))
FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
TOGETHER = 3
LONGEST_GAP = 0.15
HELD = 0.2
FLOWS = (("busy", "asyncio"), ("busy", "trio"), ("sync_busy", "asyncio"))
BEGIN = """
import os
# A Ctrl-C in the middle of an import is Python's own affair: it comes out as a SyntaxError while a "\\N{...}" is
# compiled, and as a segmentation fault of orjson's.
import orjson
from asyncflow.cli import main
open(os.environ["READY"], "w").close()
raise SystemExit(main())
"""
GOING_ON = {"Pending", "Running", "Cancelling", "Retrying", "Resuming", "AwaitingRetry"}
COMPLAINTS = re.compile(r"Task was destroyed|never retrieved|never awaited|ResourceWarning|Exception ignored|Fatal")
ENV = {
    "ASYNCFLOW_DRAIN_SECONDS": "0.3",
    "ASYNCFLOW_GRACE_SECONDS": "1",
    "ASYNCFLOW_DURABILITY_SECONDS": "5",
}


def words(flow: str, backend: str) -> list[str]:
    return ["-c", BEGIN, "run", f"tests/stop_programs/busy.py:{flow}", "--backend", backend]


def settled_by_next_start(home: Path) -> set[str]:
    """The states there are when the next runtime has looked at the home."""
    with Runtime(home):
        pass
    return set(checked_states(home))


# --- anywhere -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Instant:
    """What happens to one program."""

    seed: int
    number: signal.Signals
    flow: str
    backend: str
    delays: tuple[float, ...]
    """Seconds before each signal; the first counts from the interpreter's first line."""

    @classmethod
    def of(cls, seed: int, number: signal.Signals, lasts: float) -> Instant:
        chance = random.Random(seed)
        flow, backend = chance.choice(FLOWS)
        gaps = [chance.random() ** 2 * LONGEST_GAP for _ in range(chance.randrange(3))]
        return cls(seed, number, flow, backend, (chance.random() * lasts, *gaps))


def lifetime(folder: Path) -> float:
    """Seconds of a program that nobody stops."""
    env = {**ENV, "ASYNCFLOW_HOME": str(folder / "home")}
    with running(words("busy", "asyncio"), folder, env) as program:
        program.wait_until_ready()
        began = time.monotonic()
        assert program.end() == 0, program.output()
        return time.monotonic() - began


def problem_at(instant: Instant, folder: Path) -> str | None:
    """What is wrong with how a program took its signals; None when nothing is."""
    home = folder / "home"
    with running(words(instant.flow, instant.backend), folder, {**ENV, "ASYNCFLOW_HOME": str(home)}) as program:
        program.wait_until_ready()
        sent = 0
        for delay in instant.delays:
            time.sleep(delay)
            if program.process.poll() is None:
                program.process.send_signal(instant.number)
                sent += 1
        status = program.end()
    try:
        judge(instant, sent, status, program.output(), home)
    except AssertionError as error:
        return f"{instant}, {sent} signals sent, exit status {status}: {error}\n{program.output()}"
    return None


def judge(instant: Instant, sent: int, status: int, output: str, home: Path) -> None:
    # Before the command has its handlers, and after it gave them back, Python ends as it does for any program.
    assert status in (0, 128 + instant.number, -instant.number)
    assert sent or status == 0
    if (home / "asyncflow.db").exists():
        states = set(checked_states(home))
        if status == 128 + instant.number and sent == 1:
            assert not states & (GOING_ON | {"Crashed"}), states
            assert not COMPLAINTS.search(output), "complaints"
        after = settled_by_next_start(home)
        assert not after & GOING_ON, after
        assert status != 0 or after <= {"Completed"}, after


@pytest.mark.timeout(INSTANTS * 4 + 60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_at_any_instant(number: signal.Signals, tmp_path: Path) -> None:
    count = INSTANTS if number is signal.SIGINT else INSTANTS // 4
    (tmp_path / "whole").mkdir()
    lasts = lifetime(tmp_path / "whole") * 1.1

    def problem(seed: int) -> str | None:
        folder = tmp_path / str(seed)
        folder.mkdir()
        return problem_at(Instant.of(seed, number, lasts), folder)

    with ThreadPoolExecutor(TOGETHER) as pool:
        problems = [each for each in pool.map(problem, range(FIRST_SEED, FIRST_SEED + count)) if each]
    assert not problems, "\n\n".join([f"{len(problems)} of {count}", *problems])


# --- in places that are hard to meet ------------------------------------------------------------------


STAGES = ("import", "body", "finally", "recording")
PLACES = [
    pytest.param(*flow, stage, times, id=f"{flow[0]}-{flow[1]}-{stage}-{times}")
    for at, (flow, stage) in enumerate(product(FLOWS, STAGES))
    for times in ((1, 2, 3) if INSTANTS > FEW else ((at + at // len(STAGES)) % 3 + 1,))
]


@pytest.mark.parametrize(("flow", "backend", "stage", "times"), PLACES)
def test_in_a_place(flow: str, backend: str, stage: str, times: int, home: Path, tmp_path: Path) -> None:
    env = {**ENV, "STAGE": stage, "ASYNCFLOW_HOME": str(home)}
    command = ["-X", "dev", "-m", "asyncflow", "run", f"tests/stop_programs/busy.py:{flow}", "--backend", backend]
    with running(command, tmp_path, env) as program:
        program.wait_until_ready()
        if stage == "recording":
            with closing(sqlite3.connect(home / "asyncflow.db", isolation_level=None)) as database:
                database.execute("PRAGMA busy_timeout = 30000")
                database.execute("BEGIN IMMEDIATE")
                (tmp_path / "go").touch()
                time.sleep(HELD)  # long enough for the run to end; that it has not would be an instant like others
                interrupt(program, times)
                database.execute("ROLLBACK")
        else:
            interrupt(program, times)
        status = program.end()
    # A body may have ended before it was told, or in spite of it. And of the later signals one may meet an
    # interpreter that has none of our handlers any more; to a shell that is 130 too.
    assert status in (0, 130) or (status == -signal.SIGINT and times > 1), program.output()
    if times == 1:
        assert not COMPLAINTS.search(program.output()), program.output()
    if stage == "import":
        assert not home.exists()
        return
    states = set(checked_states(home))
    assert times == 3 or not states & {*GOING_ON, "Crashed"}, states
    assert status != 0 or states == {"Completed"}, states
    after = settled_by_next_start(home)
    assert not after & GOING_ON, after


def interrupt(program: Program, times: int) -> None:
    for each in range(times):
        if each:
            time.sleep(0.05)
        if program.process.poll() is None:
            program.process.send_signal(signal.SIGINT)


# --- again and again ----------------------------------------------------------------------------------

MOST_STOPS = 60
LONGEST_TURN = 0.8
REPETITIONS = [
    (backend, seed) for seed in range(FIRST_SEED, FIRST_SEED + INSTANTS // FEW) for backend in ("asyncio", "trio")
]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("backend", "seed"), REPETITIONS)
def test_stopped_again_and_again_it_comes_to_its_end(backend: str, seed: int, home: Path, tmp_path: Path) -> None:
    """Whatever is under way at a stop, nothing is left going on or lost, and the value is right in the end."""
    chance = random.Random(seed)
    env = {"ASYNCFLOW_DRAIN_SECONDS": "0", "ASYNCFLOW_GRACE_SECONDS": "5", "ASYNCFLOW_HOME": str(home)}
    command = ["-W", "error::ResourceWarning", "-m", "tests.stop_programs.everything", backend]
    for _ in range(MOST_STOPS):
        with running(command, tmp_path, env) as program:
            program.wait_until_ready()
            time.sleep(chance.random() ** 2 * LONGEST_TURN)
            program.process.send_signal(signal.SIGTERM)
            assert program.end() == 0, program.output()
        assert not COMPLAINTS.search(program.output()), program.output()
        states = set(checked_states(home))
        assert states <= {"Interrupted", "Completed", "Cached", "Cancelled"}, states
        found = outermost(home)
        if {state for _, state, _ in found} == {"Completed"}:
            assert set(checked_states(home)) <= {"Completed", "Cached", "Cancelled"}
            assert {result for _, _, result in found} == {str(expected())}
            return
    pytest.fail(f"it never came to its end: {found}")


def outermost(home: Path) -> list[tuple[str, str, str | None]]:
    """Of each outermost run its flow, its state and its value."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        found: list[tuple[str, str, str | None]] = database.execute(
            "SELECT flow_name, state_name, result FROM flow_runs WHERE parent_task_run_id IS NULL"
        ).fetchall()
        return found
