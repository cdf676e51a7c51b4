"""Retention and reaping: what is decided, and what becomes of a real home while its runtime does that by itself."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow import Runtime, Settings, flow, task
from asyncflow._retention import Pace, Retention
from asyncflow._rows import STATE_CODES, CachedRow
from asyncflow._upkeep import Sweeper
from asyncflow.abc import Reaped, RunQuery, RunStore
from asyncflow.clock import SystemClock
from asyncflow.exceptions import StoreError
from asyncflow.results import FileResults
from asyncflow.states import StateType
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore

# --- what is to go -----------------------------------------------------------------------------

limits = st.none() | st.integers(0, 10**12)


def test_settings_of_0_are_no_limits() -> None:
    assert Retention.of(Settings(retention_days=0, retention_runs=0, retention_bytes=0)) == Retention()
    day = 24 * 3600 * 1_000_000
    assert Retention.of(Settings(retention_days=1e-300)).age == 1  # small, and not no limit
    some = Settings(retention_days=1.5, retention_runs=7, retention_bytes=1000)
    assert Retention.of(some) == Retention(age=3 * day // 2, runs=7, size=1000)


@given(st.integers(0, 10**18), limits)
def test_age_counts_back_from_now(now: int, age: int | None) -> None:
    before = Retention(age=age).before(now)
    assert before is None if age is None else now - (before or 0) == age


@given(limits, limits, st.integers(0, 10**12), st.integers(0, 10**7), st.booleans())
def test_no_more_goes_than_there_is_and_nothing_while_all_is_within_the_limits(
    runs: int | None, size_limit: int | None, size: int, count: int, shrinking: bool
) -> None:
    excess = Retention(runs=runs, size=size_limit).excess(size, lambda: count, shrinking=shrinking)
    assert 0 <= excess <= count
    has_too_many = runs is not None and count > runs
    is_too_big = size_limit is not None and size > size_limit
    if has_too_many:
        assert excess >= count - (runs or 0)
    if is_too_big and count:
        assert excess >= 1
    if not (has_too_many or is_too_big or shrinking):
        assert excess == 0


@given(st.lists(st.integers(1, 10_000), max_size=300), st.integers(0, 10**6), st.integers(1, 20))
def test_deleting_ends_below_the_bytes_and_soon_after_it_had_to(sizes: list[int], limit: int, most: int) -> None:
    """The loop of a sweep, on runs of any sizes."""
    retention, shrinking, left = Retention(size=limit), False, list(sizes)
    was_too_big, last = sum(left) > limit, list[int]()
    for _ in range(len(sizes) + 1):
        excess = retention.excess(sum(left), partial(len, left), shrinking=shrinking)
        shrinking = excess > 0
        if not excess:
            break
        last, left = left[: min(most, excess)], left[min(most, excess) :]
    assert sum(left) <= limit
    if was_too_big:
        target = limit - limit // 20
        assert sum(left) <= target < sum(left) + sum(last)  # without the last batch it was still too big
    else:
        assert left == sizes


@given(limits, st.integers(0, 10**12), st.booleans())
def test_a_million_runs_are_not_counted_for_nothing(size_limit: int | None, size: int, shrinking: bool) -> None:
    counted = False

    def count() -> int:
        nonlocal counted
        counted = True
        return 10

    excess = Retention(size=size_limit).excess(size, count, shrinking=shrinking)
    assert counted == bool(excess)


@given(st.floats(0.0001, 0.1), st.floats(0.000_001, 10))
def test_a_batch_grows_to_what_its_trees_may_cost_and_no_further(commit: float, each: float) -> None:
    target, pace, tried = 0.02, Pace(0.02), list[int]()
    for _ in range(160):
        tried.append(pace.trees)
        pace.note(pace.trees, commit + each * pace.trees)
    assert tried[0] == 1
    assert max(tried) <= min(500, max(2, 4 * target / each))
    late = sorted(tried[-32:])
    usual = late[16]
    assert usual >= min(500, int(target / each) or 1) // 2
    assert sum(not usual / 2 <= number <= usual * 2 for number in late) <= 2  # it has settled, but for the probes


def test_trees_that_are_suddenly_large_shrink_the_next_batch_at_once() -> None:
    pace = Pace(0.02)
    while pace.trees != 500:
        pace.note(pace.trees, 0.001 + 0.000_01 * pace.trees)
    pace.note(500, 5.0)
    assert pace.trees <= 2


# --- what becomes of a home --------------------------------------------------------------------

DAY = 24 * 3600.0
SOON = 10.0


@task
def double(number: int) -> int:
    return 2 * number


@flow
def doubled(number: int, filling: str = "") -> int:
    return double(number)


@flow
async def written(number: int, filling: str) -> int:
    return number


class Later(SystemClock):
    """The clock, some time from now."""

    def __init__(self, seconds: float) -> None:
        self.now: Any = lambda: time.time() + seconds


def store_of(runtime: Runtime) -> RunStore:
    assert runtime.services is not None
    return runtime.services.store


def wait_until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def upkeep_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "asyncflow-upkeep"]


def numbers_kept(store: RunStore) -> list[int]:
    """The parameters of the runs there are, in the order they were made."""
    rows = store.read_runs(RunQuery(kinds=frozenset({0}), limit=100_000))
    return [int((row.parameters or "").partition('"number":')[2].partition(",")[0].strip("}")) for row in rows[::-1]]


def folders(home: Path) -> set[str]:
    return {each.name for each in (home / "results").iterdir() if each.name != "cache"}


def test_a_home_is_kept_below_its_bytes_while_runs_go_on(tmp_path: Path) -> None:
    file, limit, quickly, runs, runs_a_second = tmp_path / "asyncflow.db", 20_000_000, 280, 520, 50

    async def write() -> float:
        """Runs of 64 kB: soon 18 MB, from then on 3 MB a second. Gives the most bytes of the file."""
        largest = started = 0.0
        for number in range(runs):
            if number == quickly:
                started = anyio.current_time()
            await written(number, filling="x" * 64_000)
            largest = max(largest, (await anyio.Path(file).stat()).st_size)
            if number > quickly:
                await anyio.sleep_until(started + (number - quickly) / runs_a_second)
        return largest

    with Runtime(tmp_path, retention_bytes=limit, upkeep_seconds=0.1, synchronous="normal") as runtime:
        largest, store = anyio.run(write), store_of(runtime)
        wait_until(lambda: store.size() <= limit and store.give_back() == 0)
        kept = numbers_kept(store)
        assert kept == list(range(kept[0], runs))  # the oldest went first, and nothing else did
        assert kept[0] > runs / 4
        assert store.size() > limit * 0.7
        wait_until(lambda: len(folders(tmp_path)) == store.count_outermost())
    assert largest < 1.5 * limit, f"{largest:,} bytes"
    assert file.stat().st_size <= 1.05 * limit


def test_runs_of_long_ago_are_deleted_with_all_that_is_of_them(tmp_path: Path) -> None:
    with Runtime(tmp_path) as runtime:
        for number in range(50):
            doubled(number)
        assert store_of(runtime).count_outermost() == 50
    with Runtime(tmp_path, clock=Later(29 * DAY)) as runtime:
        doubled(50)
        time.sleep(0.2)
        assert store_of(runtime).count_outermost() == 51
    with Runtime(tmp_path, clock=Later(100 * DAY), retention_days=0) as runtime:
        doubled(51)
        time.sleep(0.2)
        assert store_of(runtime).count_outermost() == 52
    with Runtime(tmp_path, clock=Later(31 * DAY)) as runtime:
        wait_until(lambda: store_of(runtime).count_outermost() == 2)
        assert numbers_kept(store_of(runtime)) == [50, 51]
        assert len(store_of(runtime).read_runs(RunQuery(kinds=frozenset({1})))) == 2
        wait_until(lambda: len(folders(tmp_path)) == 2)


def test_most_runs_that_are_kept(tmp_path: Path) -> None:
    with Runtime(tmp_path) as runtime:
        for number in range(60):
            doubled(number)
    with Runtime(tmp_path, retention_runs=25) as runtime:
        wait_until(lambda: store_of(runtime).count_outermost() == 25)
        assert numbers_kept(store_of(runtime)) == list(range(35, 60))


def test_trees_that_cannot_be_deleted_do_not_stand_in_the_way(tmp_path: Path) -> None:
    with Runtime(tmp_path) as runtime:
        for number in range(40):
            doubled(number)
        store = store_of(runtime)
        # The task run below each of the five oldest goes on, in this process.
        connection = sqlite3.connect(tmp_path / "asyncflow.db", isolation_level=None)
        connection.execute(
            "UPDATE run SET state = 3, ended = NULL WHERE id IN (SELECT id FROM run WHERE kind = 1 ORDER BY id LIMIT 5)"
        )
        connection.close()
        sweeper, deleted = Sweeper(runtime.open(), Retention(runs=10)), 0
        while (swept := sweeper.sweep()).has_more:
            deleted += len(swept.runs)
        assert deleted == 30
        assert numbers_kept(store) == [*range(5), *range(35, 40)]


def test_space_is_given_back_to_the_disk(tmp_path: Path) -> None:
    with Runtime(tmp_path) as runtime:
        for number in range(300):
            doubled(number, filling="x" * 20_000)
    file = tmp_path / "asyncflow.db"
    before = file.stat().st_size
    assert before > 6_000_000
    with Runtime(tmp_path, retention_runs=10) as runtime:
        store = store_of(runtime)
        wait_until(lambda: store.count_outermost() == 10)
        wait_until(lambda: store.give_back() == 0)
    assert file.stat().st_size < before / 10


def test_cached_values_that_have_expired_are_deleted(tmp_path: Path) -> None:
    moment = int(time.time() * 1_000_000)
    rows = {
        key: CachedRow(key, "task", bytes(16), moment - 10_000_000, expires, '"x"', None)
        for key, expires in (("old", moment - 1), ("new", moment + 3_600_000_000), ("for ever", None))
    }
    with Runtime(tmp_path) as runtime:
        for row in rows.values():
            store_of(runtime).write_cached(row)
    with Runtime(tmp_path) as runtime:
        store = store_of(runtime)
        wait_until(lambda: store.read_cached("old") is None)
        assert store.read_cached("new") is not None
        assert store.read_cached("for ever") is not None
        wait_until(lambda: len(list((tmp_path / "results" / "cache").iterdir())) == 2)


# --- what dead processes left behind -----------------------------------------------------------

HELD = """
import sys, time
from asyncflow import flow, task
from asyncflow.runtime import HOME
from asyncflow._rows import ACTIVE, TransactionRow
from asyncflow.ids import new_id

