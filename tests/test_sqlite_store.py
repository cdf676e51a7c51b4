"""What is particular to the SQLite store: its file, its thread, and everything that can go wrong with a disk.

What every store does is in tests/contracts/test_run_store.py.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asyncflow._deployment_rows import DeploymentRow, InputRow, RequestRow, RuleRow
from asyncflow._journal import EMITTED, EventRow
from asyncflow._rows import (
    FLOW,
    STAND_IN,
    STATE_CODES,
    TASK,
    CachedRow,
    ItemRow,
    LogRow,
    RunRow,
    TransactionRow,
    states_of,
)
from asyncflow.abc import LogQuery, Reader, ResultStore, RunQuery, Ticket
from asyncflow.exceptions import ForkedRuntimeError, HomeError, StoreBusyError, StoreError, UnsupportedSchemaError
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores import _queries as queries
from asyncflow.stores import _schema
from asyncflow.stores._checkpoints import EVERY_PAGES, LONG_LOG
from asyncflow.stores._database import transaction
from asyncflow.stores._locks import while_locked
from asyncflow.stores._log_queue import MOST_LINES
from asyncflow.stores._ownership import Process
from asyncflow.stores._writer import MOST_EVENTS
from asyncflow.stores.sqlite import SQLiteStore
from tests.conftest import RunPython
from tests.contracts.recordables import (
    START,
    LiveRun,
    Waiter,
    deployment_row,
    read_result,
    run_row,
    waiting_row,
)

PROJECT = Path(__file__).parent.parent
RUNNING = STATE_CODES[StateType.RUNNING]

Open = Callable[[], SQLiteStore]


@pytest.fixture
def open_store(home: Path) -> Iterator[Open]:
    """Opens stores on the test's home, all on the same file."""
    opened: list[SQLiteStore] = []

    def open_store() -> SQLiteStore:
        opened.append(SQLiteStore(home, Settings(), FileResults(home)))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Open) -> SQLiteStore:
    return open_store()


@pytest.fixture
def database(home: Path) -> Path:
    return home / "asyncflow.db"


def record(store: SQLiteStore, *rows: RunRow, timeout: float = 20) -> None:
    for row in rows:
        store.put(LiveRun(row))
    waiter = Waiter()
    store.confirm(waiter.ticket())
    (ticket,) = waiter.wait(timeout)
    assert ticket.error is None


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for something another thread or process does, failing when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# --- the file --------------------------------------------------------------------------------


WRITE_WITHOUT_UMASK = """
import os, sys, time
from pathlib import Path
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import LiveRun, Waiter, run_row

os.umask(0)
home = Path(sys.argv[1])
store = SQLiteStore(home, Settings(), FileResults(home))
root = run_row()
for row in (root, run_row(parent_id=root.id), run_row(result='"' + "x" * 70_000 + '"')):
    store.put(LiveRun(row, root_id=root.id))
waiter = Waiter()
store.confirm(waiter.ticket())
waiter.wait()
store.read_run(root.id)
while not list(home.glob("results/*/tasks.jsonl")):  # the last of the files that follow the commit
    time.sleep(0.001)
os._exit(0)  # the -wal and -shm files stay
"""


def test_files_are_the_owners_alone_whatever_the_umask(run_python: RunPython, home: Path) -> None:
    run_python(WRITE_WITHOUT_UMASK, str(home), cwd=PROJECT)
    modes = {path.relative_to(home).as_posix(): stat.S_IMODE(path.lstat().st_mode) for path in (home, *home.rglob("*"))}
    assert {"asyncflow.db", "asyncflow.db-wal", "asyncflow.db-shm", "results"} <= modes.keys()
    # Also the home, the folder of the run, result.json, tasks.jsonl and a file of its own, the folders of locks
    # and of what lives, and its bell.
    assert len(modes) == 13
    for name, mode in modes.items():
        assert mode == (0o700 if (home / name).is_dir() else 0o600), name


def test_what_was_written_is_there_when_opened_again(open_store: Open) -> None:
    first = open_store()
    record(first, row := run_row())
    first.close()
    assert open_store().read_run(row.id) == row


def test_closing_writes_what_waits(open_store: Open) -> None:
    first = open_store()
    rows = [run_row() for _ in range(2500)]
    for row in rows:
        first.put(LiveRun(row))
    first.close()
    assert len(open_store().read_runs(RunQuery(kinds=frozenset({TASK}), limit=5000))) == 2500


def test_two_stores_of_one_process_share_a_file(open_store: Open) -> None:
    one, other = open_store(), open_store()
    rows = [run_row() for _ in range(200)]
    for number, row in enumerate(rows):
        (one, other)[number % 2].put(LiveRun(row))
    record(one)
    record(other)
    one.close()
    assert other.read_runs(RunQuery(kinds=frozenset({TASK}))) == rows[::-1]


def test_a_newer_schema_is_refused(open_store: Open, database: Path) -> None:
    open_store().close()
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA user_version = {_schema.VERSION + 1}")
    connection.close()
    with pytest.raises(UnsupportedSchemaError) as caught:
        open_store()
    assert (caught.value.found, caught.value.supported) == (_schema.VERSION + 1, _schema.VERSION)


