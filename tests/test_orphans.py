"""Runs whose process has died are found, once and soon; runs whose process lives are never touched.

The processes are real ones, and die by SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncflow._rows import ACTIVE, FLOW, INTERRUPTED, STATE_CODES, TASK, RunRow, TransactionRow, states_of
from asyncflow.abc import Reaped, RunQuery
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores._orphans import MOST_DEATHS, UNKNOWN_PROCESS
from asyncflow.stores._ownership import Process
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import START, LiveRun, Waiter, run_row

PROJECT = Path(__file__).parent.parent
PENDING, RUNNING, PAUSED, COMPLETED, CRASHED = (
    STATE_CODES[each]
    for each in (StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.COMPLETED, StateType.CRASHED)
)
ALL = frozenset({FLOW, TASK})
LATER = START + 1_000_000

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


def record(store: SQLiteStore, *rows: RunRow) -> None:
    for row in rows:
        store.put(LiveRun(row))
    waiter = Waiter()
    store.confirm(waiter.ticket())
    (ticket,) = waiter.wait()
    assert ticket.error is None


def running(**columns: object) -> RunRow:
    return run_row(**{"state": RUNNING, "seq": 2, "ended": None, "result": None, **columns})


RUN = """
import sys, time
from pathlib import Path
from asyncflow._rows import ACTIVE, FLOW, STATE_CODES, TransactionRow
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import START, LiveRun, Waiter, run_row

RUNNING = STATE_CODES[StateType.RUNNING]
home, count = Path(sys.argv[1]), int(sys.argv[2])
store = SQLiteStore(home, Settings(), FileResults(home))

def settle(*runs):
    for run in runs:
        store.put(run)
    waiter = Waiter()
    store.confirm(waiter.ticket())
    (ticket,) = waiter.wait()
    assert ticket.error is None

def running(**columns):
    return LiveRun(run_row(**{"state": RUNNING, "seq": 2, "ended": None, "owner": store.owner, **columns}))

runs = [running() for _ in range(count)]
settle(*runs)
"""
WAIT = """
print("running", flush=True)
"""
SLEEP = WAIT + "time.sleep(600)\n"
ADVANCE = (
    WAIT
    + """
for line in sys.stdin:  # each: one more state of each run
    for run in runs:
        run.current = [run.current[0]._replace(seq=run.current[0].seq + 5, message=line.strip())]
    settle(*runs)
    print("done", flush=True)
