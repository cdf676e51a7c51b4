"""Eight processes that write to one home as fast as they can, and one that reads.

`MANY_WRITERS_SECONDS=60 pytest tests/test_many_writers.py` runs it as long as a release wants.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncflow._rows import TASK
from asyncflow.abc import RunQuery
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore

PROJECT = Path(__file__).parent.parent
SECONDS = float(os.environ.get("MANY_WRITERS_SECONDS", "4"))
WRITERS = 8
AT_ONCE = 500
MOST_WAL_BYTES = 200_000_000
"""Far above what is seen, and far below what a log that is never cut off grows to in a minute."""

WRITE = """
import json, sys, time
from pathlib import Path
from queue import SimpleQueue
from asyncflow._rows import STATE_CODES
from asyncflow.abc import Ticket
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import LiveRun, run_row

home, seconds, at_once = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
store = SQLiteStore(home, Settings(), FileResults(home))
root = run_row(owner=store.owner)
woken = SimpleQueue()

class RunTicket(Ticket):
    __slots__ = ("row", "began")

def start():
    done = run_row(parent_id=root.id, owner=store.owner)
    run = LiveRun(done._replace(state=STATE_CODES[StateType.RUNNING], seq=2, ended=None), root_id=root.id)
    store.put(run)
    run.current = [done]
    store.put(run)
    ticket = RunTicket(woken.put)
    ticket.row, ticket.began = run.current[0], time.monotonic()
    store.confirm(ticket)

print("ready", flush=True)
sys.stdin.readline()
until, left, slowest, busy, errors = time.monotonic() + seconds, 0, 0.0, set(), []
with open(sys.argv[4], "w") as acknowledged:
    for _ in range(at_once):
        start()
        left += 1
    while left:
        for ticket in woken.get(timeout=60):
            left -= 1
            slowest = max(slowest, time.monotonic() - ticket.began)
            if ticket.error is None:
                acknowledged.write(ticket.row.id.hex() + "\\n")
            else:
                errors.append(str(ticket.error))
            if time.monotonic() < until:
                start()
                left += 1
        if (error := store.last_error) is not None:
            busy.add(str(error))
        if left % 7 == 0:
            try:
                store.reap(int(time.time() * 1e6))
            except Exception as error:
                errors.append(repr(error))
store.close()
print(json.dumps({"slowest": slowest, "errors": errors, "busy": sorted(busy)}))
"""


@contextmanager
def writers(home: Path, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-W", "error", "-c", WRITE, str(home), str(SECONDS), str(AT_ONCE)]
    started = [
        subprocess.Popen(
            [*command, str(folder / f"acknowledged{number}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        for number in range(WRITERS)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.timeout(120 + SECONDS * 4)
def test_many_processes_write_at_once_and_nobody_is_refused_or_kept_from_reading(tmp_path: Path, home: Path) -> None:
    store = SQLiteStore(home, Settings(), FileResults(home))
    waits: list[float] = []
    log_size = 0
    with writers(home, tmp_path) as started:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        while any(process.poll() is None for process in started):
            began = time.perf_counter()
            store.read_runs(RunQuery(kinds=frozenset({TASK}), limit=10))
            assert store.reap(int(time.time() * 1e6)).crashed == 0
            waits.append(time.perf_counter() - began)
            log_size = max(log_size, (home / "asyncflow.db-wal").stat().st_size)
            time.sleep(0.001)
        outputs = [process.communicate() for process in started]
    assert [error for _, error in outputs] == [""] * WRITERS
    reports = [json.loads(output) for output, _ in outputs]
    acknowledged = {line for path in tmp_path.glob("acknowledged*") for line in path.read_text().split()}
    store.close()
    print(
        f"{len(acknowledged)} acknowledged, slowest {max(each['slowest'] for each in reports):.2f} s; "
        f"{len(waits)} reads, slowest {max(waits) * 1000:.0f} ms; log {log_size / 1e6:.1f} MB; "
        f"{sum(len(each['busy']) for each in reports)} busy"
    )
    assert [each["errors"] for each in reports] == [[]] * WRITERS
    assert [each["busy"] for each in reports] == [[]] * WRITERS
    assert max(waits) < 0.25
    assert log_size < MOST_WAL_BYTES
    check(home / "asyncflow.db", acknowledged)


def check(database: Path, acknowledged: set[str]) -> None:
    connection = sqlite3.connect(database)
    try:
        recorded = {row[0].hex() for row in connection.execute("SELECT id FROM run WHERE state = 5")}
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM process").fetchone() == (0,)
    finally:
        connection.close()
    assert len(acknowledged) > WRITERS * AT_ONCE
    assert acknowledged <= recorded
    assert not list((database.parent / "locks").glob("*.lock"))
