"""The contract of `RunStore`, held by every store."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncflow._journal import EventRow
from asyncflow._rows import (
    FLOW,
    STAND_IN,
    STATE_CODES,
    STATE_TYPES,
    TASK,
    CachedRow,
    ItemRow,
    LogRow,
    RunRow,
    TransactionRow,
)
from asyncflow.abc import LogQuery, RunQuery, RunStore, Ticket
from asyncflow.exceptions import RuntimeClosedError
from asyncflow.ids import new_id
from asyncflow.states import StateType
from tests.contracts.recordables import START, LiveRun, Waiter, record, run_row, settle

ALL = frozenset({FLOW, TASK, STAND_IN})
COMPLETED, FAILED, RUNNING = (
    STATE_CODES[type_] for type_ in (StateType.COMPLETED, StateType.FAILED, StateType.RUNNING)
)


# --- writing ---------------------------------------------------------------------------------


def test_every_column_comes_back(store: RunStore) -> None:
    row = RunRow(
        id=new_id(), kind=FLOW, parent_id=new_id(), flow_run_id=new_id(), function="f", key="k", name="n",
        state=FAILED, state_name="TimedOut", message="m", created=START, started=START + 1, ended=START + 2,
        run_count=2, seq=5, tags='["a"]', parameters='{"x":1}', result='"r"', result_file=None, error='{"type":"E"}',
        history="[[1,null,null,1]]", details='{"version":"1"}',
        digest=bytes(range(16)), owner=3,
    )  # fmt: skip
    empty = RunRow._make(None for _ in RunRow._fields)._replace(id=new_id(), kind=TASK, created=START, seq=1, owner=0)
    record(store, row, empty)
    assert store.read_run(row.id) == row
    assert store.read_run(empty.id) == empty
    assert store.read_run(new_id()) is None


def test_an_older_state_never_replaces_a_newer_one(store: RunStore) -> None:
    final = run_row(seq=3)
    record(store, final, final._replace(state=RUNNING, seq=2), final._replace(message="same again"))
    assert store.read_run(final.id) == final
    reopened = final._replace(state=RUNNING, seq=4)
    record(store, reopened)
    assert store.read_run(final.id) == reopened


def test_a_run_is_recorded_as_it_is_when_it_is_taken_out_of_the_queue(store: RunStore) -> None:
    run = LiveRun(run_row(state=RUNNING, seq=2))
    (row,) = run.current
    store.put(run)
    run.current = [row._replace(state=COMPLETED, seq=3)]
    store.put(run)
    settle(store)
    assert not run.queued
    assert store.read_run(row.id) == run.current[0]


def test_a_change_made_while_the_rows_are_read_is_recorded_too(store: RunStore) -> None:
    class Moving(LiveRun):
        """Moves on, and is put again, at the very moment the store has read its rows."""

        def rows(self) -> Sequence[RunRow]:
            read, self.current = self.current, [newest]
            if read != self.current:
                store.put(self)
            return read

    first = run_row(state=RUNNING, seq=2)
    newest = first._replace(state=COMPLETED, seq=3)
    store.put(Moving(first))
    settle(store)  # the ticket may come before the second put ...
    settle(store)  # ... but not this one
    assert store.read_run(first.id) == newest


def test_a_run_may_have_two_rows(store: RunStore) -> None:
    stand_in = run_row(kind=STAND_IN)
    flow = run_row(kind=FLOW, parent_id=stand_in.id)
    store.put(LiveRun(flow, stand_in))
    settle(store)
    assert store.read_tree(stand_in.id) == [stand_in, flow]


def test_a_newer_state_replaces_every_column(store: RunStore) -> None:
    told = run_row(seq=2, message="why", state_name="Odd", tags='["a"]', history="[]", details="{}", error="{}")
    plain = told._replace(seq=3, message=None, state_name=None, tags=None, history=None, details=None, error=None)
    record(store, told, plain)
    assert store.read_run(told.id) == plain
    record(store, richer := told._replace(seq=4))
    assert store.read_run(told.id) == richer


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=40), data=st.data())
def test_any_order_of_writes_leaves_the_newest_of_each_run(
    store: RunStore, writes: list[tuple[int, int]], data: st.DataObject
) -> None:
    ids = [new_id() for _ in range(5)]
    newest: dict[bytes, RunRow] = {}
    for number, (which, seq) in enumerate(writes):
        row = run_row(id=ids[which], seq=seq, message=f"write {number}")
        if row.id not in newest or seq > newest[row.id].seq:
            newest[row.id] = row
        store.put(LiveRun(row))
        if data.draw(st.booleans()):
            settle(store)
    settle(store)
    assert {each: store.read_run(each) for each in ids} == {each: newest.get(each) for each in ids}


def test_no_change_is_lost_between_threads(store: RunStore) -> None:
    """Each run is changed and put again and again while the store takes it out and reads it."""
    runs = [LiveRun(run_row(seq=1, state=RUNNING)) for _ in range(20)]

    def change(run: LiveRun) -> None:
        (row,) = run.current
        for seq in range(2, 200):
            run.current = [row._replace(seq=seq)]
            store.put(run)

    threads = [threading.Thread(target=change, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(store)
    recorded = [store.read_run(run.root_id) for run in runs]
    assert [row.seq for row in recorded if row is not None] == [199] * 20


def test_what_a_column_cannot_hold_does_not_keep_others_from_being_recorded(store: RunStore) -> None:
    before, odd, after = (
        run_row(),
        run_row(function="half \ud83d pair", run_count=2**70, message="nul \0 inside"),
        run_row(),
    )
    record(store, before, odd, after)
    recorded = store.read_run(odd.id)
    assert recorded is not None
    assert (recorded.function, recorded.run_count) == ("half \\ud83d pair", 2**63 - 1)
    assert recorded.message == "nul \0 inside"
    assert [store.read_run(row.id) for row in (before, after)] == [before, after]


def test_large_batches_are_recorded_whole(store: RunStore) -> None:
    rows = [run_row() for _ in range(3001)]
    record(store, *rows)
    assert store.read_runs(RunQuery(kinds=ALL, limit=4000)) == rows[::-1]
    assert store.backlog == 0


# --- tickets ---------------------------------------------------------------------------------


def test_what_was_put_before_a_ticket_can_be_read_when_it_is_done(store: RunStore) -> None:
    for _ in range(50):
        row, waiter = run_row(), Waiter()
        store.put(LiveRun(row))
        ticket = waiter.ticket()
        store.confirm(ticket)
        assert waiter.wait() == [ticket]
        assert ticket.done
        assert ticket.error is None
        assert store.read_run(row.id) == row


def test_a_ticket_for_nothing_is_resolved(store: RunStore) -> None:
    settle(store)


def test_tickets_are_resolved_in_order_and_each_wake_gets_its_own(store: RunStore) -> None:
    waiters = [Waiter() for _ in range(3)]
    given_to: list[list[Ticket]] = [[], [], []]
    for number in range(3000):
        if number % 10 == 0:
            store.put(LiveRun(run_row()))
        which = number % 3
        given_to[which].append(waiters[which].ticket())
        store.confirm(given_to[which][-1])
    assert [waiter.wait() for waiter in waiters] == given_to


# --- reading ---------------------------------------------------------------------------------


def forest() -> list[RunRow]:
    """Two flows, one with a nested flow; tasks under flows, under a task, and outside of any."""
    first = run_row(kind=FLOW, function="main", name="calm-otter", tags='["nightly","eu"]', created=START)
    stand_in = run_row(kind=STAND_IN, function="sub", parent_id=first.id, flow_run_id=first.id, created=START + 10)
    nested = run_row(kind=FLOW, function="sub", parent_id=stand_in.id, flow_run_id=first.id, created=START + 11)
    deep = run_row(parent_id=nested.id, flow_run_id=nested.id, state=FAILED, created=START + 20)
    task = run_row(parent_id=first.id, flow_run_id=first.id, state=RUNNING, ended=None, created=START + 30)
    helper = run_row(
        parent_id=task.id, flow_run_id=first.id, function="help", name="h1", tags='["eu"]', created=START + 31
    )
    second = run_row(kind=FLOW, function="main", name="bold-heron", tags='["eu"]', state=FAILED, created=START + 40)
    alone = run_row(function="help", created=START + 50)
    return [first, stand_in, nested, deep, task, helper, second, alone]


def test_a_tree_is_the_run_and_all_below_it_in_the_order_they_were_created(store: RunStore) -> None:
    rows = forest()
    first, stand_in, nested, deep, task, helper, second, alone = rows
    record(store, *rows[::-1])
    assert store.read_tree(first.id) == [first, stand_in, nested, deep, task, helper]
    assert store.read_tree(stand_in.id) == [stand_in, nested, deep]
    assert store.read_tree(alone.id) == [alone]
    assert store.read_tree(second.id) == [second]
    assert store.read_tree(new_id()) == []


def test_a_row_that_is_its_own_ancestor_does_not_make_a_tree_endless(store: RunStore) -> None:
    one = run_row()
    other = run_row(parent_id=one.id)
    record(store, one._replace(parent_id=other.id), other)
    assert {row.id for row in store.read_tree(one.id)} == {one.id, other.id}


def test_a_chain_of_ten_thousand_runs_can_be_read(store: RunStore) -> None:
    rows = [run_row()]
    for _ in range(9_999):
        rows.append(run_row(parent_id=rows[-1].id))
    record(store, *rows)
    assert store.read_tree(rows[0].id) == rows


def matches(row: RunRow, query: dict[str, Any]) -> bool:
    """The query's meaning, told once more and differently: each condition by itself."""
    checks: dict[str, Callable[[Any], bool]] = {
        "kinds": lambda wanted: row.kind in wanted,
        "states": lambda wanted: STATE_TYPES[row.state] in wanted,
        "name": lambda wanted: row.name == wanted,
        "function": lambda wanted: row.function == wanted,
        "tags": lambda wanted: all(tag in json.loads(row.tags or "[]") for tag in wanted),
        "flow_run_id": lambda wanted: row.flow_run_id == wanted,
        "parent_id": lambda wanted: row.parent_id == wanted,
        "since": lambda wanted: wanted <= row.created,
        "until": lambda wanted: wanted > row.created,
    }
    return all(checks[name](wanted) for name, wanted in query.items())