@task
def wait():
    services = HOME.open_default()
    hooks = '["give_back", "tell"]'
    row = TransactionRow(new_id(), "booking", None, ACTIVE, 1, None, services.store.owner, None, hooks)
    services.store.write_transaction(row)
    print("ready", flush=True)
    time.sleep(1000)

@flow
def main():
    wait()

main()
"""


@contextmanager
def other_process(home: Path) -> Generator[subprocess.Popen[str]]:
    """A process in the middle of a run and of a transaction."""
    env = {**os.environ, "ASYNCFLOW_HOME": str(home)}
    process = subprocess.Popen([sys.executable, "-c", HELD], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def states(store: RunStore) -> list[int]:
    return [row.state for row in store.read_runs(RunQuery(kinds=frozenset({0, 1})))]


CRASHED = STATE_CODES[StateType.CRASHED]


def test_runs_of_a_process_that_died_are_crashed_when_the_next_runtime_is_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with other_process(tmp_path) as process:
        with Runtime(tmp_path) as runtime:
            assert CRASHED not in states(store_of(runtime))  # it lives
        assert not caplog.messages
        killed(process)
    with Runtime(tmp_path, upkeep_seconds=0) as runtime:
        assert states(store_of(runtime)) == [CRASHED] * 2  # at once
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2
    assert lines[0].startswith("2 runs of processes that have died ended as Crashed")
    assert "transaction 'booking' was interrupted" in lines[1]
    assert "give_back, tell" in lines[1]
    assert all(str(tmp_path) in line for line in lines)


def test_an_open_runtime_finds_a_process_that_dies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Runtime(tmp_path, upkeep_seconds=0.2) as runtime, other_process(tmp_path) as process:
        store = store_of(runtime)
        assert CRASHED not in states(store)
        killed(process)
        died = time.monotonic()
        wait_until(lambda: states(store) == [CRASHED] * 2)
        assert time.monotonic() - died < 2
        wait_until(lambda: len(caplog.messages) == 2)


# --- the thread ----------------------------------------------------------------------------------


def test_a_memory_store_needs_no_upkeep() -> None:
    before = len(upkeep_threads())
    with Runtime(store=MemoryStore()):
        assert len(upkeep_threads()) == before


def test_upkeep_only_at_the_opening_leaves_a_thread_that_waits_for_its_bell(tmp_path: Path) -> None:
    before = upkeep_threads()
    with Runtime(tmp_path, upkeep_seconds=0) as runtime:
        doubled(1)
        assert len(upkeep_threads()) == len(before) + 1
        assert store_of(runtime).count_outermost() == 1
    wait_until(lambda: upkeep_threads() == before)


def test_closing_does_not_wait_for_what_is_being_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Runtime(tmp_path, synchronous="normal") as runtime:
        for number in range(1_500):
            doubled(number)
    before = upkeep_threads()
    for _ in range(5):
        runtime = Runtime(tmp_path, retention_runs=1)
        store = runtime.open().store
        wait_until(lambda store=store: store.count_outermost() < 1_500)  # type: ignore[misc]
        started = time.monotonic()
        runtime.close()
        assert time.monotonic() - started < 2
        wait_until(lambda: upkeep_threads() == before)
    assert not caplog.messages


class Ailing(SQLiteStore):
    """A store on a disk that fails whenever upkeep looks at it, while it is ill."""

    is_ill = True
    asked = 0

    def reap(self, now: int) -> Reaped:
        self._fail()
        return super().reap(now)

    def read_oldest(self, limit: int, before: int | None = None) -> list[bytes]:
        self._fail()
        return super().read_oldest(limit, before)

    def _fail(self) -> None:
        self.asked += 1
        if self.is_ill:
            raise StoreError("reading", self._database.path, "disk I/O error")


def test_what_goes_wrong_is_told_once_and_is_no_runs_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Ailing(tmp_path, Settings(), FileResults(tmp_path))
    with Runtime(tmp_path, store=store, upkeep_seconds=0.01):
        assert doubled(1) == 2
        wait_until(lambda: store.asked > 20)
        told = list(caplog.messages)
        assert len(told) == 2  # what is looked for every second, and once a minute
        assert all(str(tmp_path) in message and "failed: " in message for message in told)
        store.is_ill = False
        wait_until(lambda: store.asked > 40)
        store.is_ill = True
        wait_until(lambda: store.asked > 60)
        assert caplog.messages == [*told, told[0]]  # it had worked in between


def test_a_forked_child_can_close_its_parents_runtime(tmp_path: Path) -> None:
    with Runtime(tmp_path, upkeep_seconds=0.01) as runtime:
        for number in range(20):
            doubled(number)
            child = os.fork()
            if child == 0:
                try:
                    runtime.close()
                    os._exit(0)
                finally:
                    os._exit(1)
            give_up_at = time.monotonic() + SOON
            found, status = os.waitpid(child, os.WNOHANG)
            while not found and time.monotonic() < give_up_at:
                time.sleep(0.005)
                found, status = os.waitpid(child, os.WNOHANG)
            if not found:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            assert (found, status) == (child, 0)


IDLE = """
import sys, time
from asyncflow import Runtime
with Runtime(sys.argv[1]):
    time.sleep(1.5)
    before = time.process_time()
    time.sleep(3)
    print(time.process_time() - before)
"""


def test_the_upkeep_of_an_idle_home_costs_nothing(tmp_path: Path, run_python: Any) -> None:
    done = run_python(IDLE, str(tmp_path / "idle"))
    assert float(done.stdout) < 3 * 0.01
