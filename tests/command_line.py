"""Running the real command in a process of its own, for the tests of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def runs(self, *words: str) -> list[dict[str, Any]]:
        """What `asyncflow runs ls --json` lists."""
        listed: list[dict[str, Any]] = self.ok("runs", "ls", "--json", *words).json
        return listed
