"""The contract of `RunStore` beyond recording: runs taken over, cached values, transactions, retention."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncflow._rows import (
    ACTIVE,
    COMMITTED,
    FLOW,
    INTERRUPTED,
    ROLLED_BACK,
    STAND_IN,
    STATE_CODES,
    TASK,
    CachedRow,
    LogRow,
    RunRow,
    TransactionRow,
    history_of,
    states_of,
)
from asyncflow.abc import LogQuery, Reaped, RunQuery, RunStore
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import START, LiveRun, Waiter, run_row

ALL = frozenset({FLOW, TASK, STAND_IN})
PENDING, RUNNING, PAUSED, COMPLETED, FAILED, CRASHED = (
    STATE_CODES[each]
    for each in (
        StateType.PENDING,
        StateType.RUNNING,
        StateType.PAUSED,
        StateType.COMPLETED,
        StateType.FAILED,
        StateType.CRASHED,
    )
)
NOBODY = 0
"""An owner that lives on no store's word."""
LATER = START + 1_000_000
TOTALS = {"kind": FLOW, "function": "totals"}


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    home = tmp_path / "store"
    store: RunStore = SQLiteStore(home, Settings(), FileResults(home)) if request.param == "sqlite" else MemoryStore()
    yield store
    store.close()


def record(store: RunStore, *rows: RunRow) -> None:
    """Put each row as a run of its own and wait until all are on disk."""
    for row in rows:
        store.put(LiveRun(row))
    waiter = Waiter()
    store.confirm(waiter.ticket())
    assert [ticket.error for ticket in waiter.wait()] == [None]


def running(**columns: Any) -> RunRow:
    return run_row(**{"state": RUNNING, "seq": 2, "ended": None, "result": None, **columns})


def found(store: RunStore, run_id: bytes) -> RunRow:
    row = store.read_run(run_id)
    assert row is not None
    return row


# --- owners ----------------------------------------------------------------------------------


def test_what_another_owner_writes_of_a_run_is_ignored(store: RunStore) -> None:
    row = running(owner=store.owner)
    record(store, row, row._replace(owner=store.owner + 1, seq=9))
    assert store.read_run(row.id) == row


def test_children_are_read_in_the_order_they_were_made_without_stand_ins(store: RunStore) -> None:
    root = run_row(kind=FLOW)
    first = run_row(parent_id=root.id, flow_run_id=root.id)
    stand_in = run_row(kind=STAND_IN, parent_id=root.id, flow_run_id=root.id)
    nested = run_row(kind=FLOW, parent_id=stand_in.id, flow_run_id=root.id)
    below = run_row(parent_id=nested.id, flow_run_id=nested.id)
    last = run_row(parent_id=root.id, flow_run_id=root.id)
    record(store, last, below, nested, stand_in, first, root, run_row())
    assert store.read_children(root.id) == [first, nested, last]
    assert store.read_children(nested.id) == [below]
    assert store.read_children(last.id) == store.read_children(new_id()) == []


@pytest.mark.parametrize("row", [running(), running(state=PENDING, started=None, seq=1), running(state=PAUSED, seq=3)])
def test_an_open_run_that_belongs_to_nobody_is_crashed(store: RunStore, row: RunRow) -> None:
    record(store, row)
    ours = running(owner=store.owner)
    record(store, ours, done := run_row())
    assert store.reap(LATER) == Reaped(crashed=1)
    crashed = found(store, row.id)
    assert (crashed.state, crashed.ended, crashed.seq, crashed.owner) == (CRASHED, LATER, row.seq + 1, store.owner)
    assert crashed.message is not None
    assert crashed.message.startswith("its process died")
    assert states_of(crashed)[-1].message == crashed.message
    assert [store.read_run(each.id) for each in (ours, done)] == [ours, done]
    assert store.reap(LATER) == Reaped()
    record(store, row._replace(seq=row.seq + 5))  # its process, had it lived
    assert store.read_run(row.id) == crashed