def test_every_filter_and_every_pair_of_filters(store: RunStore) -> None:
    rows = forest()
    record(store, *rows)
    first, _, nested, *_ = rows
    conditions: list[dict[str, Any]] = [
        {"states": frozenset({StateType.COMPLETED})},
        {"states": frozenset({StateType.RUNNING, StateType.PENDING})},
        {"states": frozenset({StateType.RUNNING, StateType.FAILED})},
        {"states": frozenset()},
        {"name": "calm-otter"},
        {"function": "main"},
        {"function": "help"},
        {"tags": frozenset({"eu"})},
        {"tags": frozenset({"eu", "nightly"})},
        {"tags": frozenset()},
        {"flow_run_id": first.id},
        {"flow_run_id": nested.id},
        {"parent_id": first.id},
        {"since": START + 30},
        {"until": START + 30},
    ]
    kinds = [frozenset({FLOW}), frozenset({TASK, STAND_IN}), ALL, frozenset[int]()]
    found = 0
    for kind, one, other in itertools.product(kinds, [{}, *conditions], conditions):
        query = {"kinds": kind, **one, **other}
        expected = [row for row in reversed(rows) if matches(row, query)]
        assert store.read_runs(RunQuery(**query)) == expected, query
        assert store.read_runs(RunQuery(**query, limit=1, offset=1)) == expected[1:2], query
        found += len(expected)
    assert found > 500  # the rows above give every condition something to find