"""
)


@contextmanager
def process(
    home: Path, code: str = SLEEP, count: int = 1, within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A process with `count` running runs, killed at the end if it lives then."""
    command = [*within, sys.executable, "-W", "error", "-c", RUN + code, str(home), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "running\n"
            yield child
        finally:
            child.kill()


def leave_orphans(home: Path, count: int, code: str = SLEEP, within: Sequence[str] = ()) -> int:
    """Have a process die with `count` running runs; gives what its process id was."""
    with process(home, code, count, within) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return child.pid


def rows_of(store: SQLiteStore) -> list[RunRow]:
    return store.read_runs(RunQuery(kinds=ALL, limit=20_000))


# --- the dead --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "seconds"), [(1, 1.0), (1000, 1.0), (10_000, 5.0)])
def test_runs_of_a_killed_process_are_crashed_when_a_store_opens(
    open_store: Open, home: Path, count: int, seconds: float
) -> None:
    pid = leave_orphans(home, count)
    began = time.perf_counter()
    store = open_store()
    assert store.reap(LATER) == Reaped(crashed=count)
    taken = time.perf_counter() - began
    print(f"{count} orphans: {taken:.3f} s")
    assert taken < seconds
    rows = rows_of(store)
    assert {(row.state, row.ended, row.owner, row.seq) for row in rows} == {(CRASHED, LATER, store.owner, 3)}
    assert {row.message for row in rows} == {f"its process died (pid {pid} on {socket.gethostname()})"}
    assert [state.type.value for state in states_of(rows[0])] == ["PENDING", "RUNNING", "CRASHED"]
    assert len(rows) == count
    assert store.reap(LATER) == Reaped()
    assert len(list((home / "locks").glob("*.lock"))) == 1  # ours


def test_a_death_is_found_by_a_store_that_is_open(open_store: Open, home: Path) -> None:
    store = open_store()
    with process(home) as child:
        assert store.reap(LATER) == Reaped()
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert store.reap(LATER) == Reaped(crashed=1)


def test_what_had_ended_stays_as_it_is(open_store: Open, home: Path) -> None:
    first = open_store()
    record(first, done := run_row(owner=first.owner), running(owner=first.owner))
    die(first)
    store = open_store()
    assert store.reap(LATER) == Reaped(crashed=1)
    assert store.read_run(done.id) == done


def test_a_flow_run_that_resumes_waits_to_be_claimed_and_its_children_are_crashed(open_store: Open, home: Path) -> None:
    first = open_store()
    root = running(kind=FLOW, details='{"resume":"auto"}', owner=first.owner)
    child = running(kind=FLOW, details='{"resume":"auto"}', parent_id=root.id, owner=first.owner)
    task = running(parent_id=child.id, owner=first.owner, state=PENDING, started=None, seq=1)
    other = running(kind=FLOW, details='{"resume":"never"}', owner=first.owner)
    record(first, root, child, task, other)
    die(first)
    store = open_store()
    assert store.reap(LATER) == Reaped(crashed=3, interrupted=1)
    (waiting,) = store.read_interrupted()
    assert (waiting.id, waiting.state, waiting.state_name, waiting.ended) == (root.id, PAUSED, "Interrupted", None)
    assert [state.name for state in states_of(waiting)] == ["Pending", "Running", "Interrupted"]
    third = open_store()
    store.close()  # it does not run what waits, so it may go, and leaves nothing to be reaped
    assert third.reap(LATER) == Reaped()
    claimed = third.claim(root.id, waiting.seq, LATER + 5)
    assert claimed == third.read_run(root.id)
    assert claimed is not None
    assert (claimed.state, claimed.state_name, claimed.owner) == (PENDING, "Resuming", third.owner)
    assert {row.owner for row in third.read_tree(root.id)} == {third.owner}
    assert third.claim(root.id, waiting.seq, LATER + 5) is None
    assert third.read_interrupted() == []


def test_a_run_whose_process_dies_again_and_again_is_not_resumed_for_ever(open_store: Open) -> None:
    store = open_store()
    run = running(kind=FLOW, details='{"resume":"auto"}', owner=store.owner)
    record(store, run)
    for death in range(MOST_DEATHS + 1):
        die(store)
        store = open_store()
        done = store.reap(LATER + death)
        if death < MOST_DEATHS:
            assert done == Reaped(interrupted=1)
            (waiting,) = store.read_interrupted()
            assert store.claim(run.id, waiting.seq, LATER + death) is not None
    assert done == Reaped(crashed=1)
    last = store.read_run(run.id)
    assert last is not None
    assert last.state == CRASHED
    assert last.message is not None
    assert last.message.endswith("; this happened 11 times, so it is not resumed by itself any more")


def test_a_transaction_that_was_open_is_interrupted_and_told_once(open_store: Open) -> None:
    first = open_store()
    left = TransactionRow(new_id(), "k", new_id(), ACTIVE, START, None, first.owner, '{"a":1}', '["undo"]')
    first.write_transaction(left)
    die(first)
    store = open_store()
    interrupted = left._replace(state=INTERRUPTED, ended=LATER, owner=store.owner)
    assert store.reap(LATER) == Reaped(transactions=(interrupted,))
    assert store.read_transactions(key="k") == [interrupted]
    assert store.reap(LATER) == Reaped()


def test_runs_of_the_first_schema_belong_to_nobody_who_lives(open_store: Open) -> None:
    first = open_store()
    record(first, run := running(owner=0))
    store = open_store()
    assert store.reap(LATER) == Reaped(crashed=1)
    crashed = store.read_run(run.id)
    assert crashed is not None
    assert crashed.message == UNKNOWN_PROCESS


def test_what_a_store_leaves_open_when_it_is_closed_is_found_by_the_next(open_store: Open) -> None:
    """It keeps its row then, and gives its lock back."""
    first = open_store()
    record(first, running(owner=first.owner))
    first.close()
    assert open_store().reap(LATER) == Reaped(crashed=1)


def test_a_clean_end_leaves_neither_row_nor_lock_file(open_store: Open, home: Path) -> None:
    store = open_store()
    record(store, run_row(owner=store.owner))
    assert len(list((home / "locks").glob("*.lock"))) == 1
    store.close()
    assert list((home / "locks").glob("*.lock")) == []
    assert database_rows(home, "SELECT * FROM process") == []


def test_what_a_process_left_that_died_while_it_opened_is_removed(open_store: Open, home: Path) -> None:
    open_store().close()
    locks = home / "locks"
    stray, young, alien = locks / f"{'a' * 32}.lock", locks / f"{'b' * 32}.new", locks / "notes.txt"
    old = locks / f"{'c' * 32}.new"
    for path in (stray, young, alien, old):
        path.touch()
    os.utime(old, (1, 1))
    open_store().reap(LATER)
    assert {path.exists() for path in (stray, old)} == {False}
    assert {path.exists() for path in (young, alien)} == {True}


def test_numbers_of_stores_are_never_used_again(open_store: Open) -> None:
    numbers = []
    for _ in range(3):
        store = open_store()
        numbers.append(store.owner)
        store.close()
    assert numbers == sorted(set(numbers))


def test_looking_costs_little_and_waits_for_no_writer(open_store: Open, home: Path) -> None:
    store = open_store()
    other = open_store()
    record(other, *(running(owner=other.owner) for _ in range(2000)))
    store.reap(LATER)
    lock = sqlite3.connect(home / "asyncflow.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")  # a look that wrote would wait for it
    taken = []
    for _ in range(50):
        began = time.perf_counter()
        assert store.reap(LATER) == Reaped()
        taken.append(time.perf_counter() - began)
    lock.execute("COMMIT")
    lock.close()
    print(f"a look: {min(taken) * 1e6:.0f} us")
    assert min(taken) < 0.001


def die(store: SQLiteStore) -> None:
    """Make a store of this process one that is dead: its lock is given back, and nothing else is done."""
    store._ownership.release(remove=False)


def database_rows(home: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(home / "asyncflow.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def change(home: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(home / "asyncflow.db")
    with connection:
        connection.execute(sql, values)
    connection.close()


# --- the living ------------------------------------------------------------------------------


def test_a_stopped_process_is_alive(open_store: Open, home: Path) -> None:
    store = open_store()
    with process(home, ADVANCE) as child:
        child.send_signal(signal.SIGSTOP)
        year = 365 * 24 * 3600 * 1_000_000
        for now in (LATER, LATER - year, LATER + year):  # whatever any clock says
            assert store.reap(now) == Reaped()
        child.send_signal(signal.SIGCONT)
        assert advance(child, "alive") == "done\n"
    (row,) = rows_of(store)
    assert (row.state, row.message) == (RUNNING, "alive")


def advance(child: subprocess.Popen[str], message: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{message}\n")
    child.stdin.flush()
    return child.stdout.readline()


BUSY = WAIT + "import re; re.match('(a*)*b', 'a' * 40)\n"  # holds the GIL, for years


def test_a_process_whose_every_thread_is_blocked_is_alive(open_store: Open, home: Path) -> None:
    store = open_store()
    with process(home, BUSY):
        assert store.reap(LATER) == Reaped()
    assert store.reap(LATER) == Reaped(crashed=1)


def test_the_number_of_a_dead_process_that_is_used_again_deceives_nobody(open_store: Open, home: Path) -> None:
    leave_orphans(home, 1)
    change(home, "UPDATE process SET pid = ?", os.getpid())
    assert open_store().reap(LATER) == Reaped(crashed=1)


def test_a_process_whose_lock_file_was_removed_is_alive_and_makes_it_again(open_store: Open, home: Path) -> None:
    store, other = open_store(), open_store()
    record(other, running(owner=other.owner))
    with process(home, ADVANCE):
        shutil.rmtree(home / "locks")
        assert store.reap(LATER) == other.reap(LATER) == Reaped()
        assert len(list((home / "locks").glob("*.lock"))) == 2
        assert store.reap(LATER) == other.reap(LATER) == Reaped()
    assert store.reap(LATER) == Reaped(crashed=1)  # the number of the process, which has ended
    die(other)
    assert store.reap(LATER) == Reaped(crashed=1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process began")
@pytest.mark.parametrize(
    ("changes", "is_dead"),
    [
        ({}, False),
        ({"born": 1}, True),
        ({"pid": 2**22 + 1}, True),
        ({"boot": "another-boot pid:[1]"}, True),
        ({"boot": "{machine} pid:[1]", "pid": 2**22 + 1}, False),  # a container's number says nothing here
        ({"boot": None}, False),
        ({"boot": None, "pid": 2**22 + 1}, True),
        ({"boot": None, "pid": 2**22 + 1, "host": "elsewhere"}, False),
    ],
)
def test_an_owner_without_a_lock_file_is_dead_only_if_that_is_certain(
    open_store: Open, changes: dict[str, object], is_dead: bool
) -> None:
    ownership = open_store()._ownership
    known = ownership.process()
    assert known.boot is not None
    filled = {
        name: value.format(machine=known.boot.split()[0]) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    assert ownership.is_dead(known._replace(lock="gone.lock", **filled)) is is_dead  # type: ignore[arg-type]


def can_make_containers() -> bool:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not can_make_containers(), reason="the system, or this user, cannot make a table of process ids")
def test_a_process_with_its_own_table_of_process_ids_is_alive_until_it_dies(open_store: Open, home: Path) -> None:
    """As in a container that shares the home as a volume: there it is number 1, and here it is another."""
    store = open_store()
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with process(home, within=container) as child:
        ((pid,),) = database_rows(home, f"SELECT pid FROM process WHERE id <> {store.owner}")
        assert pid == 1
        assert store.reap(LATER) == Reaped()
        for path in (home / "locks").glob("*.lock"):
            path.unlink()
        assert store.reap(LATER) == Reaped()  # nothing proves that it died
        child.kill()
    assert len(store._processes()) == 2
    second = leave_orphans(home, 1, within=container)
    assert second > 1
    until(lambda: store.reap(LATER) == Reaped(crashed=1))


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_two_stores_of_one_process_know_each_other_as_alive(open_store: Open) -> None:
    one, other = open_store(), open_store()
    for store in (one, other):
        record(store, running(owner=store.owner))
    assert one.reap(LATER) == other.reap(LATER) == Reaped()
    die(other)
    assert one.reap(LATER) == Reaped(crashed=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_neither_ends_nor_prolongs_its_parents_life(open_store: Open, home: Path) -> None:
    store = open_store()
    record(store, run := running(owner=store.owner))
    done, told = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        ours = SQLiteStore(home, Settings(), FileResults(home))
        reaped = ours.reap(LATER)  # the parent lives
        store.close()  # what an exit handler does
        os.write(done[1], b"1" if reaped == Reaped() else b"0")
        os.read(told[0], 1)
        reaped = ours.reap(LATER)  # it died, although this child has what it had open
        os.write(done[1], b"1" if reaped == Reaped(crashed=1) else b"0")
        os._exit(0)
    assert os.read(done[0], 1) == b"1"
    watcher = open_store()
    assert watcher.reap(LATER) == Reaped()
    die(store)
    os.write(told[1], b"x")
    assert os.read(done[0], 1) == b"1"
    os.waitpid(child, 0)
    ended = watcher.read_run(run.id)
    assert ended is not None
    assert ended.state == CRASHED
    for end in (*done, *told):
        os.close(end)


# --- taken over ------------------------------------------------------------------------------


def test_what_a_process_that_was_taken_for_dead_still_writes_is_refused(open_store: Open, home: Path) -> None:
    """Nothing here does that; a person may, who removes what they hold for left over."""
    store = open_store()
    with process(home, ADVANCE) as child:
        child.send_signal(signal.SIGSTOP)
        ((number,),) = database_rows(home, f"SELECT id FROM process WHERE id <> {store.owner}")
        change(home, "DELETE FROM process WHERE id = ?", number)
        assert open_store().reap(LATER) == Reaped(crashed=1)
        child.send_signal(signal.SIGCONT)
        assert advance(child, "too late") == "done\n"
    (row,) = rows_of(store)
    assert (row.state, row.seq) == (CRASHED, 3)


def test_a_store_that_was_taken_for_dead_goes_on_with_new_runs(open_store: Open, home: Path) -> None:
    store, other = open_store(), open_store()
    change(home, "DELETE FROM process WHERE id = ?", store.owner)
    assert store.reap(LATER) == Reaped()
    record(store, running(owner=store.owner))
    assert other.reap(LATER) == Reaped()
    assert sorted(database_rows(home, "SELECT id FROM process")) == [(store.owner,), (other.owner,)]


def test_a_transaction_that_was_interrupted_cannot_commit_any_more(open_store: Open) -> None:
    first, store = open_store(), open_store()
    left = TransactionRow(new_id(), None, None, ACTIVE, START, None, first.owner, None, None)
    first.write_transaction(left)
    die(first)
    store.reap(LATER)
    first.write_transaction(left._replace(state=1, ended=LATER))
    assert [row.state for row in store.read_transactions()] == [INTERRUPTED]


RACE = """
import json, sys, time
from pathlib import Path
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore

home = Path(sys.argv[1])
store = SQLiteStore(home, Settings(), FileResults(home))
print("running", flush=True)
sys.stdin.readline()
reaped = store.reap(int(time.time() * 1e6))
claimed = []
while waiting := store.read_interrupted():
    claimed += [row.id.hex() for row in waiting if store.claim(row.id, row.seq, int(time.time() * 1e6))]
print(json.dumps([reaped.crashed, reaped.interrupted, claimed]), flush=True)
sys.stdin.readline()
"""

LEAVE_FLOWS = (
    """
settle(*(running(kind=FLOW, details='{"resume":"auto"}') for _ in range(200)))
"""
    + SLEEP
)


def test_many_processes_reap_and_claim_at_once_and_each_run_is_claimed_by_one(home: Path) -> None:
    leave_orphans(home, 200, LEAVE_FLOWS)
    command = [sys.executable, "-W", "error", "-c", RACE, str(home)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
        for _ in range(4)
    ]
    lines = []
    for round_ in range(2):
        for racer in racers:
            assert racer.stdout is not None
            lines.append(racer.stdout.readline())
        if round_ == 0:
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("\n")
                racer.stdin.flush()
    for racer in racers:
        racer.kill()
        racer.communicate()
    assert lines[:4] == ["running\n"] * 4
    results = [json.loads(line) for line in lines[4:]]
    assert sum(crashed for crashed, _, _ in results) == 200
    assert sum(interrupted for _, interrupted, _ in results) == 200
    claimed = [run for _, _, runs in results for run in runs]
    assert len(claimed) == len(set(claimed)) == 200


def test_what_is_known_of_a_process_names_it() -> None:
    assert str(Process(1, "x.lock", 4711, "host", None, None)) == "pid 4711 on host"