def test_an_outermost_flow_run_that_says_so_waits_for_being_resumed(store: RunStore) -> None:
    auto = '{"resume":"auto"}'
    later = running(**TOTALS, details=auto)
    root = running(**TOTALS, details=auto, id=b"\0" * 16)
    others = [
        running(kind=FLOW, details=auto, parent_id=root.id),
        running(kind=TASK, details=auto),
        running(kind=FLOW, details='{"resume":"never"}'),
        running(kind=FLOW),
    ]
    record(store, later, root, *others)
    assert store.reap(LATER) == Reaped(crashed=4, interrupted=2)
    waiting = store.read_interrupted()
    assert [row.id for row in waiting] == [root.id, later.id]  # the oldest first
    assert {(row.state, row.state_name, row.ended, row.seq, row.owner) for row in waiting} == {
        (PAUSED, "Interrupted", None, 3, store.owner)
    }
    assert store.reap(LATER) == Reaped()


# --- claiming --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "name"),
    [(FAILED, "Odd"), (CRASHED, "Odd"), (COMPLETED, "Odd"), (PAUSED, "Interrupted"), (PAUSED, "Suspended")],
)
def test_a_run_that_nobody_runs_is_claimed_once(store: RunStore, state: int, name: str) -> None:
    row = run_row(**TOTALS, state=state, state_name=name, message="m", error="{}", result="1", details='{"a":1}')
    record(store, row)
    assert store.claim(row.id, row.seq - 1, LATER) is None
    claimed = store.claim(row.id, row.seq, LATER)
    assert claimed is not None
    assert claimed == store.read_run(row.id)
    assert claimed[:7] == row[:7]
    assert (claimed.state, claimed.state_name, claimed.message) == (PENDING, "Resuming", None)
    assert (claimed.seq, claimed.owner, claimed.details) == (4, store.owner, row.details)
    assert (claimed.ended, claimed.error, claimed.result) == (None, None, None)
    assert [state.name for state in states_of(claimed)] == ["Pending", "Running", name, "Resuming"]
    assert store.claim(row.id, row.seq, LATER) is None
    assert store.claim(row.id, claimed.seq, LATER) is None  # it is open
    assert store.claim(new_id(), 1, LATER) is None


@pytest.mark.parametrize("name", [None, "Waiting"])
def test_a_run_that_is_held_in_its_process_is_not_claimed(store: RunStore, name: str | None) -> None:
    row = run_row(**TOTALS, state=PAUSED, state_name=name, ended=None, owner=store.owner)
    record(store, row)
    assert store.claim(row.id, row.seq, LATER) is None
    assert store.read_run(row.id) == row


def test_only_interrupted_runs_are_read_as_such(store: RunStore) -> None:
    rows = [run_row(**TOTALS, state=PAUSED, state_name=name, ended=None) for name in ("Suspended", "Interrupted", None)]
    record(store, *rows)
    assert store.read_interrupted() == [rows[1]]


def test_all_below_a_claimed_run_belongs_to_the_claimer(store: RunStore) -> None:
    root = run_row(**TOTALS, state=CRASHED, owner=NOBODY)
    stand_in = run_row(kind=STAND_IN, parent_id=root.id, flow_run_id=root.id, state=CRASHED, owner=NOBODY)
    nested = run_row(kind=FLOW, parent_id=stand_in.id, flow_run_id=root.id, state=CRASHED, owner=NOBODY)
    other = run_row(owner=NOBODY)
    record(store, root, stand_in, nested, other)
    assert store.claim(root.id, root.seq, LATER) is not None
    assert store.read_tree(root.id)[1:] == [stand_in._replace(owner=store.owner), nested._replace(owner=store.owner)]
    record(store, again := nested._replace(owner=store.owner, seq=4, state=RUNNING, ended=None))
    assert store.read_run(nested.id) == again
    assert store.read_run(other.id) == other


