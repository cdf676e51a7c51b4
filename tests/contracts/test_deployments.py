"""The contract of `DeploymentStore`: rules that fire once, and runs that one process begins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncflow._deployment_rows import CANCEL_NEW, NOBODY, TRIGGER, DeploymentRow, Fired
from asyncflow._rows import FLOW, STATE_CODES, TASK, RunRow, state_of, states_of
from asyncflow.abc import Reaped, RunQuery, RunStore
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores._orphans import MOST_DEATHS
from asyncflow.stores.memory import MemoryStore
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import (
    SCHEDULED,
    START,
    LiveRun,
    deployment_row,
    go_on,
    record,
    rule_row,
    run_row,
    waiting_row,
)

PENDING, RUNNING, CANCELLED = (
    STATE_CODES[each] for each in (StateType.PENDING, StateType.RUNNING, StateType.CANCELLED)
)
NOW = START + 60_000_000
SECOND = 1_000_000


def write(store: RunStore, *rows: DeploymentRow) -> list[bytes]:
    """Make deployments without rules; gives their ids."""
    return [store.write_deployment(row, []).id for row in rows]


def found(store: RunStore, run_id: bytes) -> RunRow:
    row = store.read_run(run_id)
    assert row is not None
    return row


def told(store: RunStore, run_id: bytes) -> list[tuple[str, int]]:
    """The states of a run that the journal tells, with their numbers."""
    events = store.read_journal(None, 10_000)
    return [
        (states_of(event.run)[event.sequence].name, event.sequence)
        for event in events
        if event.run is not None and event.run.id == run_id
    ]


# --- what is served --------------------------------------------------------------------------


def test_deployments_are_read_by_flow_and_name(store: RunStore) -> None:
    rows = [deployment_row("b"), deployment_row("a"), deployment_row("c", flow="other", paused=1, concurrency_limit=3)]
    write(store, *rows)
    assert store.read_deployments() == [rows[2], rows[1], rows[0]]
    assert store.read_deployments(flow="totals") == [rows[1], rows[0]]
    assert store.read_deployments(flow="totals", name="b") == [rows[0]]
    assert store.read_deployments(ids=[rows[2].id, new_id()]) == [rows[2]]
    assert store.read_deployments(ids=[rows[2].id], name="b") == store.read_deployments(ids=[]) == []


def test_a_deployment_that_is_written_again_keeps_its_beginning_and_its_pause(store: RunStore) -> None:
    row = deployment_row()
    write(store, row)
    assert store.pause_deployment(row.id, True, {})
    newer = row._replace(data='{"tags":["x"]}', concurrency_limit=2, created=NOW, updated=NOW)
    kept = newer._replace(created=START, paused=1)
    assert store.write_deployment(newer, []) == kept
    assert store.read_deployments() == [kept]
    assert store.write_deployment(newer, [], keep_paused=False) == kept._replace(paused=0)
    assert not store.pause_deployment(new_id(), True, {})


def test_a_rule_that_stays_the_same_keeps_what_was_decided(store: RunStore) -> None:
    row = deployment_row()
    same, changed, gone = (rule_row(row, slug) for slug in ("same", "changed", "gone"))
    store.write_deployment(row, [same, changed, gone])
    for rule in (same, changed):
        assert store.fire(rule.id, "0", "7", []) == Fired(done=True, runs=[])
    new = rule_row(row, "new", kind=TRIGGER)
    store.write_deployment(row, [same._replace(state="1", active=0), changed._replace(data="{}", state="1"), new])
    rules = store.read_rules([row.id])
    assert rules == [changed._replace(data="{}", state="1"), same._replace(state="7"), new]
    other = rule_row(deployment_row("other"))
    store.write_deployment(deployment_row("other"), [other])
    assert store.read_rules([row.id]) == rules
    both = sorted([*rules, other], key=lambda rule: (rule.deployment_id, rule.kind, rule.slug))
    assert store.read_rules([other.deployment_id, row.id]) == both
    assert store.read_rules([]) == []


def test_a_deleted_deployment_takes_its_rules_and_what_waits_for_it(store: RunStore) -> None:
    row = deployment_row()
    store.write_deployment(row, [rule_row(row)])
    waiting, begun = waiting_row(row, START + 1), waiting_row(row)
    store.enqueue([waiting, begun])
    (claimed,) = store.claim_due([row.id], NOW, 1)
    assert store.delete_deployment(row.id, NOW)
    assert not store.delete_deployment(row.id, NOW)
    assert store.read_deployments() == []
    assert store.read_rules([row.id]) == []
    assert found(store, begun.id) == claimed
    ended = found(store, waiting.id)
    assert (ended.state, ended.message, ended.ended) == (CANCELLED, "its deployment was deleted", NOW)
    assert told(store, waiting.id) == [("Scheduled", 0), ("Cancelled", 1)]
    assert store.claim_due([row.id], NOW, 9) == []


def test_what_comes_for_a_deployment_that_is_gone_has_the_end_it_would_have_had(store: RunStore) -> None:
    row = waiting_row(deployment_row())
    (made,) = store.enqueue([row])
    assert (made.state, made.message, made.seq) == (CANCELLED, "its deployment was deleted", 2)
    assert found(store, row.id) == made
    assert told(store, row.id) == [("Scheduled", 0), ("Cancelled", 1)]


# --- runs that wait --------------------------------------------------------------------------


def test_runs_wait_until_they_are_due_and_are_claimed_first_in_first_out(store: RunStore) -> None:
    ids = write(store, deployment_row("a"), deployment_row("b"))
    a, b = (store.read_deployments(ids=[each])[0] for each in ids)
    rows = [waiting_row(a, START + 3), waiting_row(b, START + 2), waiting_row(a, START + 2), waiting_row(a, NOW + 1)]
    assert store.enqueue(rows) == rows
    assert [found(store, row.id) for row in rows] == rows
    assert store.next_due(ids) == START + 2
    assert store.next_due(ids, START + 2) == START + 3
    assert store.next_due([b.id], START + 2) is None
    assert store.claim_due(ids, START + 1, 9) == store.claim_due([], NOW, 9) == store.claim_due(ids, NOW, 0) == []
    claimed = store.claim_due(ids, NOW, 2)
    assert [row.id for row in claimed] == [rows[1].id, rows[2].id]  # due at once: in the order they were made
    assert [row.id for row in store.claim_due(ids, NOW, 9)] == [rows[0].id]
    assert store.next_due(ids) == NOW + 1
    for row in claimed:
        assert row == found(store, row.id)
        assert (row.state, row.state_name, row.owner, row.seq, row.run_count) == (PENDING, None, store.owner, 2, 0)
        assert told(store, row.id) == [("Scheduled", 0), ("Pending", 1)]
        assert [state.state_details.scheduled_time is None for state in states_of(row)] == [False, True]


def test_what_the_run_writes_changes_nothing_of_where_it_came_from(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row())
    row = waiting_row(deployment_row(), START + 5, "order-7")
    store.enqueue([row])
    store.claim_due([deployment_id], NOW, 1)
    for state in (StateType.RUNNING, StateType.COMPLETED):
        store.put(LiveRun(found(store, row.id)._replace(deployment_id=None, scheduled=None, idempotency_key=None)))
        go_on(store, row.id, state, NOW)
        assert found(store, row.id)[-3:] == (deployment_id, START + 5, "order-7")
    plain = run_row(deployment_id=deployment_id, scheduled=START, idempotency_key="x")
    record(store, plain)
    assert found(store, plain.id) == plain._replace(deployment_id=None, scheduled=None, idempotency_key=None)


def test_runs_are_read_by_their_deployment(store: RunStore) -> None:
    write(store, deployment_row("a"), deployment_row("b"))
    rows = [waiting_row(deployment_row("a"), START + n) for n in (5, 3, 4)]
    store.enqueue([*rows, waiting_row(deployment_row("b"))])
    record(store, run_row(kind=FLOW))
    kinds = frozenset({FLOW, TASK})
    assert store.read_runs(RunQuery(kinds=kinds, deployment_id=rows[0].deployment_id)) == rows[::-1]
    waiting = RunQuery(kinds=kinds, deployment_id=rows[0].deployment_id, states=frozenset({StateType.RUNNING}))
    assert store.read_runs(waiting) == []


def test_a_key_is_used_once_in_a_deployment(store: RunStore) -> None:
    write(store, deployment_row("a"), deployment_row("b"))
    a, b = deployment_row("a"), deployment_row("b")
    first, second = waiting_row(a, key="k"), waiting_row(a, key="k")
    assert store.enqueue([first, second, second]) == [first, first, first]
    assert store.enqueue([waiting_row(a, key="k"), other := waiting_row(b, key="k")]) == [first, other]
    store.claim_due([a.id], NOW, 1)
    begun = go_on(store, first.id, StateType.RUNNING, NOW)
    assert store.enqueue([second]) == [begun]
    ended = go_on(store, first.id, StateType.COMPLETED, NOW)
    assert store.enqueue([second, first]) == [ended, ended]  # by its id, too
    assert store.read_run(second.id) is None
    none = [waiting_row(a), waiting_row(a)]
    assert store.enqueue(none) == none
    assert store.delete_runs([first.id]) == [first.id]
    assert store.enqueue([second]) == [second]


def test_what_no_column_can_hold_is_kept_as_well_as_can_be(store: RunStore) -> None:
    row = deployment_row(data='{"description":"half \ud83d pair"}')
    rule = rule_row(row, "half \ud83d", state="\ud83d")
    assert store.write_deployment(row, [rule]).data == '{"description":"half \\ud83d pair"}'
    assert store.fire(rule.id, "\ud83d", "1", [waiting_row(row, key="\ud83d")]).done
    (again,) = store.enqueue([waiting_row(row, key="\ud83d")])
    assert again.idempotency_key == "\\ud83d"
    cancelled = store.cancel_waiting(again.id, 1, NOW, "\ud83d")
    assert cancelled == found(store, again.id)


def test_more_than_a_statement_takes_can_be_enqueued_and_claimed_at_once(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row())
    rows = [waiting_row(deployment_row(), START + n // 2, f"k{n}") for n in range(1500)]
    assert store.enqueue(rows) == rows
    assert store.enqueue(rows[::-1]) == rows[::-1]
    claimed = store.claim_due([deployment_id], NOW, 5000)
    assert [row.id for row in claimed] == [row.id for row in rows]
    assert len(store.read_journal(None, 10_000)) == 3000


def test_many_deployments_are_served_at_once(store: RunStore) -> None:
    deployments = [deployment_row(f"d{n}") for n in range(900)]
    ids = write(store, *deployments[::100], *deployments[1::100])
    rows = [waiting_row(each) for each in (*deployments[::100], *deployments[1::100])]
    store.enqueue(rows)
    everything = [each.id for each in deployments]
    assert store.next_due(everything) == START
    assert {row.deployment_id for row in store.claim_due(everything * 2, NOW, 900)} == set(ids)


# --- limits ----------------------------------------------------------------------------------


def test_a_limit_counts_what_somebody_runs(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row(concurrency_limit=2))
    rows = [waiting_row(deployment_row(), START + n) for n in range(6)]
    store.enqueue(rows)

    def claimed() -> list[bytes]:
        return [row.id for row in store.claim_due([deployment_id], NOW, 9)]

    assert claimed() == [rows[0].id, rows[1].id]
    assert claimed() == []
    go_on(store, rows[0].id, StateType.RUNNING, NOW)
    go_on(store, rows[0].id, StateType.SCHEDULED, NOW, "AwaitingRetry")
    assert claimed() == []
    go_on(store, rows[0].id, StateType.COMPLETED, NOW)
    assert claimed() == [rows[2].id]
    go_on(store, rows[1].id, StateType.PAUSED, NOW)  # held in its process
    assert claimed() == []
    go_on(store, rows[1].id, StateType.PAUSED, NOW, "Suspended")
    assert claimed() == [rows[3].id]
    go_on(store, rows[2].id, StateType.PAUSED, NOW, "Interrupted")
    assert claimed() == [rows[4].id]
    store.write_deployment(deployment_row(concurrency_limit=None), [])
    assert claimed() == [rows[5].id]


def test_a_deployment_without_room_keeps_no_other_from_its_turn(store: RunStore) -> None:
    a, b = deployment_row("a", concurrency_limit=1), deployment_row("b")
    ids = write(store, a, b)
    store.enqueue([waiting_row(a, START + n) for n in range(20)])
    store.enqueue([late := waiting_row(b, START + 50)])
    first = store.claim_due(ids, NOW, 5)
    assert [row.deployment_id for row in first] == [a.id, b.id]
    assert first[1].id == late.id


def test_what_there_is_no_room_for_is_turned_away_where_it_is_not_to_wait(store: RunStore) -> None:
    row = deployment_row(concurrency_limit=2, collision=CANCEL_NEW)
    write(store, row)
    rows = [waiting_row(row, START + n) for n in range(4)]
    future = waiting_row(row, NOW + 1)
    store.enqueue([*rows, future])
    assert [each.id for each in store.claim_due([row.id], NOW, 1)] == [rows[0].id]  # there is room for one more
    assert [found(store, each.id).state for each in rows] == [PENDING, SCHEDULED, CANCELLED, CANCELLED]
    assert [each.id for each in store.claim_due([row.id], NOW, 9)] == [rows[1].id]
    assert found(store, rows[2].id).message == "the limit of 2 runs of its deployment was reached"
    assert found(store, future.id) == future
    assert told(store, rows[3].id) == [("Scheduled", 0), ("Cancelled", 1)]
    store.enqueue([later := waiting_row(row, START)])
    assert store.claim_due([row.id], NOW, 9) == []
    assert found(store, later.id).state == CANCELLED


# --- rules -----------------------------------------------------------------------------------


def test_a_rule_fires_once_from_each_state(store: RunStore) -> None:
    row = deployment_row()
    rule = rule_row(row)
    store.write_deployment(row, [rule])
    slot = waiting_row(row, key="daily@1")
    assert store.fire(rule.id, "0", "1", [slot]) == Fired(done=True, runs=[slot])
    assert store.fire(rule.id, "0", "1", [waiting_row(row, key="daily@other")]) == Fired(done=False, runs=[])
    again = waiting_row(row, key="daily@1")  # somebody has set the state back
    assert store.fire(rule.id, "1", "2", [again, last := waiting_row(row, key="daily@2")]).runs == [slot, last]
    assert store.read_rules([row.id]) == [rule._replace(state="2")]
    assert len(store.read_runs(RunQuery(kinds=frozenset({FLOW})))) == 2
    assert store.fire(new_id(), "0", "1", [waiting_row(row)]) == Fired(done=False, runs=[])


def test_a_rule_that_may_not_fire_stays_where_it_is(store: RunStore) -> None:
    row = deployment_row()
    rule, off = rule_row(row), rule_row(row, "off", active=0)
    store.write_deployment(row, [rule, off])
    assert not store.fire(off.id, "0", "1", [waiting_row(row)]).done
    store.pause_deployment(row.id, True, {})
    assert not store.fire(rule.id, "0", "1", [waiting_row(row)]).done
    assert store.pause_deployment(row.id, False, {rule.id: "5", new_id(): "6"})
    assert store.read_rules([row.id]) == [rule._replace(state="5"), off]
    assert store.fire(rule.id, "5", "6", []).done
    assert store.read_runs(RunQuery(kinds=frozenset({FLOW}))) == []


@pytest.mark.parametrize("state", [None, "waiting", "running", "suspended", "ended", "of another rule"])
def test_a_rule_may_leave_out_what_it_would_overlap(store: RunStore, state: str | None) -> None:
    row = deployment_row()
    rule = rule_row(row, "a")
    store.write_deployment(row, [rule])
    first = waiting_row(row, key="ab@1" if state == "of another rule" else "a@1")
    if state is not None:
        store.enqueue([first])
    if state not in (None, "waiting"):
        store.claim_due([row.id], NOW, 1)
        go_on(store, first.id, StateType.RUNNING, NOW)
    if state == "suspended":
        go_on(store, first.id, StateType.PAUSED, NOW, "Suspended")
    if state == "ended":
        go_on(store, first.id, StateType.COMPLETED, NOW)
    second = waiting_row(row, key="a@2")
    is_alone = state in (None, "ended", "of another rule")
    assert store.fire(rule.id, "0", "1", [second], unless_running=True) == Fired(
        done=True, runs=[second] if is_alone else []
    )
    assert store.read_rules([row.id])[0].state == "1"


def test_of_many_threads_one_fires_each_time(store: RunStore) -> None:
    row = deployment_row()
    rule = rule_row(row)
    store.write_deployment(row, [rule])
    done: list[int] = []

    def fire() -> None:
        for n in range(40):
            slot = waiting_row(row, START + n, f"daily@{n}")
            if store.fire(rule.id, str(n), str(n + 1), [slot]).done:
                done.append(n)

    run_in_threads(fire)
    assert sorted(done) == list(range(len(done)))
    assert len(store.read_runs(RunQuery(kinds=frozenset({FLOW})))) == len(done) > 0


def test_of_many_threads_each_run_is_claimed_by_one(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row())
    rows = [waiting_row(deployment_row(), START + n) for n in range(100)]
    store.enqueue(rows)
    claimed: list[bytes] = []

    def claim() -> None:
        while taken := store.claim_due([deployment_id], NOW, 3):
            claimed.extend(row.id for row in taken)

    run_in_threads(claim)
    assert sorted(claimed) == sorted(row.id for row in rows)


def run_in_threads(act: Callable[[], None]) -> None:
    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- what else becomes of runs that wait -----------------------------------------------------


def test_a_run_that_waits_can_be_cancelled_until_somebody_begins_it(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row())
    first, second = (waiting_row(deployment_row(), START + n) for n in range(2))
    store.enqueue([first, second])
    assert store.cancel_waiting(first.id, 2, NOW, "by hand") is None
    ended = store.cancel_waiting(first.id, 1, NOW, "by hand")
    assert ended is not None
    assert ended == found(store, first.id)
    assert (ended.state, ended.message, ended.ended) == (CANCELLED, "by hand", NOW)
    (claimed,) = store.claim_due([deployment_id], NOW, 9)
    assert claimed.id == second.id
    assert store.cancel_waiting(second.id, claimed.seq, NOW, "by hand") is None
    assert store.cancel_waiting(new_id(), 1, NOW, "by hand") is None


def test_a_run_that_should_have_been_started_is_late_and_keeps_its_turn(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row())
    rows = [waiting_row(deployment_row(), START + n * SECOND) for n in range(3)]
    store.enqueue(rows)
    assert store.mark_late(START - 1, NOW) == 0
    assert store.mark_late(START + SECOND, NOW) == 2
    assert store.mark_late(START + SECOND, NOW) == 0
    late = found(store, rows[1].id)
    assert (state_of(late).name, late.state, late.owner, late.scheduled) == (
        "Late",
        SCHEDULED,
        NOBODY,
        rows[1].scheduled,
    )
    due = state_of(late).state_details.scheduled_time
    assert due is not None
    assert due == state_of(rows[1]).state_details.scheduled_time
    assert told(store, late.id) == [("Scheduled", 0), ("Late", 1)]
    assert [row.id for row in store.claim_due([deployment_id], NOW, 2)] == [rows[0].id, rows[1].id]
    assert store.mark_late(NOW, NOW) == 1


@pytest.mark.parametrize("name", ["Suspended", "Interrupted"])
def test_a_run_that_rests_can_be_started_by_whoever_serves_its_deployment(store: RunStore, name: str) -> None:
    (deployment_id,) = write(store, deployment_row(concurrency_limit=1))
    row, behind = waiting_row(deployment_row()), waiting_row(deployment_row(), START + 1)
    store.enqueue([row, behind])
    store.claim_due([deployment_id], NOW, 1)
    begun = go_on(store, row.id, StateType.RUNNING, NOW)
    child = run_row(kind=FLOW, parent_id=row.id, state=STATE_CODES[StateType.PAUSED], state_name=name, ended=None)
    record(store, child)
    assert store.requeue(row.id, begun.seq, NOW) is None
    rests = go_on(store, row.id, StateType.PAUSED, NOW, name)
    assert store.requeue(row.id, rests.seq - 1, NOW) is None
    waiting = store.requeue(row.id, rests.seq, NOW + 5)
    assert waiting is not None
    assert waiting == found(store, row.id)
    assert (waiting.state, waiting.owner, waiting.scheduled, waiting.run_count) == (SCHEDULED, NOBODY, NOW + 5, 1)
    assert store.next_due([deployment_id], START + 1) == NOW + 5
    first, second = (store.claim_due([deployment_id], NOW + 9, 1) for _ in range(2))
    assert ([each.id for each in first], second) == ([behind.id], [])
    go_on(store, behind.id, StateType.COMPLETED, NOW)
    (again,) = store.claim_due([deployment_id], NOW + 9, 1)
    assert (again.id, again.state_name, again.seq) == (row.id, "Resuming", waiting.seq + 1)
    left = found(store, child.id)
    assert (left.state, left.owner) == (CANCELLED, store.owner)


def test_a_run_whose_deployment_is_gone_is_not_started_by_it(store: RunStore) -> None:
    row = deployment_row()
    write(store, row)
    store.enqueue([run := waiting_row(row)])
    store.claim_due([row.id], NOW, 1)
    rests = go_on(store, run.id, StateType.PAUSED, NOW, "Suspended")
    store.delete_deployment(row.id, NOW)
    assert store.requeue(run.id, rests.seq, NOW) is None
    assert store.claim(run.id, rests.seq, NOW) is not None
    record(store, alone := run_row(kind=FLOW, state=STATE_CODES[StateType.PAUSED], state_name="Suspended", ended=None))
    assert store.requeue(alone.id, alone.seq, NOW) is None


def test_what_waits_is_never_deleted_nor_claimed_by_hand(store: RunStore) -> None:
    (deployment_id,) = write(store, deployment_row())
    row = waiting_row(deployment_row())
    store.enqueue([row])
    assert store.read_oldest(9) == store.read_oldest(9, before=NOW + 10**12) == []
    assert store.delete_runs([row.id]) == []
    assert store.count_outermost() == 0
    assert store.claim(row.id, row.seq, NOW) is None
    assert store.reap(NOW) == Reaped()
    assert store.read_interrupted() == []
    assert store.claim_due([deployment_id], NOW, 1) != []
    assert store.count_outermost() == 1


# --- the death of who has claimed ------------------------------------------------------------


@pytest.fixture(params=["sqlite", "memory"])
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mortal]:
    home = tmp_path / "home"
    lives = Mortal(home if request.param == "sqlite" else None)
    yield lives
    lives.close()


class Mortal:
    """One store after another on the same runs, each of which dies without a word."""

    def __init__(self, home: Path | None) -> None:
        self._home = home
        self._opened: list[RunStore] = []
        self.store: RunStore = self._open()

    def _open(self) -> RunStore:
        if self._home is None:
            self._opened = self._opened or [MemoryStore()]
        else:
            self._opened.append(SQLiteStore(self._home, Settings(), FileResults(self._home)))
        return self._opened[-1]

    def die(self) -> RunStore:
        former = self.store
        if isinstance(former, SQLiteStore):
            former._ownership.release(remove=False)
        self.store = self._open()
        if isinstance(self.store, MemoryStore):
            self.store.owner += 1
        return self.store

    def close(self) -> None:
        for store in self._opened:
            store.close()


def test_a_run_that_had_not_begun_waits_again_in_its_place(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row(concurrency_limit=2))
    rows = [waiting_row(deployment_row(), START + n) for n in range(4)]
    store.enqueue(rows)
    store.claim_due([deployment_id], NOW, 2)
    go_on(store, rows[1].id, StateType.RUNNING, NOW)
    store = mortal.die()
    assert store.claim_due([deployment_id], NOW, 9) == []  # nobody knows yet
    assert store.reap(NOW) == Reaped(crashed=1, requeued=1)
    again = found(store, rows[0].id)
    assert (again.state, again.owner, again.seq, again.scheduled) == (SCHEDULED, NOBODY, 3, rows[0].scheduled)
    assert (again.message or "").startswith("its process died")
    assert told(store, again.id) == [("Scheduled", 0), ("Pending", 1), ("Scheduled", 2)]
    assert found(store, rows[1].id).state == STATE_CODES[StateType.CRASHED]
    assert [row.id for row in store.claim_due([deployment_id], NOW, 9)] == [rows[0].id, rows[2].id]
    assert store.reap(NOW) == Reaped()


def test_one_that_was_being_cancelled_is_not_started_again(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row())
    store.enqueue([row := waiting_row(deployment_row())])
    (claimed,) = store.claim_due([deployment_id], NOW, 1)
    cancelling = claimed._replace(state=STATE_CODES[StateType.CANCELLING], seq=claimed.seq + 1)
    store.put(LiveRun(cancelling, journalled=claimed.seq))
    record(store)
    assert mortal.die().reap(NOW) == Reaped(crashed=1)
    assert found(mortal.store, row.id).state == STATE_CODES[StateType.CRASHED]


def test_one_that_was_to_go_on_and_had_not_waits_again(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row())
    store.enqueue([row := waiting_row(deployment_row())])
    store.claim_due([deployment_id], NOW, 1)
    go_on(store, row.id, StateType.RUNNING, NOW)
    rests = go_on(store, row.id, StateType.PAUSED, NOW, "Suspended")
    assert store.requeue(row.id, rests.seq, NOW) is not None
    (claimed,) = store.claim_due([deployment_id], NOW, 1)
    assert claimed.run_count == 1
    assert mortal.die().reap(NOW) == Reaped(requeued=1)
    assert mortal.store.claim_due([deployment_id], NOW, 1)[0].state_name == "Resuming"


def test_one_whose_deployment_is_gone_or_that_was_opened_again_by_hand_does_not_wait(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row())
    first, second = waiting_row(deployment_row()), waiting_row(deployment_row(), START + 1)
    store.enqueue([first, second])
    ended = store.cancel_waiting(second.id, 1, NOW, "by hand")
    assert ended is not None
    assert store.claim(ended.id, ended.seq, NOW) is not None
    assert mortal.die().reap(NOW) == Reaped(crashed=1)
    assert len(mortal.store.claim_due([deployment_id], NOW, 1)) == 1
    mortal.store.delete_deployment(deployment_id, NOW)
    assert mortal.die().reap(NOW) == Reaped(crashed=1)


def test_a_run_that_kills_whoever_begins_it_is_given_up(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row())
    store.enqueue([row := waiting_row(deployment_row())])
    for _ in range(MOST_DEATHS):
        assert len(mortal.store.claim_due([deployment_id], NOW, 1)) == 1
        assert mortal.die().reap(NOW) == Reaped(requeued=1)
    assert len(mortal.store.claim_due([deployment_id], NOW, 1)) == 1
    assert mortal.die().reap(NOW) == Reaped(crashed=1)
    assert "11 times before it had begun" in (found(mortal.store, row.id).message or "")


def test_what_rests_and_what_waits_outlives_its_process(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row(concurrency_limit=1))
    rows = [waiting_row(deployment_row(), START + n) for n in range(2)]
    store.enqueue(rows)
    store.claim_due([deployment_id], NOW, 1)
    rests = go_on(store, rows[0].id, StateType.PAUSED, NOW, "Suspended")
    store = mortal.die()
    assert store.reap(NOW) == Reaped()
    assert found(store, rows[0].id) == rests
    assert found(store, rows[1].id) == rows[1]
    assert store.requeue(rests.id, rests.seq, NOW) is not None


def test_everybody_is_woken_when_places_are_free_again(mortal: Mortal) -> None:
    store = mortal.store
    (deployment_id,) = write(store, deployment_row())
    store.enqueue([waiting_row(deployment_row())])
    store.claim_due([deployment_id], NOW, 1)
    store = mortal.die()
    woken = threading.Event()
    end = store.listen(woken.set)
    store.reap(NOW)
    assert woken.wait(10)
    end()
