"""The journal's contract: what happened is told once, in the order of the commits, for as long as it is kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from asyncflow._journal import Change as Told
from asyncflow._journal import Cursor, EventRow, cursor_text, decoded, encoded, parse_cursor
from asyncflow._rows import FLOW, STATE_CODES, ItemRow, RunRow, json_of, state_at
from asyncflow.abc import RunStore
from asyncflow.exceptions import EventsGoneError
from asyncflow.ids import new_id
from asyncflow.states import StateType
from tests.contracts.recordables import START, LiveRun, record, run_row, settle

PENDING, RUNNING, COMPLETED, SCHEDULED = (
    STATE_CODES[each]
    for each in (
        StateType.PENDING, StateType.RUNNING, StateType.COMPLETED, StateType.SCHEDULED,
    )
)  # fmt: skip


def new_run(**columns: Any) -> RunRow:
    """A run that is Pending."""
    return run_row(state=PENDING, started=None, ended=None, result=None, seq=1, **columns)


def running(row: RunRow, at: int) -> RunRow:
    return row._replace(state=RUNNING, started=at, seq=row.seq + 1)


def completed(row: RunRow, at: int) -> RunRow:
    return row._replace(state=COMPLETED, ended=at, seq=row.seq + 1)


def emitted(name: str, at: int = START, **columns: Any) -> EventRow:
    return EventRow(at, name, **columns)


def all_of(store: RunStore, after: Cursor | None = None, limit: int = 100_000) -> list[EventRow]:
    return store.read_journal(after, limit)


def told(events: list[EventRow]) -> list[tuple[bytes | None, str | None]]:
    """Which run came to which state; for an emitted event its name."""
    return [
        (event.run.id, state_at(event.run, event.sequence, event.entry).name) if event.run else (None, event.name)
        for event in events
    ]


def put(store: RunStore, run: LiveRun, *rows: RunRow) -> None:
    """Have a live run go through states, each in a commit of its own."""
    for row in rows:
        run.current = [row]
        store.put(run)
        settle(store)


def test_each_state_is_told_once_when_it_was_committed(store: RunStore) -> None:
    assert all_of(store) == []
    row = new_run()
    run = LiveRun(row)
    put(store, run, row)
    put(store, run, running(row, START + 5))
    first = all_of(store)
    assert told(first) == [(row.id, "Pending"), (row.id, "Running")]
    put(store, run, completed(running(row, START + 5), START + 9))
    events = all_of(store)
    assert told(events) == [(row.id, "Pending"), (row.id, "Running"), (row.id, "Completed")]
    assert [event.cursor for event in events[:2]] == [event.cursor for event in first]
    assert [event.at for event in events] == [START, START + 5, START + 9]
    assert all(earlier.cursor < later.cursor for earlier, later in pairwise(events))


def test_a_row_says_what_the_run_is_without_what_may_be_large(store: RunStore) -> None:
    row = run_row(name="n", parameters='{"x":1}', tags='["a"]', error='{"type":"E"}', details='{"version":"1"}')
    record(store, row)
    for event in all_of(store):
        assert event.run == row._replace(tags=None, parameters=None, result=None, error=None)


def test_states_that_one_commit_brings_are_all_told(store: RunStore) -> None:
    states: list[list[Any]] = [[SCHEDULED, "Late", None, START + n, None] for n in range(700)]
    history = [*states, [COMPLETED, None, None, START + 900, None]]
    row = run_row(seq=len(history), history=json_of(history), ended=START + 900)
    record(store, row)
    events = all_of(store)
    assert [event.entry[3] for event in events] == [entry[3] for entry in history]
    later = row._replace(seq=702, history=json_of([*history, [PENDING, "Resuming", None, START + 950, None]]))
    put(store, LiveRun(row, journalled=701), later)
    assert told(all_of(store, events[-1].cursor)) == [(row.id, "Resuming")]


def test_a_flow_ends_after_its_tasks_also_where_the_clock_stands_still(store: RunStore) -> None:
    flow = run_row(kind=FLOW, started=START, ended=START)
    task = run_row(parent_id=flow.id, flow_run_id=flow.id, started=START, ended=START)
    live = LiveRun(flow)
    live.current = [running(new_run(kind=FLOW, id=flow.id), START)]
    store.put(live)
    store.put(LiveRun(task, root_id=flow.id))
    store.put_event(emitted("order.placed", flow_run_id=flow.id))
    live.current = [flow]
    store.put(live)
    settle(store)
    order = told(all_of(store))
    assert len(order) == 7
    assert order[-1] == (flow.id, "Completed")
    assert order.index((None, "order.placed")) > order.index((flow.id, "Running"))


def test_what_a_cursor_and_a_limit_give(store: RunStore) -> None:
    rng = random.Random(7)
    live: list[tuple[LiveRun, RunRow]] = []
    for number in range(300):
        if live and rng.random() < 0.6:
            run, row = live.pop(rng.randrange(len(live)))
            row = running(row, START + number) if row.state == PENDING else completed(row, START + number)
            if row.state == RUNNING:
                live.append((run, row))
        else:
            row = new_run(created=START + number)
            run = LiveRun(row)
            live.append((run, row))
        run.current = [row]
        store.put(run)
        if rng.random() < 0.2:
            store.put_event(emitted(f"e{number}", START + number))
        if rng.random() < 0.3:
            settle(store)
    settle(store)
    events = all_of(store)
    for run_id in {event.run.id for event in events if event.run}:
        sequences = [event.sequence for event in events if event.run and event.run.id == run_id]
        assert sequences == list(range(len(sequences)))
    names = [event.name for event in events if event.name]
    assert names == sorted(names, key=lambda name: int(name[1:]))
    assert [event.cursor for event in events] == sorted({event.cursor for event in events})
    for limit in (1, 3, 1000):
        pages: list[EventRow] = []
        while page := store.read_journal(pages[-1].cursor if pages else None, limit):
            assert len(page) <= limit
            pages += page
        assert pages == events
    assert store.read_journal(None, 0) == []


def test_the_newest_cursor_is_after_all_that_was_and_before_all_that_comes(store: RunStore) -> None:
    start = store.newest_cursor()
    assert all_of(store, start) == []
    record(store, run_row())
    assert len(all_of(store, start)) == 3
    now = store.newest_cursor()
    assert all_of(store, now) == []
    store.put_event(emitted("later"))
    settle(store)
    assert told(all_of(store, now)) == [(None, "later")]


def test_what_is_not_recorded_is_not_told(store: RunStore) -> None:
    final = run_row()
    record(store, final)
    events = all_of(store)
    record(store, final, final._replace(state=RUNNING, seq=2), final._replace(message="same again"))
    # Put twice in one turn, once with news: that is told, and once.
    again = LiveRun(final._replace(seq=4, state=PENDING, ended=None), journalled=3)
    store.put(again)
    store.put(LiveRun(final))
    settle(store)
    assert told(all_of(store, events[-1].cursor)) == [(final.id, "Pending")]


def test_what_a_former_owner_writes_is_not_told(store: RunStore) -> None:
    row = running(new_run(kind=FLOW, owner=store.owner), START)
    run, other = LiveRun(row), LiveRun(new_run(owner=store.owner))
    put(store, run, row)
    paused = completed(row, START + 1)
    put(store, run, paused)
    taken = store.claim(row.id, 3, START + 2)
    assert taken is not None
    seen = all_of(store)
    assert told(seen)[-1] == (row.id, "Pending" if not taken.state_name else taken.state_name)
    run.current = [paused._replace(owner=99, seq=9, message="of another owner")]
    store.put(run)
    store.put(other)
    settle(store)
    assert told(all_of(store, seen[-1].cursor)) == [(other.current[0].id, "Pending")]


def test_a_reaped_and_a_claimed_run_come_to_one_more_state(store: RunStore) -> None:
    flow = running(new_run(kind=FLOW, owner=77, details='{"resume":"auto"}'), START)
    task = running(new_run(parent_id=flow.id, flow_run_id=flow.id, owner=77), START)
    record(store, flow, task)
    before = all_of(store)[-1].cursor
    store.reap(START + 5)
    assert told(all_of(store, before)) == [(flow.id, "Interrupted"), (task.id, "Crashed")]
    waiting = store.read_run(flow.id)
    assert waiting is not None
    before = all_of(store)[-1].cursor
    assert store.claim(flow.id, waiting.seq, START + 6) is not None
    assert told(all_of(store, before)) == [(flow.id, "Resuming")]


def test_an_emitted_event_comes_back_as_it_was(store: RunStore) -> None:
    flow, task = new_id(), new_id()
    plain = emitted("order.placed")
    full = EventRow(START + 1, "order.paid", "order/7", '{"total":3}', flow, task)
    odd = emitted("half \ud83d pair", START + 2, resource="half \ud83d pair")
    for event in (plain, full, odd):
        store.put_event(event)
    settle(store)
    found = [event._replace(cursor=Cursor(0, 0, 0)) for event in all_of(store)]
    assert found == [plain, full, odd._replace(name="half \\ud83d pair", resource="half \\ud83d pair")]
    assert store.dropped_events == 0


def test_a_deleted_run_takes_its_events_and_items_with_it_and_the_others_keep_their_cursors(store: RunStore) -> None:
    gone, kept = run_row(kind=FLOW), run_row(kind=FLOW)
    task = run_row(parent_id=gone.id, flow_run_id=gone.id)
    for row in (gone, task, kept):
        store.put(LiveRun(row))
    for number, ids in enumerate([(gone.id, None), (kept.id, None), (gone.id, task.id), (None, None), (None, gone.id)]):
        store.put_event(emitted(f"e{number}", flow_run_id=ids[0], task_run_id=ids[1]))
        store.put_item(ItemRow(ids[0] or new_id(), number, "1"))
    settle(store)
    before = all_of(store)
    assert len(before) == 9 + 5
    assert store.delete_runs([gone.id]) == [gone.id]
    left = [
        event
        for event in before
        if not {gone.id, task.id} & {event.flow_run_id, event.task_run_id, event.run and event.run.id}
    ]
    assert len(left) == 3 + 2
    assert all_of(store) == left
    for event in before:  # a reader that has come so far, to what is gone or not, goes on with what is left
        assert all_of(store, event.cursor) == [each for each in left if each.cursor > event.cursor]
    assert store.read_items(gone.id, -1, 10) == []
    assert len(store.read_items(kept.id, -1, 10)) == 1


def test_the_oldest_part_is_forgotten_and_who_needs_it_is_told(store: RunStore) -> None:
    for number in range(5):
        store.put_event(emitted(f"e{number}", START + number * 10))
        settle(store)
    events = all_of(store)
    assert store.delete_journal(START - 1) == 0
    assert store.delete_journal(START + 20) == 2
    assert told(all_of(store)) == [(None, "e2"), (None, "e3"), (None, "e4")]
    with pytest.raises(EventsGoneError) as gone:
        all_of(store, events[0].cursor)
    assert (gone.value.after, gone.value.commits) == (cursor_text(events[0].cursor), 2)
    assert told(all_of(store, parse_cursor(gone.value.oldest))) == told(events[2:])
    assert all_of(store, events[2].cursor) == events[3:]
    at_the_end = store.newest_cursor()
    assert store.delete_journal(START + 1000) == 3
    assert all_of(store) == []
    assert all_of(store, at_the_end) == []
    assert store.newest_cursor() == at_the_end
    with pytest.raises(EventsGoneError):
        all_of(store, events[3].cursor)
    store.put_event(emitted("new", START + 9))
    settle(store)
    assert told(all_of(store, at_the_end)) == [(None, "new")]


def test_without_a_moment_what_no_run_that_is_kept_can_have_caused_is_forgotten(store: RunStore) -> None:
    store.put_event(emitted("before", START - 50))
    settle(store)
    row = run_row()
    record(store, row)
    assert store.delete_journal(None) == 1
    assert len(all_of(store)) == 3
    store.delete_runs([row.id])
    assert store.delete_journal(None) == 1
    assert store.delete_journal(None) == 0


def test_items_come_back_in_order_and_a_number_is_there_once(store: RunStore) -> None:
    run, other = new_id(), new_id()
    for n in (2, 0, 1, 3):
        store.put_item(ItemRow(run, n, str(n)))
    store.put_item(ItemRow(other, 0, "9"))
    store.put_item(ItemRow(run, 1, '"half \ud83d"'))
    settle(store)
    assert store.read_items(run, -1, 10) == [
        ItemRow(run, 0, "0"), ItemRow(run, 1, '"half \\ud83d"'), ItemRow(run, 2, "2"), ItemRow(run, 3, "3")
    ]  # fmt: skip
    assert [item.n for item in store.read_items(run, 0, 2)] == [1, 2]
    assert store.read_items(run, 3, 10) == []
    assert store.read_items(new_id(), -1, 10) == []


def test_who_watches_is_woken_after_each_commit_until_that_is_ended(store: RunStore) -> None:
    seen: list[int] = []

    def wake() -> None:
        seen.append(len(all_of(store)))

    end = store.watch(wake)
    second_end = store.watch(wake)
    record(store, run_row())
    assert seen[-1] == 3
    second_end()
    store.put_event(emitted("e"))
    settle(store)
    assert seen[-1] == 4
    store.put_item(ItemRow(new_id(), 0, "1"))
    settle(store)
    number = len(seen)
    end()
    end()
    record(store, run_row())
    assert len(seen) == number


def test_who_watches_and_fails_keeps_nobody_from_disk(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    def wake() -> None:
        raise ValueError("no loop any more")

    store.watch(wake)
    record(store, run_row())
    assert len(all_of(store)) == 3
    assert "no loop any more" in caplog.text


@pytest.mark.parametrize("numbers", [(0, 1), (3, 254), (0, 255), (254, 255), (255, 256), (70_000, 70_001)])
def test_a_change_is_told_in_a_few_bytes(numbers: tuple[int, int]) -> None:
    changes = [Told(new_id(), 0, 3), Told(new_id(), *numbers), Told(new_id(), 2, 3)]
    column = encoded(changes)
    assert decoded(column) == changes
    assert len(column) <= 18 * 2 + 25


@pytest.mark.parametrize("text", ["", "1-2", "1-2-3-4", "a-b-c", "-1-2-3", "1-2-\u0663", "1-2-3\n"])
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        parse_cursor(text)


def test_a_cursor_survives_as_text(open_store: Callable[[], RunStore]) -> None:
    for store in (open_store(), open_store()):
        record(store, run_row())
        cursor = all_of(store)[1].cursor
        assert parse_cursor(cursor_text(cursor)) == cursor