def test_the_stand_in_of_a_claimed_nested_flow_goes_with_it(store: RunStore) -> None:
    stand_in = run_row(kind=STAND_IN, parent_id=new_id(), state=FAILED)
    nested = run_row(kind=FLOW, parent_id=stand_in.id, state=FAILED)
    parent = run_row(state=FAILED)
    child = run_row(parent_id=parent.id, state=FAILED)
    record(store, stand_in, nested, parent, child)
    claimed = store.claim(nested.id, nested.seq, LATER)
    assert claimed is not None
    moved = found(store, stand_in.id)
    assert (moved.state, moved.state_name, moved.seq, moved.owner) == (PENDING, "Resuming", claimed.seq, store.owner)
    assert store.claim(child.id, child.seq, LATER) is not None
    assert store.read_run(parent.id) == parent


def test_one_of_many_threads_claims_a_run(store: RunStore) -> None:
    rows = [run_row(state=FAILED) for _ in range(50)]
    record(store, *rows)
    claimed: list[bytes] = []

    def claim() -> None:
        claimed.extend(row.id for row in rows if store.claim(row.id, row.seq, LATER) is not None)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [row.id for row in rows]


def test_a_claim_sees_what_was_put_before_it(store: RunStore) -> None:
    for _ in range(100):
        row = run_row(state=FAILED)
        store.put(LiveRun(row))
        assert store.claim(row.id, row.seq, LATER) is not None


# --- cached values ---------------------------------------------------------------------------


def cached(key: str, **columns: Any) -> CachedRow:
    return CachedRow(key, "shop.fetch", new_id(), START, None, '{"n":1}', None)._replace(**columns)


def value_of(store: RunStore, key: str) -> tuple[object, ...] | None:
    """What is kept, but for where the value is."""
    row = store.read_cached(key)
    return None if row is None else row[:5]


def test_a_cached_value_is_kept_under_its_key_until_another_takes_its_place(store: RunStore) -> None:
    assert store.read_cached("k") is None
    store.write_cached(first := cached("k", expires=LATER))
    store.write_cached(other := cached("other"))
    assert (value_of(store, "k"), value_of(store, "other")) == (first[:5], other[:5])
    store.write_cached(second := cached("k", result="2"))
    assert value_of(store, "k") == second[:5]


def test_a_key_may_be_any_text(store: RunStore) -> None:
    for key in ("", "half \ud83d pair", "../../etc/passwd", "k" * 10_000, "nul \0 inside"):
        store.write_cached(row := cached(key))
        kept = store.read_cached(key)
        assert kept is not None, key
        assert kept[1:5] == row[1:5]
    assert [row.run_id for row in store.delete_cached(keys=["half \ud83d pair"])] != []
    assert store.read_cached("half \ud83d pair") is None


def test_expired_and_named_values_are_deleted_and_given(store: RunStore) -> None:
    for key, expires in (("a", LATER), ("b", LATER + 1), ("c", LATER - 1), ("d", None)):
        store.write_cached(cached(key, expires=expires))
    assert store.delete_cached() == []
    assert [row.key for row in store.delete_cached(LATER)] == ["a", "c"]
    assert [row.key for row in store.delete_cached(keys=["d", "nothing", "d"])] == ["d"]
    assert [store.read_cached(key) is None for key in "abcd"] == [True, False, True, True]
    assert [row.key for row in store.delete_cached(LATER + 9, keys=["b"])] == ["b"]


def test_values_that_never_expire_are_deleted_by_their_age(store: RunStore) -> None:
    for key, created, expires in (("a", START, None), ("b", START + 5, None), ("c", START, LATER)):
        store.write_cached(cached(key, expires=expires)._replace(created=created))
    assert [row.key for row in store.delete_cached(made_before=START + 5)] == ["a"]
    assert [row.key for row in store.delete_cached(LATER, made_before=LATER)] == ["b", "c"]


# --- transactions ----------------------------------------------------------------------------


