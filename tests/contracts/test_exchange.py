"""The contract of `Exchange`: requests and their answers, inputs, and bells."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from asyncflow._deployment_rows import InputRow, RequestRow
from asyncflow.abc import RunStore
from asyncflow.exceptions import RuntimeClosedError
from asyncflow.ids import new_id
from tests.contracts.recordables import START, record, run_row

ELSEWHERE = 77
"""An owner there is not."""


def test_a_request_waits_until_it_is_answered(store: RunStore) -> None:
    run_id = new_id()
    first = store.ask(store.owner, run_id, "cancel", '{"grace":3}', START)
    other = store.ask(ELSEWHERE, run_id, "cancel", None, START)
    second = store.ask(store.owner, run_id, "pause", None, START + 1)
    assert len({first, other, second}) == 3
    asked = [
        RequestRow(first, store.owner, run_id, "cancel", '{"grace":3}', store.owner, START, None),
        RequestRow(second, store.owner, run_id, "pause", None, store.owner, START + 1, None),
    ]
    assert store.read_requests() == asked
    assert store.read_answer(first) is None
    store.answer(first, "done")
    store.answer(first, "done twice")
    assert store.read_requests() == asked[1:]
    assert (store.read_answer(first), store.read_answer(second), store.read_answer(9999)) == ("done", None, None)


def test_a_request_that_is_forgotten_is_gone(store: RunStore) -> None:
    request = store.ask(store.owner, new_id(), "cancel", None, START)
    store.forget(request)
    assert store.read_requests() == []
    store.answer(request, "too late")
    assert store.read_answer(request) is None
    store.forget(request)
    assert store.ask(store.owner, new_id(), "cancel", None, START) > request


def test_inputs_are_counted_by_run_and_key_and_stay(store: RunStore) -> None:
    run, other, sender = new_id(), new_id(), new_id()
    assert [store.add_input(run, "k", str(n), None, START + n) for n in range(3)] == [0, 1, 2]
    assert store.add_input(run, "half \ud83d", "{}", sender, START) == 0
    assert store.add_input(other, "k", "{}", None, START) == 0
    rows = [InputRow(run, "k", n, str(n), None, START + n) for n in range(3)]
    for _ in range(2):  # nothing is consumed
        assert store.read_inputs(run, "k", -1, 10) == rows
    assert store.read_inputs(run, "k", 0, 1) == rows[1:2]
    assert store.read_inputs(run, "half \ud83d", -1, 10) == [InputRow(run, "half \\ud83d", 0, "{}", sender, START)]
    assert store.read_inputs(run, "nothing", -1, 10) == store.read_inputs(new_id(), "k", -1, 10) == []


def test_inputs_go_with_their_outermost_run(store: RunStore) -> None:
    root, kept = run_row(), run_row()
    child = run_row(parent_id=root.id)
    record(store, root, kept, child)
    for row in (root, child, kept):
        store.add_input(row.id, "k", "1", None, START)
    store.delete_runs([root.id])
    assert [store.read_inputs(row.id, "k", -1, 9) != [] for row in (root, child, kept)] == [False, False, True]


def test_many_threads_count_each_input_once(store: RunStore) -> None:
    run_id = new_id()
    numbers: list[int] = []

    def send() -> None:
        numbers.extend(store.add_input(run_id, "k", "1", None, START) for _ in range(25))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(100))
    assert [row.n for row in store.read_inputs(run_id, "k", -1, 1000)] == list(range(100))


@pytest.mark.parametrize("whom", ["everybody", "its owner", "several"])
def test_a_bell_wakes_all_who_listen(store: RunStore, whom: str) -> None:
    owners = {"everybody": None, "its owner": [store.owner], "several": [ELSEWHERE, store.owner]}[whom]
    heard = [threading.Event(), threading.Event()]
    ends = [store.listen(each.set) for each in heard]
    store.ring(owners)
    assert all(each.wait(10) for each in heard)
    for end in ends:
        end()


def test_who_has_ended_it_hears_no_more(store: RunStore) -> None:
    gone, there = threading.Event(), threading.Event()
    end = store.listen(gone.set)
    store.listen(there.set)
    end()
    end()
    store.ring()
    assert there.wait(10)
    assert not gone.is_set()


def test_a_listener_that_fails_keeps_no_other_from_hearing(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()

    def fail() -> None:
        raise RuntimeError("its loop is closed")

    store.listen(fail)
    store.listen(heard.set)
    store.ring()
    assert heard.wait(10)
    assert "its loop is closed" in caplog.text


def test_ringing_for_nobody_or_after_the_end_does_nothing(open_store: Callable[[], RunStore]) -> None:
    store = open_store()
    store.ring([])
    store.ring([ELSEWHERE, -1, 2**70])
    store.ring()
    store.close()
    store.ring()
    store.ring([store.owner])
    with pytest.raises(RuntimeClosedError):
        store.listen(print)
