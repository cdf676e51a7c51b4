"""Bells between processes, and what two processes do with the same deployments."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores._bells import Bell
from asyncflow.stores.sqlite import SQLiteStore
from tests.conftest import RunPython
from tests.contracts.recordables import START, deployment_row, rule_row, waiting_row

PROJECT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")

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


def bell_of(home: Path, store: SQLiteStore) -> Path:
    return home / "live" / f"{store.owner}.bell"


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for something another thread or process does, failing when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


class Heard:
    """Counts calls."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


# --- the pipe --------------------------------------------------------------------------------


def test_a_bell_is_there_while_its_store_is_open(home: Path, open_store: Open) -> None:
    before = os.umask(0)
    try:
        store = open_store()
    finally:
        os.umask(before)
    found = bell_of(home, store).lstat()
    assert stat.S_ISFIFO(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    store.close()
    assert list((home / "live").iterdir()) == []


def test_stores_of_one_process_wake_each_other(open_store: Open) -> None:
    first, second = open_store(), open_store()
    ours, theirs = threading.Event(), threading.Event()
    first.listen(ours.set)
    second.listen(theirs.set)
    first.ring([second.owner])
    assert theirs.wait(10)
    assert not ours.is_set()
    second.ring()
    assert ours.wait(10)


def test_the_thread_begins_with_the_first_listener_and_ends_with_the_store(open_store: Open) -> None:
    def bells() -> list[threading.Thread]:
        """Those of this store: another test may have left a runtime open."""
        return [each for each in threading.enumerate() if each.name == "asyncflow-bell" and each not in others]

    others: list[threading.Thread] = []
    others = bells()
    store = open_store()
    assert not bells()
    for _ in range(3):
        store.listen(Heard())
    assert len(bells()) == 1
    store.ring()
    store.close()
    assert not bells()


def test_a_thousand_rings_are_few_wakes(store: SQLiteStore) -> None:
    """More than a pipe holds, while the listener is held up."""
    heard, is_held = Heard(), threading.Event()
    began = threading.Event()

    def wake() -> None:
        heard()
        began.set()
        is_held.wait(20)

    store.listen(wake)
    store.ring()
    assert began.wait(10)
    for _ in range(70_000):
        store.ring([store.owner])
    is_held.set()
    until(lambda: heard.times >= 2)
    last = threading.Event()
    store.listen(last.set)
    store.ring()
    assert last.wait(10)
    assert heard.times <= 5


@pytest.mark.parametrize("other", ["file", "folder", "link", "nothing"])
def test_what_is_no_pipe_is_neither_written_to_nor_in_the_way(home: Path, store: SQLiteStore, other: str) -> None:
    place = home / "live" / "99.bell"
    target = home / "target"
    target.write_text("kept")
    if other == "file":
        place.write_text("kept")
    elif other == "folder":
        place.mkdir()
    elif other == "link":
        place.symlink_to(target)
    heard = threading.Event()
    store.listen(heard.set)
    store.ring([99])
    store.ring()
    assert heard.wait(10)
    assert target.read_text() == "kept"
    if other == "file":
        assert place.read_text() == "kept"


def test_a_store_without_a_place_for_its_bell_works(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "live").write_text("a file where the folder should be")
    store = SQLiteStore(home, Settings(), FileResults(home))
    store.listen(Heard())
    store.ring()
    store.reap(START)
    store.close()


def test_a_bell_that_was_removed_is_made_again(home: Path, store: SQLiteStore) -> None:
    heard = Heard()
    store.listen(heard)
    for _ in range(3):
        bell_of(home, store).unlink()
        store.reap(START)
        rung = heard.times
        store.ring()
        until(lambda rung=rung: heard.times > rung)  # type: ignore[misc]
    store.close()
    assert list((home / "live").iterdir()) == []


def test_what_dead_owners_left_is_swept_and_what_may_be_new_is_not(home: Path, open_store: Open) -> None:
    first, dead, last = open_store(), open_store(), open_store()
    to_come = home / "live" / f"{last.owner + 1}.bell"
    os.mkfifo(to_come)
    dead._ownership.release(remove=False)
    first.reap(START)
    assert not bell_of(home, dead).exists()
    assert bell_of(home, first).exists()
    assert bell_of(home, last).exists()
    assert to_come.exists()


def test_closing_from_a_listener_does_not_wait_for_itself(home: Path) -> None:
    (home / "live").mkdir(parents=True)
    bell, closed = Bell(home, 1), threading.Event()

    def close() -> None:
        bell.close()
        closed.set()

    bell.listen(close)
    bell.ring(None)
    assert closed.wait(10)
    assert list((home / "live").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell which are open")
def test_descriptors_are_given_back(home: Path) -> None:
    (home / "live").mkdir(parents=True)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(20):
        bell, heard = Bell(home, number), threading.Event()
        bell.listen(heard.set)
        bell.ring([number])
        assert heard.wait(10)
        bell._path.unlink()
        bell.keep()
        bell.close()
    until(lambda: len(list(descriptors.iterdir())) <= before)


# --- processes -------------------------------------------------------------------------------

RING_BACK = """
import sys, threading
from pathlib import Path
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore

home, other = Path(sys.argv[1]), int(sys.argv[2])
store, heard = SQLiteStore(home, Settings(), FileResults(home)), threading.Event()
store.listen(heard.set)
print(store.owner, flush=True)
while heard.wait(20):
    heard.clear()
    store.ring([other])
"""


def test_a_process_is_woken_by_another_and_wakes_it(home: Path, store: SQLiteStore) -> None:
    heard = threading.Event()
    store.listen(heard.set)
    with subprocess.Popen(
        [sys.executable, "-c", RING_BACK, str(home), str(store.owner)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ) as child:
        assert child.stdout is not None
        other = int(child.stdout.readline())
        for _ in range(100):
            heard.clear()
            store.ring([other])
            assert heard.wait(20)
        child.kill()
    store.ring([other])  # nobody has it open any more
    store.ring()
    store.reap(START)
    assert not (home / "live" / f"{other}.bell").exists()


def test_a_forked_child_neither_listens_nor_rings_for_its_parent(run_python: RunPython, home: Path) -> None:
    done = run_python(
        """
import os, sys, threading, time, warnings
from pathlib import Path
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.stores.sqlite import SQLiteStore
from asyncflow.exceptions import ForkedRuntimeError

warnings.simplefilter("ignore")
home = Path(sys.argv[1])
store, heard = SQLiteStore(home, Settings(), FileResults(home)), []
store.listen(lambda: heard.append(os.getpid()))
descriptor = store._bell._descriptor
pid = os.fork()
if pid == 0:
    store.ring()
    try:
        os.fstat(descriptor)
        os._exit(1)
    except OSError:
        pass
    try:
        store.listen(print)
        os._exit(2)
    except ForkedRuntimeError:
        pass
    store.close()
    other = SQLiteStore(home, Settings(), FileResults(home))  # its own bell
    rung = threading.Event()
    other.listen(rung.set)
    other.ring([other.owner])
    ok = rung.wait(10)
    other.close()
    os._exit(0 if ok and not heard else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert heard == [], heard
assert (home / "live" / f"{store.owner}.bell").exists()
store.ring()
while not heard:
    time.sleep(0.001)
store.close()
print("done")
""",
        str(home),
        cwd=PROJECT,
    )
    assert done.stdout == "done\n"


CLAIM = """
import sys
from pathlib import Path
from asyncflow._rows import STATE_CODES
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import START, LiveRun, deployment_row, go_on, rule_row, waiting_row

what, home, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
store = SQLiteStore(home, Settings(synchronous="normal"), FileResults(home))
row = deployment_row()
print("open", flush=True)
sys.stdin.readline()
done = []
if what == "claim":
    while len(done) < number:
        done += [each.id.hex() for each in store.claim_due([row.id], START + 10**9, 1)]
        if store.next_due([row.id]) is None:
            break
elif what == "limit":
    while True:
        taken = store.claim_due([row.id], START + 10**9, 2)
        rows = store.read_runs(__import__("asyncflow").abc.RunQuery(kinds=frozenset({0}), deployment_id=row.id,
            states=frozenset({StateType.PENDING, StateType.RUNNING}), limit=1000))
        assert len(rows) <= number, len(rows)
        for each in taken:
            go_on(store, each.id, StateType.RUNNING, START + 10**9)
            done.append(each.id.hex())
        for each in taken:
            go_on(store, each.id, StateType.COMPLETED, START + 10**9)
        if store.next_due([row.id]) is None:
            break
else:
    rule = rule_row(row)
    for slot in range(number):
        run = waiting_row(row, START + slot, f"daily@{slot}")
        if store.fire(rule.id, str(slot), str(slot + 1), [run]).done:
            done.append(run.id.hex())
store.close()
print("\\n".join(done), flush=True)
"""


def in_two_processes(home: Path, what: str, number: int) -> list[list[str]]:
    """What each of two processes says it has done, which begin together."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, what, str(home), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
        )
        for _ in range(2)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
    outputs: list[str] = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        outputs.append(output)
    return [output.split() for output in outputs]


def test_of_two_processes_each_run_is_claimed_by_one(home: Path, store: SQLiteStore) -> None:
    row = deployment_row()
    store.write_deployment(row, [])
    rows = [waiting_row(row, START + n) for n in range(1000)]
    store.enqueue(rows)
    first, second = in_two_processes(home, "claim", 1000)
    assert sorted(first + second) == sorted(each.id.hex() for each in rows)
    order = [each.id.hex() for each in rows]
    assert [order.index(each) for each in first] == sorted(order.index(each) for each in first)


def test_two_processes_never_run_more_than_the_limit(home: Path, store: SQLiteStore) -> None:
    row = deployment_row(concurrency_limit=3)
    store.write_deployment(row, [])
    rows = [waiting_row(row, START + n) for n in range(120)]
    store.enqueue(rows)
    first, second = in_two_processes(home, "limit", 3)
    assert sorted(first + second) == sorted(each.id.hex() for each in rows)


def test_of_two_processes_each_slot_is_fired_by_one(home: Path, store: SQLiteStore) -> None:
    row = deployment_row()
    store.write_deployment(row, [rule_row(row)])
    first, second = in_two_processes(home, "fire", 300)
    (rule,) = store.read_rules([row.id])
    fired = len(first) + len(second)
    assert int(rule.state) == fired > 0
    assert len(set(first + second)) == fired
    assert store.next_due([row.id]) == START


def test_requests_go_to_their_owner_and_answers_to_who_asked(home: Path, open_store: Open) -> None:
    asker, owner = open_store(), open_store()
    request = asker.ask(owner.owner, bytes(16), "cancel", None, START)
    assert asker.read_requests() == []
    assert [row.asker for row in owner.read_requests()] == [asker.owner]
    owner.answer(request, "done")
    assert asker.read_answer(request) == "done"


def test_requests_that_nobody_will_answer_or_read_are_deleted(home: Path, open_store: Open) -> None:
    here, asker, owner = open_store(), open_store(), open_store()
    to_dead = here.ask(owner.owner, bytes(16), "cancel", None, START)
    from_dead = [asker.ask(here.owner, bytes(16), "cancel", str(n), START) for n in range(2)]
    here.answer(from_dead[0], "nobody will read it")
    for each in (asker, owner):
        each._ownership.release(remove=False)
    here.reap(START)
    assert [row.id for row in here.read_requests()] == [from_dead[1]]  # it is to be done all the same
    assert numbers(here) == from_dead[1:]
    here.answer(from_dead[1], "done")
    assert numbers(here) == []
    here.ask(to_dead + 99, bytes(16), "cancel", None, START)
    leaving = open_store()
    leaving.ask(here.owner, bytes(16), "pause", None, START)
    leaving.close()
    assert len(here.read_requests()) == 1
    here.answer(here.read_requests()[0].id, "done")
    assert numbers(here) == []


def numbers(store: SQLiteStore) -> list[int]:
    return [row[0] for row in store._read("looking", "SELECT id FROM request ORDER BY id", [])]
