"""What is asked about deployments is found by an index, and the runs that have none cost nothing."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncflow._rows import FLOW, TASK
from asyncflow.abc import RunQuery
from asyncflow.ids import new_id
from asyncflow.results import FileResults
from asyncflow.settings import Settings
from asyncflow.states import StateType
from asyncflow.stores import _deployment_queries as queries
from asyncflow.stores import _queries
from asyncflow.stores.sqlite import SQLiteStore
from tests.contracts.recordables import START, deployment_row, record, rule_row, run_row, waiting_row

OF_ONE = bytes(16)
KINDS = frozenset({FLOW, TASK})
OPEN = "run_of_deployment_open (deployment_id=?"


def of_state(*states: StateType) -> queries.Query:
    return _queries.runs(RunQuery(kinds=KINDS, deployment_id=OF_ONE, states=frozenset(states)))


PLANS: list[tuple[queries.Query, str]] = [
    (queries.due([(OF_ONE, 3), (OF_ONE, 4)], START), f"{OPEN} AND owner=? AND scheduled<?)"),
    (queries.places([OF_ONE, OF_ONE]), f"{OPEN} AND owner>?)"),
    (queries.next_due([OF_ONE], START), f"{OPEN} AND owner=? AND scheduled>?)"),
    (queries.set_forward([OF_ONE, OF_ONE], START), "run_was_due (deployment_id=? AND scheduled>?)"),
    (queries.is_any_set_forward([OF_ONE], START), "run_was_due (deployment_id=? AND scheduled>?)"),
    (queries.of_keys(OF_ONE, ["a", "b"]), "run_of_idempotency_key (deployment_id=? AND idempotency_key=?)"),
    (queries.is_running(OF_ONE, "daily@"), f"{OPEN})"),
    ((queries.READ_WAITING, [OF_ONE]), f"{OPEN} AND owner=?)"),
    ((queries.READ_NOT_LATE, [START, 9]), "run_not_late (scheduled<?)"),
    ((queries.IS_ANY_LATE, [START]), "run_not_late (scheduled<?)"),
    ((_queries.COUNT_OUTERMOST, []), "run_of_deployment_open"),
    ((queries.READ_INPUTS, [OF_ONE, "k", 0, 9]), "PRIMARY KEY (run_id=? AND key=? AND n>?)"),
    (_queries.runs(RunQuery(kinds=frozenset({FLOW}), deployment_id=OF_ONE)), "run_of_deployment (deployment_id=?)"),
    (of_state(StateType.FAILED), "run_of_deployment (deployment_id=?)"),
]


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """To a home with some of everything."""
    home = tmp_path_factory.mktemp("plans") / "home"
    store = SQLiteStore(home, Settings(synchronous="normal"), FileResults(home))
    row = deployment_row(id=OF_ONE)
    store.write_deployment(row, [rule_row(row)])
    record(store, *(run_row(parent_id=new_id()) for _ in range(200)))
    store.enqueue([waiting_row(row, START + n, f"k{n}") for n in range(200)])
    store.close()
    connection = sqlite3.connect(home / "asyncflow.db")
    yield connection
    connection.close()


@pytest.mark.parametrize(("query", "index"), PLANS)
def test_each_question_uses_its_index_and_sorts_nothing(
    connection: sqlite3.Connection, query: queries.Query, index: str
) -> None:
    plan = plan_of(connection, *query)
    assert index in plan, plan
    assert not re.search(r"SCAN run(?! USING (COVERING )?INDEX run_of_)", plan), plan
    assert "TEMP B-TREE" not in plan, plan


def test_what_is_few_is_found_by_an_index_and_sorted(connection: sqlite3.Connection) -> None:
    assert f"{OPEN})" in plan_of(connection, *of_state(StateType.RUNNING, StateType.SCHEDULED))
    assert "rule_of_deployment (deployment_id=?)" in plan_of(connection, *queries.read_rules([OF_ONE]))


def plan_of(connection: sqlite3.Connection, sql: str, values: list[Any]) -> str:
    return "\n".join(str(step[3]) for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))


def test_runs_of_no_deployment_are_in_none_of_its_indexes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = SQLiteStore(home, Settings(synchronous="normal"), FileResults(home))
    record(store, *(run_row() for _ in range(2000)), *(run_row(kind=FLOW, name="n") for _ in range(100)))
    store.close()
    connection = sqlite3.connect(home / "asyncflow.db")
    names = "run_of_deployment", "run_of_deployment_open", "run_not_late", "run_was_due", "run_of_idempotency_key"
    roots = connection.execute(f"SELECT name, rootpage FROM sqlite_master WHERE name IN {names}").fetchall()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    assert len(roots) == 5
    database = (home / "asyncflow.db").read_bytes()
    for name, root in roots:
        page = database[(root - 1) * size : root * size]
        assert (page[0], int.from_bytes(page[3:5], "big")) == (10, 0), name  # a leaf without a cell
