"""The SQLite store and the one in memory, told the same at random, are read side by side after each step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asyncflow._journal import EventRow
from asyncflow._rows import (
    ACTIVE,
    COMMITTED,
    FIRST_FINAL,
    FLOW,
    ROLLED_BACK,
    STAND_IN,
    STATE_CODES,
    TASK,
    CachedRow,
    ItemRow,
    LogRow,
    RunRow,
    TransactionRow,
)
from asyncflow.abc import LogQuery, RunQuery, RunStore
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import START, LiveRun, Waiter, run_row

ALL = RunQuery(kinds=frozenset({FLOW, TASK, STAND_IN}), limit=1000)
OURS, NOBODYS = 1, 77
"""The first store opened on a home, and one that has no process."""
KEYS = ("", "a", "b", "half \ud83d pair")
RUNNING = STATE_CODES[StateType.RUNNING]

picks = st.integers(0, 10**6)
states = st.sampled_from([STATE_CODES[each] for each in StateType])
owners = st.sampled_from([OURS, OURS, NOBODYS])
details = st.sampled_from([None, '{"resume":"auto"}', '{"version":"1"}'])


class Stores(RuleBasedStateMachine):
    """Each rule does one thing to both; each answer must be equal."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stores"))
        self.sqlite = self.open_sqlite()
        self.memory = MemoryStore()
        self.dead: list[SQLiteStore] = []
        self.ids: list[bytes] = []
        self.transactions: list[bytes] = []
        self.now = START

    def open_sqlite(self) -> SQLiteStore:
        home = self.folder / "home"
        return SQLiteStore(home, Settings(synchronous="normal"), FileResults(home))

    def teardown(self) -> None:
        for store in (*self.dead, self.sqlite):
            store.close()
        shutil.rmtree(self.folder)

    def both(self, act: Callable[[RunStore], Any]) -> Any:
        answer = act(self.sqlite)
        assert act(self.memory) == answer
        return answer

    def put(self, row: RunRow) -> None:
        known = self.memory.read_run(row.id)

        def put(store: RunStore) -> None:
            waiter = Waiter()
            store.put(LiveRun(row, journalled=0 if known is None else known.seq))
            store.confirm(waiter.ticket())
            waiter.wait()

        self.both(put)

    def pick(self, ids: list[bytes], number: int) -> bytes:
        return ids[number % len(ids)] if ids else bytes(16)

    def tick(self) -> int:
        self.now += 1000
        return self.now

    # --- what happens -------------------------------------------------------------------------

    @rule(kind=st.sampled_from([FLOW, FLOW, TASK, STAND_IN]), state=states, parent=picks, owner=owners, details=details)
    def begin(self, kind: int, state: int, parent: int, owner: int, details: str | None) -> None:
        above = self.pick(self.ids, parent) if parent % 3 else None
        created = self.tick()
        ended = created + 5 if state >= FIRST_FINAL else None
        row = run_row(
            id=new_id(), kind=kind, state=state, parent_id=above, owner=owner, details=details,
            created=created, started=None, ended=ended, seq=1 + parent % 3,
        )  # fmt: skip
        self.ids.append(row.id)
        self.put(row)

    @rule(which=picks, state=states, owner=owners, step=st.integers(-1, 2))
    def go_on(self, which: int, state: int, owner: int, step: int) -> None:
        known = self.memory.read_run(self.pick(self.ids, which))
        if known is not None:
            self.put(known._replace(state=state, state_name=None, owner=owner, seq=known.seq + step, message="on"))

    @rule(which=picks, wrong=st.sampled_from([0, 0, 0, 1, -1]))
    def claim(self, which: int, wrong: int) -> None:
        run_id, now = self.pick(self.ids, which), self.tick()
        known = self.memory.read_run(run_id)
        seq = 1 if known is None else known.seq + wrong
        self.both(lambda store: store.claim(run_id, seq, now))

    @rule()
    def reap(self) -> None:
        dead = self.open_sqlite()  # one that has died makes the store look at everything
        dead._ownership.release(remove=False)
        self.dead.append(dead)
        now = self.tick()
        self.both(lambda store: store.reap(now))

    @rule(picked=st.lists(picks, max_size=5))
    def delete(self, picked: list[int]) -> None:
        ids = [self.pick(self.ids, number) for number in picked]
        self.both(lambda store: store.delete_runs(ids))

    @rule(which=picks, text=st.text(max_size=3))
    def log(self, which: int, text: str) -> None:
        line = LogRow(self.pick(self.ids, which), None, self.tick(), 20, "x", text)
        self.both(lambda store: store.put_log(line))

    @rule(key=st.sampled_from(KEYS), ttl=st.none() | st.integers(-2000, 20_000))
    def cache(self, key: str, ttl: int | None) -> None:
        now = self.tick()
        row = CachedRow(key, "t", new_id(), now, None if ttl is None else now + ttl, "1", None)
        self.both(lambda store: store.write_cached(row))

    @rule(is_expired=st.booleans(), is_old=st.booleans(), keys=st.lists(st.sampled_from(KEYS), max_size=2))
    def clear(self, is_expired: bool, is_old: bool, keys: list[str]) -> None:
        at = self.tick() if is_expired else None
        before = self.tick() if is_old else None
        self.both(lambda store: [row[:5] for row in store.delete_cached(at, keys, made_before=before)])

    @rule()
    def forget(self) -> None:
        before = self.tick()
        self.both(lambda store: store.delete_transactions(before))

    @rule(
        which=picks,
        state=st.sampled_from([ACTIVE, COMMITTED, ROLLED_BACK]),
        owner=owners,
        runs=st.lists(picks, max_size=3),
    )
    def transact(self, which: int, state: int, owner: int, runs: list[int]) -> None:
        if which % 2 or not self.transactions:
            self.transactions.append(new_id())
        row = TransactionRow(
            self.pick(self.transactions, which),
            KEYS[which % 3] or None,
            None,
            state,
            self.tick(),
            None,
            owner,
            None,
            None,
        )
        back = [self.pick(self.ids, number) for number in runs] if state == ROLLED_BACK else []
        self.both(lambda store: store.write_transaction(row, back))

    @rule(which=picks, name=st.sampled_from(["order.placed", "half \ud83d pair"]), inside=st.booleans())
    def emit(self, which: int, name: str, inside: bool) -> None:
        run_id = self.pick(self.ids, which) if inside else None
        event = EventRow(self.tick(), name, "order/7", '{"a":1}', run_id if which % 2 else None, run_id)
        self.both(lambda store: store.put_event(event))
        self.settle()

    @rule(which=picks, n=st.integers(0, 3))
    def hand_over(self, which: int, n: int) -> None:
        item = ItemRow(self.pick(self.ids, which), n, str(self.tick()))
        self.both(lambda store: store.put_item(item))
        self.settle()

    @rule(back=st.none() | st.integers(0, 50_000))
    def forget_events(self, back: int | None) -> None:
        before = None if back is None else self.now - back
        self.both(lambda store: store.delete_journal(before))

    # --- what is read -------------------------------------------------------------------------

    @invariant()
    def the_journals_are_equal(self) -> None:
        events = self.both(lambda store: store.read_journal(None, 10_000))
        assert len({event.cursor for event in events}) == len(events)
        self.both(lambda store: store.newest_cursor())

    @rule(which=picks, limit=st.integers(1, 5))
    def look_at_a_page(self, which: int, limit: int) -> None:
        events = self.memory.read_journal(None, 10_000)
        if events:
            place = which % len(events)
            page = self.both(lambda store: store.read_journal(events[place].cursor, limit))
            assert page == events[place + 1 :][:limit]
            at = events[place].at + which % 3 - 1
            since = self.both(lambda store: store.cursor_since(at))
            begun = [event for event in events if (event.at if event.run is None else event.run.created) >= at]
            assert all(event.cursor > since for event in begun)

    @invariant()
    def all_is_equal(self) -> None:
        self.both(lambda store: store.read_runs(ALL))
        self.both(lambda store: store.read_interrupted())
        self.both(lambda store: store.count_outermost())
        self.both(lambda store: store.read_oldest(5, before=self.now - 5000))
        self.both(lambda store: store.read_oldest(5))
        self.both(lambda store: store.read_transactions())
        self.both(lambda store: store.read_transactions(key="a", state=COMMITTED))
        self.both(lambda store: [(store.read_cached(key) or (None,) * 7)[:5] for key in KEYS])

    @rule(which=picks)
    def look_at_one(self, which: int) -> None:
        run_id = self.pick(self.ids, which)
        self.both(lambda store: store.read_tree(run_id))
        self.both(lambda store: store.read_children(run_id))
        self.settle()
        self.both(lambda store: [line[:-1] for line in store.read_logs(LogQuery(run_id=run_id))])
        self.both(lambda store: store.read_items(run_id, -1, 100))

    def settle(self) -> None:
        waiter = Waiter()
        self.sqlite.confirm(waiter.ticket())
        waiter.wait()


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStores.pytestmark = [pytest.mark.timeout(300)]  # type: ignore[attr-defined]
