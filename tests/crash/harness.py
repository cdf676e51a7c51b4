"""Starting the children, stopping them at a chosen system call, and judging what they left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import pytest

from asyncflow._rows import FIRST_FINAL, STAND_IN, STATE_CODES
from asyncflow.states import StateType
from tests.crash.programs import digest

PROJECT = Path(__file__).parent.parent.parent
COMPLETED = STATE_CODES[StateType.COMPLETED]
_PATIENCE = 30.0
"""Seconds after which a child that says nothing has hung."""


class Child:
    """One program in a process of its own."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self.pid = self.thread = 0
        """Of the process, and the thread that is of interest; there once it is `ready`."""
        self.acknowledged: dict[str, str] = {}
        """Digests of values by run id: the awaits that returned."""
        self.said: list[list[Any]] = []
        """Everything else, in order."""
        self.status: int | None = None

    def hear(self, *words: str, within: float = _PATIENCE) -> list[Any] | None:
        """Listen until it says a line that begins with one of `words`; None when it does not, in time or ever."""
        give_up_at = time.monotonic() + within
        while self.status is None:
            line = self._template.line(give_up_at - time.monotonic())
            if line is None:
                return None
            match line:
                case ["exit", status]:
                    self.status = status
                case ["ack", run_id, of_value]:
                    self.acknowledged[run_id] = of_value
                case ["ready", pid, thread]:
                    self.pid, self.thread = pid, thread
                case _:
                    self.said.append(line)
            if line[0] in words:
                return line
        return None

    def go(self) -> None:
        self._template.send("go")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Listen until it is gone."""
        self.hear("exit")
        if self.status is None:
            self.kill()
            self.hear("exit")
            pytest.fail(f"the child hung; it said {self.said}")
        if self.status > 0:
            pytest.fail(f"the child failed; it said {self.said}\n{self._template.errors()}", pytrace=False)
        return self.status

    def words(self, first: str) -> list[list[Any]]:
        return [said[1:] for said in self.said if said[0] == first]


class Template:
    """The process that the children are forked from; one child at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with (folder / "stderr.txt").open("wb") as stderr:
            self._process = self._spawn(folder, stderr)
        self._unread = b""
        self._child: Child | None = None

    @staticmethod
    def _spawn(folder: Path, stderr: BinaryIO) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCFLOW_")}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.crash.template", str(folder)],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    def start(self, program: str, *arguments: object) -> Child:
        """Start a program of `programs`; gives it when it says that it is ready."""
        self.send(json.dumps([program, *map(str, arguments)]))
        self._child = Child(self)
        assert self._child.hear("ready") is not None
        return self._child

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), f"{line}\n".encode())

    def line(self, within: float) -> list[Any] | None:
        """The next line from it or from its child; None when none comes in time."""
        assert self._process.stdout is not None
        give_up_at = time.monotonic() + within
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, give_up_at - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._process.stdout.fileno(), 65_536)
            assert data, "the template has died"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        said: list[Any] = json.loads(line)
        return said

    def errors(self) -> str:
        """The last of what it and its children wrote to standard error."""
        return (self._folder / "stderr.txt").read_text()[-5000:]

    def close(self) -> None:
        child = self._child
        if child is not None and child.status is None and child.pid:
            child.kill()
        self._process.kill()
        self._process.communicate()


@contextmanager
def template(folder: Path) -> Iterator[Template]:
    made = Template(folder)
    try:
        while made.line(_PATIENCE) != ["warm"]:
            pass
        yield made
        # Some children that failed were killed before they could exit with it.
        assert "Traceback" not in made.errors(), made.errors()
    finally:
        made.close()


# --- what was left behind -----------------------------------------------------------------------------


def check_home(home: Path, acknowledged: Mapping[str, str]) -> None:
    """Everything acknowledged is on disk with its value, and nothing there is torn or dangling."""
    path = home / "asyncflow.db"
    if not path.exists():  # killed before its first write
        assert not acknowledged
        return
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        if database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            assert not acknowledged
            return
        database.row_factory = sqlite3.Row
        rows = {bytes(row["id"]): row for row in database.execute("SELECT * FROM run")}
    values = {run_id: _value(home, row) for run_id, row in rows.items()}
    for text, of_value in acknowledged.items():
        row = rows.get(UUID(text).bytes)
        assert row is not None, f"run {text} was acknowledged and is not on disk"
        assert row["state"] == COMPLETED, f"run {text} was acknowledged and is in state {row['state']}"
        assert digest(values[row["id"]]) == of_value
    _check_trees(rows)
    _check_files(home, rows)


def _value(home: Path, row: sqlite3.Row) -> Any:
    """The value a row tells, its file checked."""
    if row["result_file"] is None:
        return None if row["result"] is None else json.loads(row["result"])
    cited = json.loads(row["result_file"])
    data = (home / cited["path"]).read_bytes()
    assert (len(data), sha256(data).hexdigest()) == (cited["size"], cited["sha256"])
    return json.loads(data)


def _check_trees(rows: Mapping[bytes, sqlite3.Row]) -> None:
    for row in rows.values():
        parent = row["parent_id"]
        if parent is None:
            continue
        assert parent in rows, "a run is on disk and the one that called it is not"
        if rows[parent]["state"] >= FIRST_FINAL:
            assert row["state"] >= FIRST_FINAL, "a run has ended on disk before one that it called"
        if row["kind"] != STAND_IN and rows[parent]["kind"] == STAND_IN:
            assert row["state"] == rows[parent]["state"], "a nested flow and the task run that stands for it differ"


def _check_files(home: Path, rows: Mapping[bytes, sqlite3.Row]) -> None:
    for file in home.glob("results/*/[!.]*.json"):
        json.loads(file.read_bytes())
        run_id = UUID(file.parent.name if file.name == "result.json" else file.stem).bytes
        # Without its row it is a large value whose commit did not come about: whole, and waste.
        if run_id not in rows or rows[run_id]["state"] != COMPLETED:
            assert file.stat().st_size > 65_536, "the copy of a value is there before its row"
    for file in home.glob("results/*/tasks.jsonl"):
        *whole, _ = file.read_bytes().split(b"\n")  # of the last one a kill may leave a part
        for line in whole:
            assert UUID(json.loads(line)["id"]).bytes in rows


def open_runs(home: Path) -> list[tuple[Any, ...]]:
    """The runs that are recorded as going on."""
    with closing(sqlite3.connect(home / "asyncflow.db")) as database:
        return database.execute(f"SELECT function, state FROM run WHERE state < {FIRST_FINAL}").fetchall()