def test_old_transactions_are_forgotten_unless_they_are_open(store: RunStore) -> None:
    store.write_transaction(going_on := open_transaction(store))
    store.write_transaction(old := open_transaction(store, key="old", state=COMMITTED, ended=START + 1))
    store.write_transaction(young := open_transaction(store, key="young", state=ROLLED_BACK, ended=START + 9))
    assert store.delete_transactions(START + 9) == 1
    assert store.read_transactions(key=old.key) == []
    assert {row.id for row in store.read_transactions()} == {going_on.id, young.id}
    assert store.delete_transactions(START + 9) == 0


def open_transaction(store: RunStore, **columns: Any) -> TransactionRow:
    row = TransactionRow(new_id(), None, new_id(), ACTIVE, START, None, store.owner, '{"x":1}', '["undo"]')
    return row._replace(**columns)


def test_transactions_are_read_newest_first_by_key_and_by_state(store: RunStore) -> None:
    first = open_transaction(store, key="k")
    second = open_transaction(store, key="k", state=COMMITTED, ended=LATER)
    third = open_transaction(store)
    for row in (second, third, first):
        store.write_transaction(row)
    assert store.read_transactions() == [third, second, first]
    assert store.read_transactions(key="k") == [second, first]
    assert store.read_transactions(key="k", state=COMMITTED) == [second]
    assert store.read_transactions(state=ACTIVE, limit=1) == [third]
    store.write_transaction(ended := first._replace(state=ROLLED_BACK, ended=LATER, data=None))
    assert store.read_transactions(key="k") == [second, ended]


def test_runs_that_were_rolled_back_say_so(store: RunStore) -> None:
    told, bare, other = run_row(details='{"version":"1","n":[1,2]}'), run_row(), run_row()
    record(store, told, bare, other)
    store.write_transaction(open_transaction(store, state=ROLLED_BACK), [told.id, bare.id, new_id()])
    details = [json.loads(found(store, row.id).details or "null") for row in (told, bare, other)]
    assert details == [{"version": "1", "n": [1, 2], "rolled_back": True}, {"rolled_back": True}, None]
    assert found(store, told.id)._replace(details=told.details) == told


def test_runs_that_were_committed_say_so(store: RunStore) -> None:
    record(store, told := run_row(details='{"version":"1"}'))
    store.write_transaction(open_transaction(store, state=COMMITTED, ended=LATER), [told.id])
    assert json.loads(found(store, told.id).details or "") == {"version": "1", "committed": True}


def test_an_open_transaction_of_nobody_is_interrupted(store: RunStore) -> None:
    left, ours = open_transaction(store, owner=NOBODY), open_transaction(store)
    done = open_transaction(store, owner=NOBODY, state=COMMITTED, ended=LATER)
    for row in (left, ours, done):
        store.write_transaction(row)
    interrupted = left._replace(state=INTERRUPTED, ended=LATER + 1, owner=store.owner)
    assert store.reap(LATER + 1) == Reaped(transactions=(interrupted,))
    assert store.read_transactions() == [done, ours, interrupted]
    store.write_transaction(left._replace(state=COMMITTED))  # its process, had it lived
    assert store.read_transactions(state=INTERRUPTED) == [interrupted]


# --- retention -------------------------------------------------------------------------------


def tree(store: RunStore, *, lines: int = 2, **columns: Any) -> list[RunRow]:
    """An outermost flow run with a nested one and tasks, each with log lines."""
    root = run_row(**{**TOTALS, **columns})
    stand_in = run_row(kind=STAND_IN, parent_id=root.id, flow_run_id=root.id)
    nested = run_row(kind=FLOW, parent_id=stand_in.id, flow_run_id=root.id)
    task = run_row(parent_id=nested.id, flow_run_id=nested.id)
    for number in range(lines):
        store.put_log(LogRow(root.id, None, START + number, 20, "x", "of the root"))
        store.put_log(LogRow(nested.id, task.id, START + number, 20, "x", "of the task"))
    record(store, root, stand_in, nested, task)
    return [root, stand_in, nested, task]


