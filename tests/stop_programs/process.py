"""Starting a program, telling it to stop, and looking at what it left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.web_server import PROJECT

__all__ = ["PATIENCE", "Program", "checked_states", "running", "wait_until"]

PATIENCE = 50.0
"""Seconds after which something has hung."""
_POLL = 0.003


class Program:
    """`python WORDS` in a process of its own; it tells by a file that it is `ready`."""

    def __init__(self, words: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self._ready = folder / "ready"
        self._ready.unlink(missing_ok=True)
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=PROJECT,
                env={**os.environ, "READY": str(self._ready), **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # what it started is killed with it, whatever becomes of this test
            )

    def wait_until_ready(self) -> None:
        self.wait_until(self._ready.exists)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that holds soon while the program lives."""
        if not wait_until(lambda: condition() or self.process.poll() is not None) or self.process.poll() is not None:
            pytest.fail(f"it never came so far:\n{self.output()}", pytrace=False)

    def end(self) -> int:
        """Wait for the end; gives the exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not stop:\n{self.output()}", pytrace=False)

    def output(self) -> str:
        """What it has written so far, on both streams."""
        return self._output.read_text(errors="replace")

    def kill(self) -> None:
        """End it, and what it started, if they still go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(words: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[Program]:
    """`python WORDS`, for as long as the block lasts."""
    program = Program(words, folder, env)
    try:
        yield program
    finally:
        program.kill()


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; whether it ever did."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
    return True


def checked_states(home: Path) -> Counter[str]:
    """How many runs are in which state, by its name, in a database that is sound."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchall():
            return Counter()  # told to stop before it had made its tables
        both = "SELECT state_name FROM flow_runs UNION ALL SELECT state_name FROM task_runs"
        return Counter(name for (name,) in database.execute(both))
