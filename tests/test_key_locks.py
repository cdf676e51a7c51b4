"""Locks by key: one holder among threads and processes, first come first served, freed by death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncflow._key_locks import KeyLocks
from asyncflow.exceptions import StoreError

HOLD = """
import sys
from pathlib import Path
from asyncflow._key_locks import KeyLocks
locks = KeyLocks(Path(sys.argv[1]))
release = locks.acquire("k")
print("held", flush=True)
sys.stdin.read()
release()
"""
COUNT = """
import sys
from pathlib import Path
from asyncflow._key_locks import KeyLocks
locks, counter = KeyLocks(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    release = locks.acquire("k")
    counter.write_text(str(int(counter.read_text()) + 1))
    release()
"""


@pytest.fixture(params=["files", "memory"])
def locks(request: pytest.FixtureRequest, tmp_path: Path) -> KeyLocks:
    return KeyLocks(tmp_path / "locks" if request.param == "files" else None)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of "k" until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "locks")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_has_one_holder(locks: KeyLocks) -> None:
    release = locks.acquire("k")
    assert locks.try_acquire("k") is None
    other = locks.try_acquire("another")
    assert other is not None
    release()
    release()  # once more changes nothing
    again = locks.try_acquire("k")
    assert again is not None
    assert locks.try_acquire("k") is None
    again()
    other()


def test_threads_get_it_in_the_order_they_came(locks: KeyLocks) -> None:
    got: list[int] = []
    release = locks.acquire("k")

    def take(number: int) -> None:
        mine = locks.acquire("k")
        got.append(number)
        mine()

    threads: list[threading.Thread] = []
    for number in range(20):
        thread = threading.Thread(target=take, args=(number,))
        thread.start()
        threads.append(thread)
        while len(locks._turns["k"]) < number + 2:
            time.sleep(0.001)
    release()
    for thread in threads:
        thread.join(10)
    assert got == list(range(20))
    assert not locks._turns


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(50):
        locks.acquire(f"key {number}")()
    assert list((tmp_path / "locks").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    release = KeyLocks(tmp_path / "locks").acquire("../../etc/passwd")
    [file] = (tmp_path / "locks").iterdir()
    assert file.name.startswith("key-")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    release()


def test_two_objects_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    first, second = KeyLocks(tmp_path), KeyLocks(tmp_path)
    release = first.acquire("k")
    assert second.try_acquire("k") is None
    release()
    got = second.try_acquire("k")
    assert got is not None
    got()


def test_another_process_holds_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    assert locks.try_acquire("k") is None
    got = threading.Event()

    def take() -> None:
        release = locks.acquire("k")
        got.set()
        release()

    thread = threading.Thread(target=take)
    thread.start()
    assert not got.wait(0.2)
    assert holder.stdin is not None
    holder.stdin.close()
    assert got.wait(5)
    thread.join()


def test_a_killed_holder_frees_it_at_once(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    holder.send_signal(signal.SIGKILL)
    began = time.monotonic()
    locks.acquire("k")()
    assert time.monotonic() - began < 2


def test_a_stopped_holder_keeps_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGSTOP)
    assert KeyLocks(tmp_path / "locks").try_acquire("k") is None


def test_no_two_processes_hold_it_at_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "locks"), str(counter), "100"]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counter.read_text() == "400"
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_fork_has_nothing_of_what_its_parent_holds(tmp_path: Path) -> None:
    locks = KeyLocks(tmp_path / "locks")
    release = locks.acquire("k")
    started, end = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        release()  # the parent's: nothing happens
        os.write(started[1], b"no" if locks.try_acquire("k") is None else b"yes")
        os.read(end[0], 1)
        os._exit(0)
    assert os.read(started[0], 3) == b"no"
    release()
    # The child lives on, and has kept nothing open that would hold the lock.
    got = locks.try_acquire("k")
    assert got is not None
    got()
    os.write(end[1], b"x")
    os.waitpid(child, 0)
    for descriptor in (*started, *end):
        os.close(descriptor)


def test_a_lock_that_cannot_be_made_is_an_error_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("not a folder")
    locks = KeyLocks(tmp_path / "locks")
    with pytest.raises(StoreError, match=r"locking a key failed on .*locks"):
        locks.acquire("k")
    with pytest.raises(StoreError):
        locks.try_acquire("k")
    assert not locks._turns