def test_deleting_takes_a_whole_tree_and_its_logs(store: RunStore) -> None:
    doomed, kept, second = tree(store), tree(store), tree(store)
    alone = run_row()
    store.put_log(LogRow(None, alone.id, START, 20, "x", "outside of any flow"))
    record(store, alone)
    ids = [doomed[0].id, second[0].id, alone.id]
    assert store.delete_runs([*ids, doomed[0].id, new_id()]) == ids
    assert store.read_runs(RunQuery(kinds=ALL)) == kept[::-1]
    for row in (*doomed, *second, alone):
        assert store.read_logs(LogQuery(run_id=row.id)) == []
    assert len(store.read_logs(LogQuery(run_id=kept[0].id))) == 2
    assert len(store.read_logs(LogQuery(run_id=kept[3].id))) == 2
    assert store.delete_runs(ids) == []
    assert store.delete_runs([]) == []


def test_what_goes_on_and_what_is_a_part_of_another_is_not_deleted(store: RunStore) -> None:
    open_root = tree(store, state=RUNNING, seq=2, ended=None)
    waiting = tree(store, state=PAUSED, ended=None)
    ended = tree(store)
    deaf = running(parent_id=ended[3].id, owner=store.owner)  # it did not stop when the rest did
    record(store, deaf)
    assert store.delete_runs([open_root[0].id, waiting[0].id, ended[0].id, *(row.id for row in ended[1:])]) == []
    assert store.read_tree(ended[0].id) == [*ended, deaf]
    record(store, deaf._replace(state=COMPLETED, seq=3, ended=LATER))
    assert store.delete_runs([ended[0].id]) == [ended[0].id]


@pytest.mark.parametrize("name", ["Interrupted", "Suspended"])
def test_what_waits_to_be_resumed_can_be_deleted_and_is_when_it_has_waited_for_long(store: RunStore, name: str) -> None:
    waiting = tree(store, state=PAUSED, state_name=name, ended=None)[0]
    since = history_of(waiting)[-1][3]
    assert store.read_oldest(10) == []  # not to make room
    assert store.read_oldest(10, before=since) == []
    assert store.read_oldest(10, before=since + 1) == [waiting.id]
    assert store.delete_runs([waiting.id]) == [waiting.id]
    assert store.read_tree(waiting.id) == []


def test_more_than_a_statement_takes_can_be_deleted_at_once(store: RunStore) -> None:
    rows = [run_row() for _ in range(3000)]
    record(store, *rows)
    assert store.delete_runs([row.id for row in rows]) == [row.id for row in rows]
    assert store.count_outermost() == 0


def test_the_oldest_that_have_ended(store: RunStore) -> None:
    first, second, third = (tree(store, created=START + number, ended=START + 20 + number)[0] for number in range(3))
    record(store, running(owner=store.owner), late := run_row(created=LATER, ended=LATER + 1))
    assert store.read_oldest(10) == [first.id, second.id, third.id, late.id]
    assert store.read_oldest(2) == [first.id, second.id]
    assert store.read_oldest(10, before=START + 22) == [first.id, second.id]
    assert store.count_outermost() == 5


def test_size_tells_what_was_deleted(store: RunStore) -> None:
    before = store.size()
    rows = [run_row(message="x" * 1000) for _ in range(2000)]
    record(store, *rows)
    full = store.size()
    assert full - before > 2_000_000
    store.delete_runs([row.id for row in rows])
    assert store.size() < before + 200_000
    calls = 1
    left = store.give_back()
    while left:
        left, former = store.give_back(), left
        assert left < former
        calls += 1
    assert calls < 50


def test_what_is_done_by_many_threads_is_done_whole(store: RunStore) -> None:
    """Jobs among records: each thread sees its own."""
    problems: list[object] = []

    def work(number: int) -> None:
        for each in range(20):
            row = run_row(owner=store.owner)
            key = f"{number}/{each}"
            store.put(LiveRun(row))
            store.write_cached(cached(key))
            if store.read_cached(key) is None:
                problems.append(key)
            if store.delete_runs([row.id]) != [row.id] or store.read_run(row.id) is not None:
                problems.append(row)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert store.count_outermost() == 0