@pytest.mark.parametrize("content", [b"not a database, but long enough for a header " * 100, b"x"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(open_store: Open, database: Path, content: bytes) -> None:
    database.parent.mkdir()
    database.write_bytes(content)
    with pytest.raises(HomeError, match=r"asyncflow\.db.*ASYNCFLOW_HOME"):
        open_store()
    assert database.read_bytes() == content


def test_a_damaged_database_is_refused(open_store: Open, database: Path) -> None:
    first = open_store()
    record(first, *(run_row() for _ in range(100)))
    first.close()
    content = bytearray(database.read_bytes())
    content[100:3000] = random.Random(1).randbytes(2900)  # the page that lists the tables
    database.write_bytes(content)
    with pytest.raises(HomeError, match="damaged"):
        open_store()


def test_a_database_of_another_program_is_refused(open_store: Open, database: Path) -> None:
    database.parent.mkdir()
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE customers (name)")
    connection.close()
    with pytest.raises(HomeError, match="another program"):
        open_store()


def test_an_empty_file_becomes_a_database(open_store: Open, database: Path) -> None:
    database.parent.mkdir()
    database.touch()
    record(open_store(), run_row())


@pytest.mark.parametrize(
    "where", ["a file in place of the home", "a file above the home", "a folder in place of the file"]
)
def test_a_home_that_cannot_be_used_is_refused(home: Path, where: str) -> None:
    if where == "a file in place of the home":
        home.touch()
    elif where == "a file above the home":
        home.touch()
        home = home / "inside"
    else:
        (home / "asyncflow.db").mkdir(parents=True)
    with pytest.raises(HomeError, match="Set ASYNCFLOW_HOME to a folder that you own"):
        SQLiteStore(home, Settings(), FileResults(home))


def test_a_home_that_everybody_can_write_to_is_refused(open_store: Open, home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(HomeError, match="everybody can write"):
        open_store()


def test_a_file_that_vanishes_is_missed_and_not_made_again(store: SQLiteStore, database: Path) -> None:
    record(store, run_row())
    for path in database.parent.glob("asyncflow.db*"):
        path.unlink()

    def is_noticed() -> bool:
        store.put(LiveRun(run_row()))
        return store.last_error is not None

    until(is_noticed)  # the writer looks once a second
    assert isinstance(store.last_error, HomeError)
    assert not database.exists()
    with pytest.raises(StoreError, match="not everything was written"):
        store.close(timeout=0.2)


def test_processes_that_open_a_new_home_at_once_all_get_it(tmp_path: Path, home: Path) -> None:
    script = tmp_path / "open.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from asyncflow.results import FileResults\nfrom asyncflow.settings import Settings\n"
        "from asyncflow.stores.sqlite import SQLiteStore\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nhome = Path(sys.argv[1])\n"
        "SQLiteStore(home, Settings(), FileResults(home)).close()\n"
    )
    for attempt in range(3):
        command = [sys.executable, str(script), str(home / str(attempt))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        openers = [subprocess.Popen(command, **pipes) for _ in range(6)]  # type: ignore[call-overload]
        for opener in openers:
            assert opener.stdout.readline() == b"ready\n"
        for opener in openers:
            opener.stdin.write(b"\n")
            opener.stdin.flush()
        assert [opener.communicate()[1].decode() for opener in openers] == [""] * 6


def test_pragmas_of_all_connections(store: SQLiteStore, home: Path) -> None:
    writer = store._writer._connection
    reader = store._database.open_reader()

    def pragma(connection: sqlite3.Connection, name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert [pragma(writer, name) for name in ("journal_mode", "synchronous", "auto_vacuum")] == ["wal", 2, 2]
    assert pragma(writer, "wal_autocheckpoint") == 0
    assert [pragma(reader, name) for name in ("journal_mode", "query_only", "wal_autocheckpoint")] == ["wal", 1, 0]
    assert [pragma(each, "mmap_size") for each in (writer, reader)] == [0, 0]
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("DELETE FROM run")
    reader.close()
    normal = SQLiteStore(home / "normal", Settings(synchronous="normal"), FileResults(home))
    assert pragma(normal._writer._connection, "synchronous") == 1
    normal.close()


# --- the schema ------------------------------------------------------------------------------


def test_the_tables_have_the_columns_of_the_rows(store: SQLiteStore, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        columns = {
            table: [each[1] for each in connection.execute(f"PRAGMA table_info({table})")]
            for table in (
                "run",
                "log",
                "cache",
                "txn",
                "process",
                "event",
                "item",
                "deployment",
                "rule",
                "request",
                "input",
            )
        }
    connection.close()
    assert columns == {
        "run": list(RunRow._fields),
        "log": list(LogRow._fields[-1:] + LogRow._fields[:-2] + LogRow._fields[-2:-1]),
        "event": ["journal", "n", *EMITTED],
        "item": list(ItemRow._fields),
        "cache": list(CachedRow._fields),
        "txn": list(TransactionRow._fields),
        "process": [*Process._fields, "opened"],
        "deployment": list(DeploymentRow._fields),
        "rule": list(RuleRow._fields),
        "request": list(RequestRow._fields),
        "input": list(InputRow._fields),
    }


MIGRATE_AND_DIE = """
import os, signal, shutil, sqlite3, sys
from contextlib import closing
from pathlib import Path
from asyncflow.abc import LogQuery
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore

first, run_id, known = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
real = sqlite3.connect

def open_and_die(home, at):
    def connect(*arguments, **keywords):
        connection = real(*arguments, **keywords)
        connection.set_trace_callback(count)
        return connection
    def count(statement):
        count.seen += 1
        if count.seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
    count.seen = 0
    sqlite3.connect = connect
    SQLiteStore(home, Settings(), FileResults(home)).close()

def in_child(act, *arguments):
    if (child := os.fork()) == 0:
        act(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def read(home):
    store = SQLiteStore(home, Settings(), FileResults(home))
    row = store.read_run(run_id)
    assert (row.function, row.digest, row.owner) == ("main", None, 0), row
    assert store.reap(row.created + 99).crashed == 1
    (line,) = store.read_logs(LogQuery(run_id=run_id))
    assert (line.message, line.extra) == ("hello", None)
    # What was recorded before there was a journal is not told; what happens from now on is.
    assert [(event.run.id, event.sequence) for event in store.read_journal(None, 9)] == [(run_id, 2)]
    store.close()

versions = []
for at in range(1, 1000):
    home = first.parent / f"home{at}"
    home.mkdir()
    shutil.copy(first, home / "asyncflow.db")
    status = in_child(open_and_die, home, at)
    with closing(real(home / "asyncflow.db")) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        versions.append(version)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        new = {"process", "cache", "txn", "journal", "event", "item", "deployment", "rule", "request", "input"}
        assert (new <= tables) == (version == 4), (version, tables)
        assert [row[0] for row in connection.execute("SELECT flow_name FROM flow_runs")] == ["main"]
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert in_child(read, home) == 0, at
    shutil.rmtree(home)
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
print(versions.count(known), versions.count(4))
"""


def make_schema(database: Path, version: int, row: RunRow) -> None:
    """A database as an earlier version made it, with one run."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in itertools.chain(*_schema._MIGRATIONS[:version]):
        connection.execute(statement)
    connection.execute("CREATE VIEW flow_runs AS SELECT function AS flow_name FROM run WHERE kind = 0")
    connection.execute("CREATE VIEW logs AS SELECT message FROM log")
    connection.execute(f"PRAGMA application_id = {_schema.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {version}")
    names = RunRow._fields[: RunRow._fields.index("digest" if version == 1 else "deployment_id")]
    marks = ", ".join("?" * len(names))
    connection.execute(f"INSERT INTO run ({', '.join(names)}) VALUES ({marks})", row[: len(names)])
    connection.execute(
        "INSERT INTO log (id, flow_run_id, timestamp, level, logger, message) VALUES (?, ?, ?, 20, 'x', 'hello')",
        [new_id(), row.id, START],
    )
    connection.close()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_database_of_an_earlier_schema_is_brought_up_to_date_or_left_as_it_was(
    run_python: RunPython, tmp_path: Path, version: int
) -> None:
    """Killed at any statement of its opening."""
    first, row = tmp_path / "first.db", run_row(kind=FLOW, function="main", state=RUNNING, seq=2, ended=None)
    make_schema(first, version, row)
    done = run_python(MIGRATE_AND_DIE, str(first), row.id.hex(), str(version), cwd=PROJECT)
    before, after = map(int, done.stdout.split())
    assert before > 20
    assert after > 1


@pytest.mark.parametrize(
    "query",
    [
        RunQuery(kinds=frozenset({FLOW})),
        RunQuery(kinds=frozenset({FLOW}), states=frozenset({StateType.RUNNING})),
        RunQuery(kinds=frozenset({FLOW}), since=START, name="x", tags=frozenset({"a"})),
        RunQuery(kinds=frozenset({TASK, STAND_IN}), flow_run_id=b"x" * 16),
        RunQuery(kinds=frozenset({TASK, STAND_IN}), flow_run_id=b"x" * 16, states=frozenset({StateType.FAILED})),
        RunQuery(kinds=frozenset({TASK, STAND_IN, FLOW}), parent_id=b"x" * 16),
        RunQuery(kinds=frozenset({TASK, STAND_IN, FLOW}), states=frozenset({StateType.RUNNING, StateType.PENDING})),
    ],
)
def test_queries_of_runs_use_an_index_and_sort_nothing(store: SQLiteStore, database: Path, query: RunQuery) -> None:
    plan = explain(store, database, *queries.runs(query))
    assert not re.search(r"SCAN run(?! USING INDEX run_(of_flow|not_ended))", plan), plan
    assert "TEMP B-TREE" not in plan, plan


def test_the_other_queries_use_an_index(store: SQLiteStore, database: Path) -> None:
    for sql, values in ((queries.READ_RUN, [b"x"]), (queries.READ_TREE, [b"x"]), queries.logs(LogQuery(run_id=b"x"))):
        plan = explain(store, database, sql, values)
        assert not re.search(r"SCAN (run|log)\b", plan), plan
    assert "run_of_parent" in explain(store, database, queries.READ_TREE, [b"x"])


def explain(store: SQLiteStore, database: Path, sql: str, values: Sequence[object]) -> str:
    tree = run_row(kind=FLOW)
    record(store, tree, *(run_row(parent_id=tree.id, flow_run_id=tree.id) for _ in range(50)))
    with sqlite3.connect(database) as connection:
        lines = [str(step[3]) for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [*values])]
    connection.close()
    return "\n".join(lines)


def test_a_task_run_takes_less_than_300_bytes(open_store: Open, database: Path) -> None:
    store = open_store()
    flow = new_id()
    row = run_row(parent_id=flow, flow_run_id=flow, key="shop.orders.fetch-1a2b3c4d")
    for _ in range(20_000):
        store.put(LiveRun(row._replace(id=new_id()), root_id=flow))
    store.close()
    assert database.stat().st_size / 20_000 < 300


def test_the_views_tell_the_same_as_the_records(open_store: Open, database: Path) -> None:
    store = open_store()
    main = run_row(kind=FLOW, function="main", name="calm-otter", details='{"version":"2"}', parameters='{"x":1}')
    stand_in = run_row(kind=STAND_IN, function="sub", parent_id=main.id, flow_run_id=main.id, created=START + 123_456)
    nested = run_row(
        kind=FLOW, function="sub", name="n", parent_id=stand_in.id, flow_run_id=main.id, state=RUNNING, ended=None
    )
    stand_in = stand_in._replace(details=json.dumps({"child_flow_run_id": text(nested.id)}))
    task = run_row(parent_id=nested.id, flow_run_id=nested.id, state_name="Cached", message="from cache", started=None)
    helper = run_row(parent_id=task.id, flow_run_id=nested.id, state=1, started=None, ended=None)
    retried = run_row(
        parent_id=nested.id, flow_run_id=nested.id, seq=5,
        history=f'[[1,null,null,{START}],[2,null,null,{START + 1}],[0,"AwaitingRetry","again",{START + 2},'
        f'{{"scheduled_time":{START + 9}}}],[2,"Retrying",null,{START + 3}],[5,null,null,{START + 4}]]',
    )  # fmt: skip
    rows = [main, stand_in, nested, task, helper, retried]
    store.put_log(LogRow(main.id, None, START, 20, "asyncflow", "hello", '{"order":7}'))
    store.put_event(EventRow(START, "order.placed", "order/7", '{"total":3}', nested.id, task.id))
    record(store, *rows)
    deployment = deployment_row(concurrency_limit=3)
    store.write_deployment(deployment, [])
    rows += store.enqueue([waiting_row(deployment, START + 123_456, "order-7")])
    store.close()
    with sqlite3.connect(database) as connection:
        connection.row_factory = sqlite3.Row
        flows = {row["id"]: row for row in connection.execute("SELECT * FROM flow_runs")}
        tasks = {row["id"]: row for row in connection.execute("SELECT * FROM task_runs")}
        states = [
            tuple(row)
            for row in connection.execute("SELECT run_id, sequence, type, name, message, timestamp FROM states")
        ]
        (log,) = connection.execute("SELECT * FROM logs")
        (event,) = map(tuple, connection.execute("SELECT * FROM events"))
        (of_deployment,) = connection.execute("SELECT * FROM deployments")
    connection.close()

    of_waiting = flows.pop(text(rows[-1].id))
    assert (of_waiting["state_type"], of_waiting["scheduled_time"]) == ("SCHEDULED", "2025-10-09T08:53:20.123456Z")
    assert (of_waiting["deployment_id"], of_waiting["idempotency_key"]) == (text(deployment.id), "order-7")
    assert (of_deployment["id"], of_deployment["flow_name"], of_deployment["name"], of_deployment["paused"]) == (
        text(deployment.id), "totals", "nightly", 0,
    )  # fmt: skip
    assert of_deployment["created"] == "2025-10-09T08:53:20.000000Z"
    assert flows.keys() == {text(main.id), text(nested.id)}
    assert [flows[text(main.id)][name] for name in ("deployment_id", "scheduled_time", "idempotency_key")] == [None] * 3
    of_main, of_nested = flows[text(main.id)], flows[text(nested.id)]
    assert (of_main["flow_name"], of_main["name"], of_main["flow_version"]) == ("main", "calm-otter", "2")
    assert (of_main["state_type"], of_main["state_name"]) == ("COMPLETED", "Completed")
    assert (of_main["parent_flow_run_id"], of_main["parent_task_run_id"]) == (None, None)
    assert (of_nested["parent_flow_run_id"], of_nested["parent_task_run_id"]) == (text(main.id), text(stand_in.id))
    assert of_main["created"] == "2025-10-09T08:53:20.000000Z"
    of_stand_in = tasks[text(stand_in.id)]
    assert of_stand_in["child_flow_run_id"] == text(nested.id)
    assert of_stand_in["created"] == "2025-10-09T08:53:20.123456Z"
    assert (tasks[text(task.id)]["flow_run_id"], tasks[text(task.id)]["parent_task_run_id"]) == (text(nested.id), None)
    assert tasks[text(helper.id)]["parent_task_run_id"] == text(task.id)
    assert states == [
        (str(text(row.id)), sequence, state.type.value, state.name, state.message, iso(state.timestamp.timestamp()))
        for row in rows
        for sequence, state in enumerate(states_of(row))
    ]
    assert (log["message"], log["flow_run_id"], log["task_run_id"]) == ("hello", text(main.id), None)
    assert log["extra"] == '{"order":7}'
    ids = (text(nested.id), text(task.id))
    assert event == ("2025-10-09T08:53:20.000000Z", "order.placed", "order/7", '{"total":3}', *ids)


def text(run_id: bytes) -> str:
    digits = run_id.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{round(seconds % 1 * 1_000_000):06d}Z"


# --- the writer ------------------------------------------------------------------------------


def test_one_wake_for_all_tickets_of_a_turn(store: SQLiteStore, database: Path) -> None:
    """While another connection holds the lock, everything gathers; freed, it is one turn."""
    waiter = Waiter()
    with holding_the_lock(database):
        store.put(LiveRun(run_row()))
        until(lambda: store.last_error)  # the turn with that run is waiting
        for _ in range(100):
            store.put(LiveRun(run_row()))
            store.confirm(waiter.ticket())
    waiter.wait()
    assert len(waiter.calls) == 1


class Torn(sqlite3.Connection):
    """Says of every third commit that it failed, though it worked: a failed sync can leave one in place."""

    commits = itertools.count(1)

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        done = super().execute(sql, *values)
        if sql == "COMMIT" and next(self.commits) % 3 == 0:
            raise sqlite3.OperationalError("disk I/O error")
        return done


def test_a_commit_that_seemed_to_fail_is_not_told_twice(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store().close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **keywords: connect(*args, **keywords, factory=Torn))
    while True:
        try:
            store = open_store()
            break
        except HomeError:  # such a thing may happen to its opening, too
            continue
    ids = [new_id() for _ in range(30)]
    for number, run_id in enumerate(ids):
        store.put(LiveRun(run_row(id=run_id, owner=store.owner)))
        store.put_event(EventRow(START, f"e{number}", flow_run_id=run_id))
        store.put_log(LogRow(run_id, None, START, 20, "x", "y"))
        waiter = Waiter()
        store.confirm(waiter.ticket())
        assert waiter.wait()[0].error is None
    events = store.read_journal(None, 1000)
    assert [event.name for event in events if event.run is None] == [f"e{number}" for number in range(30)]
    states = [(event.run.id, event.sequence) for event in events if event.run is not None]
    assert states == [(run_id, sequence) for run_id in ids for sequence in range(3)]
    assert all(len(store.read_logs(LogQuery(run_id=run_id))) == 1 for run_id in ids)


def test_a_ticket_does_not_wait_for_more_to_come(store: SQLiteStore) -> None:
    taken = []
    for _ in range(30):
        began = time.perf_counter()
        record(store, run_row())
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.008  # an untimely linger alone is 10 ms


def test_a_wake_that_fails_leaves_the_store_working(store: SQLiteStore, caplog: pytest.LogCaptureFixture) -> None:
    def fail(tickets: list[Ticket]) -> None:
        raise RuntimeError("the loop is closed")

    store.confirm(Ticket(fail))
    record(store, row := run_row())
    assert store.read_run(row.id) == row
    assert "the loop is closed" in caplog.text


def test_a_run_that_cannot_be_read_is_told_and_keeps_no_other_from_disk(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(LiveRun):
        def rows(self) -> Sequence[RunRow]:
            raise LookupError("a fault of ours")

    row, waiter = run_row(), Waiter()
    store.put(Broken(run_row()))
    store.put(LiveRun(row))
    store.confirm(waiter.ticket())
    (ticket,) = waiter.wait()
    assert isinstance(ticket.error, StoreError)
    assert "a fault of ours" in str(ticket.error)
    assert store.read_run(row.id) == row
    assert "a fault of ours" in caplog.text


def test_log_lines_beyond_the_bound_are_dropped_and_counted(store: SQLiteStore, database: Path) -> None:
    flow = new_id()
    with holding_the_lock(database):
        store.put(LiveRun(run_row()))
        until(lambda: store.last_error)
        for number in range(MOST_LINES + 5):
            store.put_log(LogRow(flow, None, START + number, 20, "x", str(number)))
        assert store.dropped_logs == 5
    record(store)
    lines = store.read_logs(LogQuery(run_id=flow, limit=20_000))
    assert [line.message for line in lines[:-1]] == [str(number) for number in range(MOST_LINES)]
    assert "5 log lines are missing here" in lines[-1].message


def test_events_beyond_the_bound_are_dropped_and_counted(store: SQLiteStore, database: Path) -> None:
    with holding_the_lock(database):
        store.put(LiveRun(run_row()))
        until(lambda: store.last_error)
        for number in range(MOST_EVENTS + 5):
            store.put_event(EventRow(START + number, f"e{number}"))
        assert store.dropped_events == 5
        assert store.backlog >= MOST_EVENTS
    record(store)
    names = [event.name for event in store.read_journal(None, 20_000) if event.run is None]
    assert names == [f"e{number}" for number in range(MOST_EVENTS)]


def test_nothing_that_was_written_stays_in_memory(store: SQLiteStore) -> None:
    class Noted(LiveRun):
        gone = 0

        def __del__(self) -> None:
            Noted.gone += 1

    for _ in range(100):
        store.put(Noted(run_row()))
    record(store)
    until(lambda: Noted.gone == 100)


class FlakyResults(ResultStore):
    """A disk that refuses some times before it takes the results."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals
        self.written: list[bytes] = []
        self.published: list[bytes] = []

    def write(self, batch: Sequence[tuple[bytes, RunRow]]) -> list[RunRow]:
        if self.left:
            self.left -= 1
            raise StoreError("writing a result", "/results", "No space left on device")
        self.written += [row.id for _, row in batch]
        return [row for _, row in batch]

    def publish(self, batch: Sequence[tuple[bytes, RunRow]]) -> None:
        self.published += [row.id for _, row in batch]

    def write_cached(self, row: CachedRow) -> CachedRow:
        return row

    def delete(self, root_ids: Sequence[bytes], cached: Sequence[CachedRow] = ()) -> None:
        pass

    async def read(self, row: RunRow | CachedRow, reader: Reader) -> str | None:
        return row.result


def test_results_come_before_rows_and_a_failed_turn_is_repeated(home: Path) -> None:
    results = FlakyResults(refusals=2)
    store = SQLiteStore(home, Settings(), results)
    row, waiter = run_row(), Waiter()
    store.put(LiveRun(row))
    store.confirm(waiter.ticket())
    until(lambda: store.last_error)
    assert store.read_run(row.id) is None
    assert store.backlog == 1
    (ticket,) = waiter.wait()
    assert ticket.error is None
    assert results.written == [row.id]
    assert store.read_run(row.id) == row
    assert (store.last_error, store.backlog) == (None, 0)
    store.close()
    assert results.published == [row.id]


def test_a_turn_whose_commit_failed_writes_no_result_twice(home: Path, database: Path) -> None:
    results = FlakyResults(refusals=0)
    store = SQLiteStore(home, Settings(), results)
    row, waiter = run_row(), Waiter()
    with holding_the_lock(database):
        store.put(LiveRun(row))
        store.confirm(waiter.ticket())
        until(lambda: store.last_error)
    waiter.wait()
    assert store.read_run(row.id) == row
    assert results.written == [row.id]
    store.close()


def test_closing_while_the_disk_refuses_tells_everybody(home: Path) -> None:
    store = SQLiteStore(home, Settings(), FlakyResults(refusals=10**6))
    waiter = Waiter()
    store.put(LiveRun(run_row()))
    store.confirm(waiter.ticket())
    until(lambda: store.last_error)
    store.put(LiveRun(run_row()))
    store.confirm(waiter.ticket())
    with pytest.raises(StoreError, match=r"not everything was written.*No space left"):
        store.close(timeout=0.3)
    assert ["No space left" in str(ticket.error) for ticket in waiter.wait()] == [True, True]


def test_copies_that_there_was_no_time_for_are_nothing_lost(home: Path, open_store: Open) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FlakyResults):
        def publish(self, batch: Sequence[tuple[bytes, RunRow]]) -> None:
            super().publish(batch)
            begun.set()
            assert go_on.wait(20)

    results = Slow(refusals=0)
    store = SQLiteStore(home, Settings(), results)
    rows = [run_row() for _ in range(3)]
    record(store, *rows)
    assert begun.wait(20)
    threading.Timer(0.6, go_on.set).start()
    store.close(timeout=0.5)  # the writer is still at the first copy then, and stops after it
    assert results.published == [rows[0].id]
    assert [row.id for row in open_store().read_runs(RunQuery(kinds=frozenset({TASK})))] == [
        row.id for row in reversed(rows)
    ]


# --- jobs ------------------------------------------------------------------------------------


def test_a_job_waits_for_a_lock_that_another_holds_for_a_while(store: SQLiteStore, database: Path) -> None:
    record(store, row := run_row())
    lock = holding_the_lock(database)
    lock.__enter__()
    claimed: list[RunRow | None] = []
    thread = threading.Thread(target=lambda: claimed.append(store.claim(row.id, row.seq, START + 99)))
    thread.start()
    time.sleep(2.5)  # longer than SQLite itself waits
    assert claimed == []
    lock.__exit__()
    thread.join()
    assert claimed == [store.read_run(row.id)]


def test_a_job_that_cannot_have_the_lock_says_who_has_it(store: SQLiteStore, database: Path) -> None:
    with holding_the_lock(database), pytest.raises(StoreBusyError, match="asking failed") as caught:
        store._writer.call("asking", lambda connection: connection.execute("BEGIN IMMEDIATE"), patience=0.1)
    if Path("/proc/locks").exists():
        assert f"process {os.getpid()} has held" in str(caught.value)
    record(store, run_row())


def test_a_job_that_was_given_up_is_never_done(home: Path) -> None:
    results = FlakyResults(refusals=10**6)
    store = SQLiteStore(home, Settings(), results)
    store.put(LiveRun(run_row()))
    done: list[object] = []
    with pytest.raises(StoreError, match=r"asking failed.*No space left"):
        store._writer.call("asking", done.append, patience=0.3)
    results.left = 0
    assert store.count_outermost() == 0
    assert store.claim(new_id(), 1, START) is None  # behind the other
    assert done == []
    assert store.count_outermost() == 1
    store.close()


def test_a_job_that_fails_is_told_and_changes_nothing(store: SQLiteStore) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("DELETE FROM run")
            raise LookupError("a fault of ours")

    record(store, row := run_row())
    with pytest.raises(StoreError, match=r"asking failed.*a fault of ours"):
        store._writer.call("asking", fail)
    with pytest.raises(StoreError, match=r"asking failed.*no such table"):
        store._writer.call("asking", lambda connection: connection.execute("SELECT * FROM missing"))
    record(store, other := run_row())
    assert store.read_runs(RunQuery(kinds=frozenset({TASK}))) == [other, row]


def test_jobs_that_wait_are_done_before_the_store_is_closed(open_store: Open) -> None:
    store = open_store()
    begun, go_on = threading.Event(), threading.Event()
    done: list[object] = []

    def wait(connection: sqlite3.Connection) -> None:
        begun.set()
        assert go_on.wait(20)

    store._writer.ask("waiting", wait)
    assert begun.wait(20)
    threads = [threading.Thread(target=lambda: done.append(store.claim(new_id(), 1, START))) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: store.backlog == 5)
    closing = threading.Thread(target=store.close)
    closing.start()
    go_on.set()
    for thread in (*threads, closing):
        thread.join()
    assert done == [None] * 5


def test_jobs_that_cannot_be_done_before_the_store_is_closed_are_told(home: Path) -> None:
    store = SQLiteStore(home, Settings(), FlakyResults(refusals=10**6))
    store.put(LiveRun(run_row()))
    errors: list[object] = []

    def claim() -> None:
        try:
            store.claim(new_id(), 1, START)
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=claim) for _ in range(3)]
    threads[0].start()
    until(lambda: store.last_error)  # with the first one in its turn
    for thread in threads[1:]:
        thread.start()
    until(lambda: store.backlog >= 2)
    with pytest.raises(StoreError, match="not everything was written"):
        store.close(timeout=0.3)
    for thread in threads:
        thread.join(5)
    assert ["No space left" in str(error) for error in errors] == [True] * 3
    # Its row stays: whoever opens next finds what it had open.
    other = SQLiteStore(home, Settings(), FlakyResults(refusals=0))
    assert len(other._processes()) == 2
    other.reap(START)
    assert [process.id for process in other._processes()] == [other.owner]
    other.close()


def test_files_of_runs_and_cached_values_go_with_their_rows(store: SQLiteStore, home: Path) -> None:
    large = json.dumps("x" * 100_000)
    root = run_row(kind=FLOW, result=large)
    store.put(LiveRun(root, root_id=root.id))
    store.put(LiveRun(run_row(parent_id=root.id, result="1"), root_id=root.id))
    assert store.delete_runs([root.id]) == [root.id]
    FileResults(home).delete([root.id])  # whoever asked for it does that, not the thread that writes
    record(store, run_row())
    store.write_cached(CachedRow("k", "t", root.id, START, None, large, None))
    kept = store.read_cached("k")
    assert kept is not None
    assert read_result(FileResults(home), kept) == large
    assert kept.result_file is not None
    file = home / json.loads(kept.result_file)["path"]
    assert file.exists()
    assert store.delete_cached(keys=["k"]) == [kept]
    assert not file.exists()
    store.close()  # which writes the last copies
    assert text(root.id) not in [path.name for path in (home / "results").iterdir()]


def test_a_cached_value_whose_file_cannot_be_written_is_not_kept(home: Path) -> None:
    class Full(FlakyResults):
        def write_cached(self, row: CachedRow) -> CachedRow:
            raise StoreError("writing a result", "/results", "No space left on device")

    store = SQLiteStore(home, Settings(), Full(refusals=0))
    with pytest.raises(StoreError, match="No space left"):
        store.write_cached(CachedRow("k", "t", new_id(), START, None, "1", None))
    assert store.read_cached("k") is None
    record(store, run_row())  # and nothing is left locked
    store.close()


# --- checkpoints -----------------------------------------------------------------------------


def write_pages(store: SQLiteStore, count: int) -> None:
    """Write about so many pages."""
    root = new_id()
    for _ in range(0, count, 500):
        for _ in range(500):
            store.put(LiveRun(run_row(message="x" * 4000), root_id=root))
        record(store)


def test_only_who_has_the_lock_runs_checkpoints(store: SQLiteStore, database: Path) -> None:
    with while_locked(store._database.checkpoint_lock) as is_ours:
        assert is_ours
        write_pages(store, 3 * EVERY_PAGES)
        assert database.stat().st_size < EVERY_PAGES * 4096  # all of it is in the log
    write_pages(store, 2 * EVERY_PAGES)
    until(lambda: database.stat().st_size > 3 * EVERY_PAGES * 4096)


def test_a_log_that_has_grown_long_is_cut_off(store: SQLiteStore, database: Path) -> None:
    log = database.with_name(f"{database.name}-wal")
    reader = store._database.open_reader()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM run").fetchone()  # whoever reads keeps the log as it is
    write_pages(store, LONG_LOG + EVERY_PAGES)
    assert log.stat().st_size > LONG_LOG * 4096
    reader.execute("COMMIT")
    reader.close()
    write_pages(store, 2 * EVERY_PAGES)
    until(lambda: log.stat().st_size < LONG_LOG * 4096)


# --- other processes -------------------------------------------------------------------------


class holding_the_lock:
    """Another connection's write lock on the database, for the time of the block."""

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *exc: object) -> None:
        self._connection.execute("COMMIT")
        self._connection.close()


HOLD_THE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
connection.close()
"""


def test_a_lock_held_by_another_process_stops_no_reader_and_loses_nothing(store: SQLiteStore, database: Path) -> None:
    record(store, before := run_row())
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        row, waiter = run_row(), Waiter()
        began = time.perf_counter()
        store.put(LiveRun(row))
        store.confirm(waiter.ticket())
        assert time.perf_counter() - began < 0.05
        slowest = 0.0
        while not store.last_error:
            assert time.perf_counter() - began < 10
            asked = time.perf_counter()
            assert store.read_run(before.id) == before
            slowest = max(slowest, time.perf_counter() - asked)
        assert slowest < 0.5
        assert isinstance(store.last_error, StoreBusyError)
        if Path("/proc/locks").exists():
            assert f"process {other.pid} has held" in str(store.last_error)
        other.communicate(b"\n")
    (ticket,) = waiter.wait()
    assert ticket.error is None
    assert store.read_run(row.id) == row


WRITE_AND_REPORT = """
import sys
from pathlib import Path
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import LiveRun, Waiter, run_row

home = Path(sys.argv[1])
store = SQLiteStore(home, Settings(), FileResults(home))
root = run_row()
print("open", flush=True)
while True:
    waiter, rows = Waiter(), [run_row(parent_id=root.id) for _ in range(20)]
    rows.append(run_row(parent_id=root.id, result='"' + "x" * 70_000 + '"'))
    for row in rows:
        store.put(LiveRun(row, root_id=root.id))
    store.confirm(waiter.ticket())
    (ticket,) = waiter.wait()
    assert ticket.error is None
    sys.stdout.write("".join(row.id.hex() + "\\n" for row in rows))
    sys.stdout.flush()
"""


def test_kill_loses_nothing_that_was_acknowledged(open_store: Open, home: Path) -> None:
    moments = random.Random()
    acknowledged: list[bytes] = []
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE_AND_REPORT, str(home)], stdout=subprocess.PIPE, cwd=PROJECT, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            time.sleep(moments.uniform(0, 0.06))
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().splitlines()
        acknowledged += [bytes.fromhex(line) for line in lines if len(line) == 32]
    assert len(acknowledged) > 100
    store, results = open_store(), FileResults(home)
    recorded = {row.id: row for row in store.read_runs(RunQuery(kinds=frozenset({TASK}), limit=10**6))}
    assert set(acknowledged) <= recorded.keys()
    for row in recorded.values():  # the acknowledged and the rest: no row without its file, no file that is torn
        assert json.loads(read_result(results, row) or "") in (None, "x" * 70_000)
    (verdict,) = store._writer._connection.execute("PRAGMA quick_check").fetchone()
    assert verdict == "ok"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_refused_and_the_parent_loses_nothing(store: SQLiteStore) -> None:
    record(store, before := run_row())
    assert store.read_run(before.id) == before  # a reader's connection is open, too
    if (child := os.fork()) == 0:
        refused = 0
        uses: list[Callable[[], object]] = [
            lambda: store.put(LiveRun(run_row())),
            lambda: store.put_log(LogRow(None, None, START, 20, "x", "y")),
            lambda: store.confirm(Waiter().ticket()),
            lambda: store.read_run(before.id),
            lambda: store.reap(START),
            lambda: store.claim(before.id, before.seq, START),
            lambda: store.claim_due([before.id], START, 1),
            lambda: store.enqueue([]),
            lambda: store.listen(print),
        ]
        for use in uses:
            try:
                use()
            except ForkedRuntimeError:
                refused += 1
        store.close()  # what an exit handler does
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    rows = [run_row() for _ in range(100)]
    record(store, *rows)
    assert store.read_runs(RunQuery(kinds=frozenset({TASK}), limit=100)) == rows[::-1]


FILL_THE_DISK = """
import resource, signal, sys, time
from pathlib import Path
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import LiveRun, Waiter, run_row

home = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SQLiteStore(home, Settings(), FileResults(home))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
waiter, rows = Waiter(), [run_row(message="x" * 400) for _ in range(2000)]
for row in rows:
    store.put(LiveRun(row))
store.confirm(waiter.ticket())
while store.last_error is None:
    time.sleep(0.01)
print(type(store.last_error).__name__, store.last_error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
freed = time.monotonic()
(ticket,) = waiter.wait()
assert ticket.error is None, ticket.error
assert time.monotonic() - freed < 2
assert all(store.read_run(row.id) == row for row in rows)
store.close()
"""


def test_a_full_disk_is_told_and_survived(run_python: RunPython, home: Path) -> None:
    done = run_python(FILL_THE_DISK, str(home), cwd=PROJECT)
    assert re.match(r"(StoreError|HomeError) writing.*asyncflow\.db", done.stdout), done.stdout


def test_importing_the_store_does_not_import_sqlite3(run_python: RunPython) -> None:
    run_python("import sys, asyncflow.stores.sqlite; assert 'sqlite3' not in sys.modules")


def test_threads_read_at_once(store: SQLiteStore) -> None:
    rows = [run_row() for _ in range(50)]
    record(store, *rows)
    problems: list[object] = []

    def read() -> None:
        problems.extend(row for row in rows * 5 if store.read_run(row.id) != row)

    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(store._readers) <= 4


def test_a_fork_waits_until_nobody_uses_a_connection(run_python: RunPython) -> None:
    """What SQLite believes to be locked at the fork, a child believes for ever.

    The threads open the runtime of the process meanwhile: opening counts as using.
    """
    done = run_python(
        """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
from asyncflow import Runtime, flow

@flow
def one(n: int) -> int:
    return n

with Runtime(durability_seconds=20) as runtime:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            one(1)
            runtime.services.store.read_run(bytes(16))

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for each in threads:
        each.start()
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            with Runtime() as other:  # the same home, opened anew
                assert other.services.store.read_run(bytes(16)) is None
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    stop.set()
    for each in threads:
        each.join()
print("done")
"""
    )
    assert done.stdout == "done\n"
