"""What was due when it was written is due for ever: a clock that is set back has no run wait for it to catch up."""

from __future__ import annotations

import pytest

from asyncflow._deployment_rows import NOBODY
from asyncflow._rows import RunRow
from asyncflow.abc import RunStore
from asyncflow.states import StateType
from tests.contracts.recordables import START, deployment_row, go_on, waiting_row

HOUR = 3_600_000_000
BACK = START - HOUR
"""What the clock says after it was set back by an hour and a bit."""
DEPLOYMENT = deployment_row()
IDS = [DEPLOYMENT.id]


@pytest.fixture(autouse=True)
def deployment(store: RunStore) -> None:
    store.write_deployment(DEPLOYMENT, [])


def claim(store: RunStore, now: int, limit: int = 9) -> list[bytes]:
    return [row.id for row in store.claim_due(IDS, now, limit)]


def found(store: RunStore, run_id: bytes) -> RunRow:
    row = store.read_run(run_id)
    assert row is not None
    return row


def test_what_was_asked_for_at_once_is_due_and_what_was_asked_for_later_is_not(store: RunStore) -> None:
    at_once, later = waiting_row(DEPLOYMENT, START), waiting_row(DEPLOYMENT, START + 1)
    store.enqueue([at_once, later])
    assert store.next_due(IDS, now=BACK) == BACK
    assert claim(store, BACK) == [at_once.id]
    assert store.next_due(IDS, now=BACK) == START + 1
    assert claim(store, BACK) == []
    assert found(store, later.id) == later
    assert claim(store, START + 1) == [later.id]


def test_nothing_that_is_asked_for_after_it_overtakes(store: RunStore) -> None:
    store.write_deployment(deployment_row(concurrency_limit=1), [])
    before = [waiting_row(DEPLOYMENT, START) for _ in range(3)]
    store.enqueue(before)
    began = claim(store, BACK)
    assert claim(store, BACK + 1) == []  # there is no room; from now on it is known that they are due
    after = waiting_row(DEPLOYMENT, BACK + 2, created=BACK + 2)
    store.enqueue([after])
    for _ in range(3):
        go_on(store, began[-1], StateType.COMPLETED, BACK + 3)
        began += claim(store, BACK + 4)
    assert began == [*(row.id for row in before), after.id]


@pytest.mark.parametrize("name", ["Suspended", "Interrupted"])
def test_a_run_that_is_started_again_is_due(store: RunStore, name: str) -> None:
    row = waiting_row(DEPLOYMENT, START + 5)  # it was asked for later, and that has come
    store.enqueue([row])
    assert claim(store, START + 9) == [row.id]
    go_on(store, row.id, StateType.RUNNING, START + 9)
    rests = go_on(store, row.id, StateType.PAUSED, START + 9, name)
    again = store.requeue(row.id, rests.seq, START + 10)
    assert again is not None
    assert store.next_due(IDS, now=BACK) == BACK
    assert claim(store, BACK) == [row.id]


def test_one_that_is_late_is_due(store: RunStore) -> None:
    row = waiting_row(DEPLOYMENT, START + 5)
    store.enqueue([row])
    assert store.mark_late(START + 5, START + 5) == 1
    assert store.next_due(IDS, now=BACK) == BACK
    assert claim(store, BACK) == [row.id]


def test_of_other_deployments_nothing_changes(store: RunStore) -> None:
    other = deployment_row("other")
    store.write_deployment(other, [])
    theirs = waiting_row(other, START)
    store.enqueue([theirs])
    assert store.next_due(IDS, now=BACK) is None
    assert claim(store, BACK) == []
    assert found(store, theirs.id) == theirs
    assert found(store, theirs.id).owner == NOBODY
