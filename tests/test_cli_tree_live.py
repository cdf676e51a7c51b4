"""`asyncflow runs tree`: what other processes say of their live runs, and what is told where one says nothing."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from asyncflow import Runtime
from asyncflow._live_requests import Request, Responder
from tests.command_line import CommandLine

LONG = 30.0
PROGRAM = """
import sys, anyio
from asyncflow import Runtime, concurrency, flow, task

@task
async def crossing(first, then):
    async with concurrency(first, 1):
        await anyio.sleep(0.01)
        async with concurrency(then, 1):
            pass

@flow(flow_run_name="{name}")
async def deadlocked(name):
    crossing.submit("x", "y")
    crossing.submit("y", "x")

@flow(flow_run_name="{name}")
async def patient(name):
    print("ready", flush=True)
    await anyio.sleep_forever()

flows = {"deadlocked": deadlocked, "patient": patient}

async def main():
    async with Runtime(upkeep_seconds=float(sys.argv[3])), anyio.create_task_group() as group:
        group.start_soon(flows[sys.argv[1]], sys.argv[2])
        if sys.argv[1] == "deadlocked":
            from asyncflow.await_tree import snapshot
            while not snapshot().cycles:
                await anyio.sleep(0.01)
            print("ready", flush=True)

anyio.run(main, backend=sys.argv[4])
"""


class Start(Protocol):
    """Starts a process on the test's home whose flow of this name never ends."""

    def __call__(
        self, flow: str, name: str, *, upkeep: float = 0.1, backend: str = "asyncio"
    ) -> subprocess.Popen[str]: ...


@pytest.fixture
def start(tmp_path: Path, home: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(flow: str, name: str, *, upkeep: float = 0.1, backend: str = "asyncio") -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, flow, name, str(upkeep), backend],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield started


@pytest.fixture
def asyncflow(tmp_path: Path, home: Path) -> CommandLine:
    return CommandLine(tmp_path, home)


def files_in(folder: Path) -> list[Path]:
    """What was written to ask and to answer: without the bells of those who have the home open."""
    return sorted(file for file in folder.iterdir() if file.suffix != ".bell")


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def flows_of(asyncflow: CommandLine, count: int) -> dict[str, str]:
    """The ids of the flow runs by their names, once so many are on record."""
    found: dict[str, str] = {}

    def are_there() -> bool:
        found.update({each["name"]: each["id"] for each in asyncflow.runs()})
        return len(found) == count

    eventually(are_there)
    return found


def test_every_process_on_the_home_tells_of_its_runs(start: Start, asyncflow: CommandLine, home: Path) -> None:
    first = start("deadlocked", "one")
    second = start("patient", "two", backend="trio")
    done = asyncflow.ok("runs", "tree", "--live")
    lines = done.out.splitlines()
    host = os.uname().nodename
    starts = {pid: lines.index(f"pid {pid} on {host}:") for pid in (first.pid, second.pid)}
    at = starts[first.pid]
    assert lines[at + 1].startswith("deadlocked one  flow  Running ")
    assert lines[at + 1].endswith("  waits for 2 children")
    assert all(line.endswith("  [in a cycle]") for line in lines[at + 2 : at + 4])
    assert lines[at + 4].startswith("cycle: crossing-")
    patient = lines[starts[second.pid] + 1]
    assert patient.startswith("patient two  flow  Running ")
    assert "  waits at <string>:20 in patient, inside " in patient
    assert files_in(home / "live") == []
    assert stat.S_IMODE((home / "live").stat().st_mode) == 0o700


def test_one_run_is_asked_for_by_its_id_and_told_as_data(start: Start, asyncflow: CommandLine) -> None:
    start("deadlocked", "one")
    patient = start("patient", "two")
    ids = flows_of(asyncflow, 2)
    done = asyncflow.ok("runs", "tree", ids["two"])
    assert [line.split("  ")[0] for line in done.out.splitlines()[1:]] == ["patient two"]
    processes = asyncflow.ok("runs", "tree", ids["two"], "--json").json["processes"]
    (told,) = [each for each in processes if each["tree"] and each["tree"]["runs"]]
    assert told["pid"] == told["tree"]["pid"] == patient.pid
    (run,) = told["tree"]["runs"]
    assert (run["id"], run["kind"], run["name"]) == (ids["two"], "flow", "two")
    assert run["waits"][0]["kind"] == "await"
    assert run["waits"][0]["at"]["function"] == "patient"
    task = next(each["id"] for each in asyncflow.runs("--tasks"))
    lines = asyncflow.ok("runs", "tree", task).out.splitlines()
    assert lines[1].startswith("  crossing-")
    assert lines[2].startswith("cycle: ")


