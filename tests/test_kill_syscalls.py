"""SIGKILL at every system call that changes a disk: nothing acknowledged is lost, nothing is torn.

`strace` counts the calls of one thread and kills the process on entering the n-th, for n = 1, 2, ...
until the program survives. Two threads are of interest: the one that opens a new home, and the
one that writes. In CI one in four of the many `pwrite64` is taken, beginning at another one each
time. `KILLS=200` (nox -s crash) takes all, and also counts the calls of every thread at once, each
for itself, whatever threads there are.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, count
from pathlib import Path

import pytest

from asyncflow import Runtime
from asyncflow._rows import TASK
from asyncflow.ids import new_id
from asyncflow.stores._schema import _MIGRATIONS as MIGRATIONS
from asyncflow.stores._schema import APPLICATION_ID, VERSION
from tests.crash.harness import COMPLETED, Child, Template, check_home, open_runs, template
from tests.crash.programs import SUM, digest, small_flow
from tests.crash.tracing import injected, traced, why_no_strace

LONG = int(os.environ.get("KILLS", "40")) >= 200

pytestmark = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))

CALLS = (
    "openat", "mkdir", "write", "pwrite64", "fdatasync", "fsync",
    "rename", "renameat2", "unlink", "ftruncate", "flock", "chmod",
)  # fmt: skip


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    with template(tmp_path_factory.mktemp("template")) as made:
        yield made


def numbers(call: str) -> Iterator[int]:
    if LONG or call != "pwrite64":
        return count(1)
    return count(random.randint(1, 4), 4)


def killed_at(children: Template, program: str, home: Path, call: str, number: int, *, everywhere: bool) -> Child:
    child = children.start(program, home)
    with injected(child, home.with_name("trace"), call, f"signal=KILL:when={number}", every_thread=everywhere):
        child.go()
        child.end()
    assert child.status in (0, -signal.SIGKILL)
    return child


def go_on(home: Path, child: Child) -> None:
    """The home is as it should be, opens again, ends what was left open, and the next flow runs."""
    check_home(home, child.acknowledged)
    with Runtime(home):
        value = small_flow()
        assert value["number"] == SUM
    check_home(home, {**child.acknowledged, value["id"]: digest(value)})
    assert open_runs(home) == []


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("program", ["open_then_run", "run_when_open"])
@pytest.mark.timeout(300)
def test_a_kill_at_any_system_call_of_a_thread(children: Template, tmp_path: Path, program: str, call: str) -> None:
    kill_at_every(children, tmp_path, program, call, everywhere=False)


@pytest.mark.skipif(not LONG, reason="long: KILLS=200 runs it")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.timeout(300)
def test_a_kill_at_any_system_call_of_any_thread(children: Template, tmp_path: Path, call: str) -> None:
    kill_at_every(children, tmp_path, "open_then_run", call, everywhere=True)


def kill_at_every(children: Template, folder: Path, program: str, call: str, *, everywhere: bool) -> None:
    for number in numbers(call):
        home = folder / f"home-{number}"
        child = killed_at(children, program, home, call, number, everywhere=everywhere)
        go_on(home, child)
        if child.status == 0:
            assert len(child.acknowledged) == 2
            return


# --- a schema that is brought up to date ------------------------------------------------------------


def make_old_home(home: Path, version: int) -> set[bytes]:
    """The database as an asyncflow with schema `version` left it; gives the ids of its runs."""
    home.mkdir(mode=0o700)
    ids = {new_id() for _ in range(200)}
    now = time.time_ns() // 1000  # runs that are old are deleted
    with closing(sqlite3.connect(home / "asyncflow.db")) as database, database:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("PRAGMA journal_mode = WAL")
        for statement in chain.from_iterable(MIGRATIONS[:version]):
            database.execute(statement)
        insert = "INSERT INTO run (id, kind, function, key, state, created, started, ended, run_count, seq)"
        values = ((each, TASK, "old", "shop.old", COMPLETED, now, now, now, 1, 3) for each in ids)
        database.executemany(f"{insert} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {version}")
    return ids


def tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type <> 'view'")}


@pytest.mark.parametrize("call", ["openat", "write", "pwrite64", "fdatasync", "fsync", "ftruncate", "unlink"])
@pytest.mark.parametrize("version", range(1, VERSION))
@pytest.mark.timeout(300)
def test_a_kill_in_the_middle_of_a_migration(children: Template, tmp_path: Path, version: int, call: str) -> None:
    """The schema is the old one or the new one, nothing between, and the old runs are there."""
    for number in numbers(call):
        home = tmp_path / f"home-{number}"
        ids = make_old_home(home, version)
        with closing(sqlite3.connect(home / "asyncflow.db")) as database:
            old = tables(database)
        child = killed_at(children, "open_then_run", home, call, number, everywhere=False)
        with closing(sqlite3.connect(home / "asyncflow.db")) as database:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            assert found in (version, VERSION)
            assert (tables(database) == old) == (found == version)
        go_on(home, child)
        with closing(sqlite3.connect(home / "asyncflow.db")) as database:
            assert ids <= {run_id for (run_id,) in database.execute("SELECT id FROM run")}
        if child.status == 0:
            return


# --- what a power cut would find --------------------------------------------------------------------


def test_a_large_value_is_on_disk_before_the_row_that_cites_it(children: Template, tmp_path: Path) -> None:
    """As SQLite's own writes are in tests/test_power_cut.py: the file, its name, its folder, and then the row."""
    home, log = tmp_path / "home", tmp_path / "trace"
    child = children.start("run_when_open", home)
    with traced(child, log, "write", "pwrite64", "fsync", "fdatasync", "rename"):
        child.go()
        assert child.end() == 0
    calls = log.read_text()
    large = re.escape(f"{home}/results/") + r"[^/>]+"
    wal = re.escape(f"{home}/asyncflow.db-wal")
    order = (
        rf"write\(\d+<{large}/(?P<temporary>[^/>]+)>.*\) += \d{{5,}}\n"
        rf"(?:.*\n)*?fsync\(\d+<{large}/(?P=temporary)>\) += 0\n"
        rf"(?:.*\n)*?rename\(\"{large}/(?P=temporary)\", \"{large}/[^/]+.json\"\) += 0\n"
        rf"(?:fsync\(.*\n)*?fsync\(\d+<{large}>\) += 0\n"
        rf"(?:fsync\(.*\n)*?fsync\(\d+<{re.escape(str(home))}/results>\) += 0\n"
        rf"(?:fsync\(.*\n)*?pwrite64\(\d+<{wal}>"
    )
    assert re.search(order, calls), calls
