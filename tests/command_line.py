"""Running the real command in a process of its own, for the tests of the command line."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

COMMAND = (sys.executable, "-X", "dev", "-W", "error", "-m", "asyncflow")

FLOWS = """
import os
import subprocess
import sys
import threading
import time

import anyio

from asyncflow import flow, get_run_logger, states, task


@task(retries=1)
async def fetch(number: int) -> int:
    if number < 0:
        raise ValueError(f"no item {number}")
    return number * 10


@flow(flow_run_name="part-{first}")
async def part(first: int, size: int = 3) -> list[int]:
    return [await fetch(number) for number in range(first, first + size)]


@flow
async def whole(parts: int = 2, label: str = "none") -> dict[str, object]:
    get_run_logger().info("summing up for %s", label)
    return {"label": label, "parts": [await part(10 * each) for each in range(parts)]}


@task
def double(number: int) -> int:
    return 2 * number


@flow
def doubled(numbers: list[int]) -> list[int]:
    print("a print of the user's")
    subprocess.run([sys.executable, "-c", "print('a print of a subprocess')"], check=True)
    return [double(number) for number in numbers]


@flow
async def failing(number: int = -1) -> int:
    return await fetch(number)


@flow
async def groups() -> None:
    raise ExceptionGroup("two", [ValueError("first"), KeyError("second")])


@flow
async def not_json() -> dict[str, object]:
    return {"lock": [threading.Lock()]}


@flow
def skipped() -> object:
    return states.Completed(name="Skipped", message="nothing to do")


@flow
def given_up() -> object:
    return states.Failed(message="on purpose")


@flow
async def exiting() -> None:
    sys.exit("out of paper")


@flow
async def counting(to: int):
    for number in range(to):
        yield number


@flow
def sync_counting(to: int):
    yield from range(to)


@flow
def every_kind(a: int, /, b: str, *args: float, c: bool = False, **rest: str) -> list[object]:
    return [a, b, list(args), c, rest]


@flow(validate_parameters=False)
def unchecked(a, b=2):
    return [a, b]


@flow
def main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@flow
async def library() -> str:
    import sniffio

    return sniffio.current_async_library()


@flow
async def waiting() -> None:
    sys.stderr.write("ready\\n")
    await anyio.sleep_forever()


@flow
async def waiting_for_task() -> None:
    await wait_forever()


@task
async def wait_forever() -> None:
    sys.stderr.write("ready\\n")
    await anyio.sleep_forever()


@task
def wait_on_this_thread() -> None:
    sys.stderr.write("ready\\n")
    time.sleep(1000)


@flow
def sync_waiting() -> None:
    wait_on_this_thread()
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs `asyncflow ...` in a folder that holds `jobs.py`, with warnings as errors."""

    folder: Path
    home: Path

    def __call__(self, *words: str, stdin: str | None = None, **env: str) -> Done:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            env={**os.environ, **env},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=50,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, stdin: str | None = None, **env: str) -> Done:
        """The same, for a command that must succeed."""
        done = self(*words, stdin=stdin, **env)
        assert done.status == 0, done.err
        return done

    def state_of(self, run_id: str) -> str:
        """The name of a flow run's state, read from the database: quicker than a process."""
        with closing(sqlite3.connect(self.home / "asyncflow.db")) as database:
            (name,) = database.execute("SELECT state_name FROM flow_runs WHERE id = ?", (run_id,)).fetchone()
        return str(name)

    def runs(self, *words: str) -> list[dict[str, Any]]:
        """What `asyncflow runs ls --json` lists."""
        listed: list[dict[str, Any]] = self.ok("runs", "ls", "--json", *words).json
        return listed


SHOP = """
import anyio
from pydantic import BaseModel

from asyncflow import flow, pause_flow_run, suspend_flow_run
from asyncflow.schedules import Cron


class Answer(BaseModel):
    yes: bool
    note: str = "none"


@flow(description="Adds two numbers")
async def add(a: int, b: int = 2) -> int:
    return a + b


@flow
async def failing() -> None:
    print("a print")
    raise ValueError("no luck")


@flow
async def asking() -> str:
    answer = await pause_flow_run(wait_for_input=Answer)
    return f"{answer.yes} {answer.note}"


@flow
async def resting() -> int:
    return 2 * await suspend_flow_run(wait_for_input=int)


@flow
async def waiting(path: str) -> str:
    while not await anyio.Path(path).exists():
        await anyio.sleep(0.01)
    return "done"


SHOP = [
    add.to_deployment("shop", parameters={"a": 1}, tags=["sums"], concurrency_limit=4),
    add.to_deployment("yearly", parameters={"a": 1}, schedules=[Cron("0 5 1 1 *", timezone="Europe/Berlin")]),
    *(each.to_deployment("shop") for each in (failing, asking, resting)),
]
waiting_one = waiting.to_deployment("shop", concurrency_limit=1)
"""


class Serving:
    """`asyncflow serve ...` in a process of its own."""

    def __init__(self, command: CommandLine, *words: str) -> None:
        self._log = command.folder / f"server-{time.monotonic_ns()}.log"
        self._out = self._log.with_suffix(".out")
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asyncflow", "serve", *words],  # debug mode would tell of a slow machine
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

    @property
    def out(self) -> str:
        """What it wrote to standard output."""
        return self._out.read_text()

    @property
    def text(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What it prints once that matches `pattern`."""
        return until(lambda: re.search(pattern, self.text), lambda: f"{pattern!r} in\n{self.text}")

    def stop(self, *signals: int) -> int:
        """Send it signals; gives its exit status."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(50)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


T = TypeVar("T")


def until(look: Callable[[], T | None], what: Callable[[], str]) -> T:
    """What `look` gives once it gives something; fails with what was waited for."""
    deadline = time.monotonic() + 50
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what()}"
        time.sleep(0.02)
    return found
