"""Rows and the records made from them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._rows import (
    FLOW,
    STAND_IN,
    STATE_CODES,
    LogRow,
    default_task_run_name,
    flow_run_of,
    json_of,
    log_record_of,
    microseconds,
    moment,
    moved,
    state_of,
    states_of,
    storable,
    task_run_of,
)
from asyncflow.exceptions import MissingResultError
from asyncflow.ids import new_id, state_id
from asyncflow.states import StateType
from tests.contracts.recordables import START, run_row

PENDING, RUNNING, FAILED = (STATE_CODES[each] for each in (StateType.PENDING, StateType.RUNNING, StateType.FAILED))


@given(st.integers(-(10**15), 10**17))
def test_times_are_exact_both_ways(column: int) -> None:
    assert microseconds(moment(column)) == column


def test_a_time_is_aware_utc() -> None:
    assert moment(1) == datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"state": PENDING, "started": None, "ended": None, "seq": 1}, [("PENDING", 0)]),
        ({"state": RUNNING, "ended": None, "seq": 2}, [("PENDING", 0), ("RUNNING", 5)]),
        ({}, [("PENDING", 0), ("RUNNING", 5), ("COMPLETED", 9)]),
        ({"state": FAILED, "started": None, "seq": 2}, [("PENDING", 0), ("FAILED", 9)]),
    ],
)
def test_a_plain_history_is_told_by_the_times(columns: dict[str, int], expected: list[tuple[str, int]]) -> None:
    row = run_row(**columns)
    assert [(each.type.value, microseconds(each.timestamp) - START) for each in states_of(row)] == expected
    assert [each.id for each in states_of(row)] == [state_id(row.id, number) for number in range(len(expected))]
    assert len(expected) == row.seq
    assert state_of(row) == states_of(row)[-1]


HISTORIES: list[dict[str, Any]] = [
    {"state": PENDING, "started": None, "ended": None, "seq": 1},
    {"state": PENDING, "started": None, "ended": None, "seq": 1, "state_name": "Late", "message": "not yet"},
    {"state": RUNNING, "ended": None, "seq": 2},
    {"state": FAILED, "started": None, "seq": 2},
    {},
    {"state": FAILED, "state_name": "TimedOut", "message": "after 3 s"},
    {
        "history": f'[[0,null,"at noon",{START}],[1,null,null,{START + 1}],[5,"Odd",null,{START + 3}]]',
        "state_name": "Odd",
    },
]


@pytest.mark.parametrize("columns", HISTORIES)
@pytest.mark.parametrize("state", [StateType.PENDING, StateType.PAUSED, StateType.CRASHED])
@pytest.mark.parametrize("told", [{}, {"name": "Interrupted", "message": "its process died"}])
def test_a_row_that_is_moved_has_one_state_more(
    columns: dict[str, Any], state: StateType, told: dict[str, Any]
) -> None:
    row = run_row(**columns, details='{"version":"1"}', digest=b"d" * 16, error="{}")
    changed = moved(row, state, START + 100, **told)
    assert states_of(changed)[:-1] == states_of(row)
    last = states_of(changed)[-1]
    assert (last.type, microseconds(last.timestamp)) == (state, START + 100)
    assert (last.name, last.message) == (told.get("name", state.value.title()), told.get("message"))
    assert state_of(changed) == last
    assert changed.seq == row.seq + 1
    if state is StateType.CRASHED:
        assert (changed.ended, changed.result, changed.error) == (START + 100, row.result, row.error)
    else:
        assert (changed.ended, changed.result, changed.error) == (None, None, None)
    assert (changed.details, changed.digest, changed.created, changed.started) == (
        row.details, row.digest, row.created, row.started
    )  # fmt: skip
    again = moved(moved(changed, StateType.PENDING, START + 200), StateType.COMPLETED, START + 300)
    assert [each.type for each in states_of(again)[-3:]] == [state, StateType.PENDING, StateType.COMPLETED]


def test_a_history_does_not_go_back_when_the_clock_does() -> None:
    row = run_row()
    assert row.ended is not None
    changed = moved(row, StateType.CRASHED, START - 10**9)
    assert changed.ended == row.ended
    assert [each.timestamp for each in states_of(changed)] == sorted(each.timestamp for each in states_of(changed))


def test_a_killed_run_that_never_paused_needs_no_history() -> None:
    assert moved(run_row(state=RUNNING, seq=2, ended=None), StateType.CRASHED, START + 99).history is None


def test_name_and_message_belong_to_the_newest_state() -> None:
    states = states_of(run_row(state=FAILED, state_name="TimedOut", message="after 3 s"))
    assert [(each.name, each.message) for each in states] == [
        ("Pending", None), ("Running", None), ("TimedOut", "after 3 s")
    ]  # fmt: skip


def test_another_history_is_told_by_its_column() -> None:
    history = [
        [0, None, "at noon", START, {"scheduled_time": START + 100}],
        [1, None, None, START + 1],
        [2, "Retrying", None, START + 2, None],
        [5, "Cached", "by key", START + 3, {"cache_key": "k", "cache_expiration": START + 50}],
    ]
    row = run_row(history=json.dumps(history), seq=4)
    states = states_of(row)
    assert [(each.type.value, each.name, each.message) for each in states] == [
        ("SCHEDULED", "Scheduled", "at noon"),
        ("PENDING", "Pending", None),
        ("RUNNING", "Retrying", None),
        ("COMPLETED", "Cached", "by key"),
    ]
    assert states[0].state_details.scheduled_time == moment(START + 100)
    assert states[1].state_details.scheduled_time is None
    assert (states[3].state_details.cache_key, states[3].state_details.cache_expiration) == ("k", moment(START + 50))
    assert state_of(row) == states[3]


def test_a_scheduled_run_says_when_it_is_to_go_on() -> None:
    history = f'[[{STATE_CODES[StateType.SCHEDULED]},null,null,{START},{{"scheduled_time":{START + 7}}}]]'
    row = run_row(state=STATE_CODES[StateType.SCHEDULED], started=None, ended=None, history=history)
    assert state_of(row).state_details.scheduled_time == moment(START + 7)


def test_a_state_that_was_read_knows_its_run_and_that_it_has_no_data() -> None:
    row = run_row(flow_run_id=new_id())
    details = state_of(row).state_details
    assert (details.task_run_id, details.flow_run_id) == (UUID(bytes=row.id), UUID(bytes=row.flow_run_id))
    with pytest.raises(MissingResultError, match="read_result"):
        state_of(row).result()


def test_a_nested_flow_and_the_task_run_that_stands_for_it_are_linked() -> None:
    parent = new_id()
    stand_in = run_row(kind=STAND_IN, parent_id=parent, flow_run_id=parent, function="sub")
    nested = run_row(kind=FLOW, parent_id=stand_in.id, flow_run_id=parent, function="sub", name="calm-otter")
    stand_in = stand_in._replace(details=json.dumps({"child_flow_run_id": str(UUID(bytes=nested.id))}))
    flow_run, task_run = flow_run_of(nested), task_run_of(stand_in)
    assert task_run.child_flow_run_id == task_run.state.state_details.child_flow_run_id == flow_run.id
    assert flow_run.parent_task_run_id == flow_run.state.state_details.parent_task_run_id == task_run.id
    assert flow_run.parent_flow_run_id == task_run.flow_run_id == UUID(bytes=parent)
    assert task_run.state.state_details.parent_task_run_id is None


def test_a_flow_run_in_full() -> None:
    row = run_row(
        kind=FLOW, function="main", name="calm-otter", run_count=2, tags='["eu","nightly"]',
        parameters='{"n":123456789012345678901234567890}', details='{"version":"1.2"}',
    )  # fmt: skip
    run = flow_run_of(row)
    assert (run.id, run.name, run.flow_name, run.flow_version) == (UUID(bytes=row.id), "calm-otter", "main", "1.2")
    assert (run.tags, run.parameters, run.run_count) == (("eu", "nightly"), {"n": 123456789012345678901234567890}, 2)
    assert (run.created, run.start_time, run.end_time) == (moment(START), moment(START + 5), moment(START + 9))
    assert (run.parent_flow_run_id, run.parent_task_run_id, run.deployment_id) == (None, None, None)


def test_a_task_run_knows_the_task_that_called_it() -> None:
    flow, task = new_id(), new_id()
    assert task_run_of(run_row(parent_id=flow, flow_run_id=flow)).parent_task_run_id is None
    assert task_run_of(run_row(parent_id=task, flow_run_id=flow)).parent_task_run_id == UUID(bytes=task)
    assert task_run_of(run_row()).parent_task_run_id is None


def test_a_task_run_without_a_name_gets_the_default() -> None:
    row = run_row(function="fetch")
    assert task_run_of(row).name == default_task_run_name("fetch", row.id)
    assert task_run_of(row).task_key == "shop.fetch"
    assert task_run_of(row._replace(name="mine")).name == "mine"


def test_a_log_line() -> None:
    flow = new_id()
    record = log_record_of(LogRow(flow, None, START, 20, "asyncflow", "hello"))
    assert (record.timestamp, record.level, record.name, record.message) == (moment(START), 20, "asyncflow", "hello")
    assert (record.flow_run_id, record.task_run_id) == (UUID(bytes=flow), None)


@given(st.none() | st.binary() | st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False))
def test_what_can_be_stored_is_stored_as_it_is(value: object) -> None:
    assert storable(value) == value


@given(st.text(st.characters(categories=["Cs"]), min_size=1) | st.integers(2**63) | st.integers(max_value=-(2**63) - 1))
def test_what_cannot_be_stored_is_changed_so_that_it_can(value: object) -> None:
    kept = storable(value)
    assert kept != value
    assert storable(kept) == kept


@pytest.mark.parametrize(
    "value",
    [{"entrypoint": "caf\udce9.py:f", "n": [1, None, {"x": "\ud83d"}]}, ["a", "caf\udce9"], {"plain": True}, "\udce9"],
)
def test_a_column_s_json_takes_any_text(value: Any) -> None:
    text = json_of(value)
    assert json.loads(text) == json.loads(json.dumps(value).replace("\\ud", "\\\\ud"))
    assert text.encode()