def test_of_a_stopped_process_what_is_recorded_is_shown(start: Start, asyncflow: CommandLine, home: Path) -> None:
    stopped, _ = start("patient", "one"), start("patient", "two")
    flows_of(asyncflow, 2)
    stopped.send_signal(signal.SIGSTOP)
    try:
        done = asyncflow.ok("runs", "tree")
    finally:
        stopped.send_signal(signal.SIGCONT)
    recorded = done.out.index("as recorded:")
    assert "patient two  flow  Running " in done.out[:recorded]
    assert "patient  one  Running" in done.out[recorded:]
    assert f"pid {stopped.pid} on {os.uname().nodename}: it did not answer within 3 s: it is stopped" in done.err
    # It was asked while it was stopped; who asked has gone.
    eventually(lambda: files_in(home / "live") == [])


def test_a_process_without_upkeep_is_told_of(start: Start, asyncflow: CommandLine, home: Path) -> None:
    deaf = start("patient", "one", upkeep=0)
    ids = flows_of(asyncflow, 1)
    for words in ((), (ids["one"],), (ids["one"], "--json")):
        done = asyncflow.ok("runs", "tree", *words)
        assert "it answers nobody, because its upkeep is off (upkeep_seconds=0)" in done.err
        if "--json" not in words:
            assert done.out.splitlines()[0] == "as recorded:"
    assert done.json["recorded"][0]["name"] == "one"
    assert [each["tree"] for each in done.json["processes"]] == [None]
    only = asyncflow.ok("runs", "tree", "--live")
    assert only.out == "no live runs\n"
    deaf.kill()
    deaf.wait()
    assert asyncflow.ok("runs", "tree").out == "no live runs\n"
    with Runtime(home):  # whose number may be the dead one's
        pass


def test_what_is_recorded_can_be_asked_for(start: Start, asyncflow: CommandLine) -> None:
    process = start("patient", "one")
    ids = flows_of(asyncflow, 1)
    (first, second) = asyncflow.ok("runs", "tree", "--recorded").out.splitlines()
    assert first == "as recorded:"
    assert "patient  one  Running" in second
    process.kill()
    process.wait()
    asyncflow.ok("runs", "reap")
    assert asyncflow.ok("runs", "tree", "--recorded").out == "no live runs\n"
    ended = asyncflow.ok("runs", "tree", ids["one"]).out.splitlines()
    assert "patient  one  Crashed" in ended[1]
    unknown = asyncflow("runs", "tree", str(uuid4()))
    assert unknown.status == 1
    assert "no run" in unknown.err


def test_a_question_is_answered_once_and_nothing_is_left(home: Path) -> None:
    with Runtime(home, upkeep_seconds=0) as runtime:
        services: Any = runtime.services
        responder = Responder(services)
        responder.answer()  # nobody has ever asked
        request = Request(home)
        assert request.is_off(services.store.owner)
        assert request.answers() == {}
        responder.answer()
        (answer,) = request.answers().values()
        assert (answer.owner, answer.text, answer.has_runs) == (services.store.owner, "no live runs", False)
        files = files_in(home / "live")
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
        written = files[1].stat()
        responder.answer()
        assert files[1].stat() == written
        request.close()
        request.close()
        assert [file.suffix for file in files_in(home / "live")] == [".off"]
    assert files_in(home / "live") == []


def test_upkeep_removes_what_the_dead_have_left_and_nothing_else(home: Path) -> None:
    with Runtime(home, upkeep_seconds=0) as runtime:
        services: Any = runtime.services
        Request(home)
        Responder(services).answer()
        (home / "live" / "notes.txt").write_text("mine")
        old = time.time() - 3600
        for file in (home / "live").iterdir():
            os.utime(file, (old, old))
        fresh = Request(home)
        Responder(services).sweep()
        left = {file.name for file in files_in(home / "live")}
        assert left == {"notes.txt", f"{services.store.owner}.off", next(n for n in left if n.endswith(".ask"))}
        fresh.close()


def test_a_torn_question_or_answer_is_passed_over(home: Path) -> None:
    with Runtime(home, upkeep_seconds=0) as runtime:
        services: Any = runtime.services
        request = Request(home)
        (question,) = (home / "live").glob("*.ask")
        question.write_text("{")
        Responder(services).answer()
        assert request.answers() == {}
        question.with_suffix(".7.answer").write_text("[]")
        assert request.answers() == {}
        request.close()