def test_pages_make_up_the_whole(store: RunStore) -> None:
    rows = [run_row(kind=FLOW) for _ in range(25)]
    record(store, *rows)
    pages = [store.read_runs(RunQuery(kinds=ALL, limit=10, offset=offset)) for offset in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert list(itertools.chain(*pages)) == rows[::-1]
    assert len(store.read_runs(RunQuery(kinds=ALL))) == 25


# --- logs ------------------------------------------------------------------------------------


def log_line(number: int, **columns: Any) -> LogRow:
    return LogRow(None, None, START + number, 20, "asyncflow.run", f"line {number}")._replace(**columns)


def lines_of(store: RunStore, query: LogQuery) -> list[LogRow]:
    """Lines without the ids that the store gave them."""
    lines = store.read_logs(query)
    assert all(len(line.id) == 16 for line in lines)
    return [line._replace(id=b"") for line in lines]


def test_log_lines_are_read_oldest_first_by_flow_run_and_by_task_run(store: RunStore) -> None:
    flow, task = new_id(), new_id()
    own = log_line(1, flow_run_id=flow)
    of_task = log_line(2, flow_run_id=flow, task_run_id=task, level=30)
    late = log_line(4, flow_run_id=flow, task_run_id=task)
    same_time = late._replace(message="and another")
    for line in (late, same_time, of_task, own, log_line(3, flow_run_id=new_id())):
        store.put_log(line)
    settle(store)
    assert lines_of(store, LogQuery(run_id=flow)) == [own, of_task, late, same_time]
    assert lines_of(store, LogQuery(run_id=task)) == [of_task, late, same_time]
    assert lines_of(store, LogQuery(run_id=flow, level=30)) == [of_task]
    assert lines_of(store, LogQuery(run_id=flow, after=START + 2)) == [late, same_time]
    assert lines_of(store, LogQuery(run_id=flow, limit=2)) == [own, of_task]
    assert lines_of(store, LogQuery(run_id=new_id())) == []


def test_log_lines_are_followed_by_their_ids_in_the_order_they_were_put(store: RunStore) -> None:
    flow, task = new_id(), new_id()
    first, later = log_line(9, flow_run_id=flow), log_line(5, flow_run_id=flow, task_run_id=task)
    for line in (first, log_line(1, flow_run_id=new_id()), later):
        store.put_log(line)
    settle(store)
    assert lines_of(store, LogQuery(run_id=flow, after_id=b"")) == [first, later]
    page = store.read_logs(LogQuery(run_id=flow, after_id=b"", limit=1))
    assert [line._replace(id=b"") for line in page] == [first]
    newest = log_line(2, flow_run_id=flow, extra='{"order":7}')
    store.put_log(newest)
    settle(store)
    assert lines_of(store, LogQuery(run_id=flow, after_id=page[0].id)) == [later, newest]
    assert lines_of(store, LogQuery(run_id=task, after_id=page[0].id)) == [later]
    last = store.read_logs(LogQuery(run_id=flow, after_id=b""))[-1]
    assert lines_of(store, LogQuery(run_id=flow, after_id=last.id)) == []


def test_a_log_line_that_is_not_text_is_kept_escaped(store: RunStore) -> None:
    flow = new_id()
    store.put_log(log_line(1, flow_run_id=flow, message="half \udc00 pair"))
    store.put_log(log_line(2, flow_run_id=flow))
    settle(store)
    assert [line.message for line in store.read_logs(LogQuery(run_id=flow))] == ["half \\udc00 pair", "line 2"]


# --- the end ---------------------------------------------------------------------------------


def test_a_closed_store_refuses_everything_and_can_be_closed_again(store: RunStore) -> None:
    store.close()
    store.close()
    uses: list[Callable[[], object]] = [
        lambda: store.put(LiveRun(run_row())),
        lambda: store.put_log(log_line(1)),
        lambda: store.put_event(EventRow(START, "order.placed")),
        lambda: store.put_item(ItemRow(new_id(), 0, "1")),
        lambda: store.read_journal(None, 1),
        lambda: store.newest_cursor(),
        lambda: store.cursor_since(START),
        lambda: store.read_items(new_id(), -1, 1),
        lambda: store.delete_journal(None),
        lambda: store.confirm(Waiter().ticket()),
        lambda: store.read_run(new_id()),
        lambda: store.read_runs(RunQuery(kinds=ALL)),
        lambda: store.read_tree(new_id()),
        lambda: store.read_logs(LogQuery(run_id=new_id())),
        lambda: store.read_children(new_id()),
        lambda: store.reap(START),
        lambda: store.read_interrupted(),
        lambda: store.claim(new_id(), 1, START),
        lambda: store.read_cached("k"),
        lambda: store.write_cached(CachedRow("k", "t", new_id(), START, None, "1", None)),
        lambda: store.delete_cached(START),
        lambda: store.write_transaction(TransactionRow(new_id(), None, None, 0, START, None, 1, None, None)),
        lambda: store.read_transactions(),
        lambda: store.size(),
        lambda: store.count_outermost(),
        lambda: store.read_oldest(5),
        lambda: store.delete_runs([new_id()]),
        lambda: store.give_back(),
    ]
    for use in uses:
        with pytest.raises(RuntimeClosedError):
            use()
