"""Several programs on one home that are killed and started again."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncflow._rows import FIRST_FINAL
from tests.deployment_programs.notes import NOTES
from tests.web_server import PROJECT

__all__ = ["Fleet", "Member", "count_open", "fleet", "rows_of", "wait_until"]

_PATIENCE = 60.0
"""Seconds after which something has hung, however busy the machine is."""
_POLL = 0.005


class Member:
    """One program, in one process after another."""

    def __init__(self, name: str, words: list[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self._words = words
        self._env = env
        self._folder = folder / name
        self._folder.mkdir()
        self.lives = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.lives += 1
        self._ready = self._folder / f"ready{self.lives}"
        with (self._folder / f"output{self.lives}.txt").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-W", "error", "-m", *self._words],
                cwd=PROJECT,
                env={**os.environ, "READY": str(self._ready), NOTES: str(self._folder.parent), **self._env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def is_ready(self) -> bool:
        """Whether it has come so far that it tells."""
        return self._ready.exists()

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self.process.poll() is None

    def kill(self) -> int:
        """SIGKILL; gives the moment, in nanoseconds of `time.monotonic_ns`, before which it may have done things."""
        at = time.monotonic_ns()
        self.process.kill()
        self.process.wait()
        return at

    def restart(self) -> None:
        """After its end: the same again."""
        assert not self.is_running
        self.process = self._start()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its own end; gives the exit status."""
        try:
            return self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} does not stop:\n{self.output()}", pytrace=False)

    def output(self) -> str:
        """What all its processes wrote to either stream."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("output*.txt")))


class Fleet:
    """All programs of a test."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._folder = folder
        self._env = {"ASYNCFLOW_HOME": str(home)}
        self.members: list[Member] = []

    def start(self, name: str, *words: str, env: Mapping[str, str] | None = None) -> Member:
        """Start `python -m WORDS`, whose notes are in the test's folder."""
        member = Member(name, list(words), self._folder, {**self._env, **(env or {})})
        self.members.append(member)
        return member

    def serve(self, name: str, module: str, backend: str = "asyncio", env: Mapping[str, str] | None = None) -> Member:
        """Start a server of what a module of `deployment_programs` deploys."""
        return self.start(name, "tests.deployment_programs.server", module, backend, env=env)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = _PATIENCE) -> None:
        """Wait for a condition; when it does not come true in time, or a program fails, what they wrote is shown."""
        if not wait_until(lambda: condition() or bool(self.failed), seconds) or self.failed:
            told = "\n".join(f"--- {each.name} ({each.process.poll()})\n{each.output()}" for each in self.members)
            pytest.fail(f"{what}: this did not come about\n{told}", pytrace=False)

    @property
    def failed(self) -> list[Member]:
        """Those that ended by themselves, and not well."""
        return [each for each in self.members if each.process.poll() not in (None, 0, -signal.SIGKILL)]

    def close(self) -> None:
        """End all that still run, stopped ones too."""
        for member in self.members:
            member.kill()


@contextmanager
def fleet(home: Path, folder: Path) -> Iterator[Fleet]:
    """Programs for as long as the block lasts."""
    made = Fleet(home, folder)
    try:
        yield made
    finally:
        made.close()


def wait_until(condition: Callable[[], bool], seconds: float = _PATIENCE) -> bool:
    """Wait until a condition holds; whether it ever did."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
    return True


def rows_of(home: Path, sql: str, *values: Any) -> list[Any]:
    """What a query finds in the home's database, as its rows."""
    with closing(sqlite3.connect(f"file:{home / 'asyncflow.db'}?mode=ro", uri=True, timeout=30)) as database:
        database.row_factory = sqlite3.Row
        return database.execute(sql, values).fetchall()


def count_open(home: Path) -> int:
    """How many runs are not final."""
    return int(rows_of(home, f"SELECT count(*) FROM run WHERE state < {FIRST_FINAL}")[0][0])
