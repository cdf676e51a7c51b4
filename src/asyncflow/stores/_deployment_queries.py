"""What is asked about deployments as SQL, each by an index; as `_queries` does for runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asyncflow._deployment_rows import NOBODY, DeploymentRow, InputRow, RequestRow, RuleRow
from asyncflow._rows import FIRST_FINAL
from asyncflow.stores._orphans import SCHEDULED
from asyncflow.stores._queries import ENQUEUED, RUN, WAITS

__all__ = [
    "DEPLOYMENT", "INPUT", "IS_ANY_LATE", "READ_ANSWER", "READ_INPUTS", "READ_NOT_LATE", "READ_REQUESTS",
    "READ_WAITING", "REQUEST", "RULE", "Query", "due", "is_any_set_forward", "is_running", "next_due", "of_keys",
    "places", "read_deployments", "read_rules", "set_forward",
]  # fmt: skip

Query = tuple[str, list[Any]]

DEPLOYMENT = ", ".join(DeploymentRow._fields)
RULE = ", ".join(RuleRow._fields)
REQUEST = ", ".join(RequestRow._fields)
INPUT = ", ".join(InputRow._fields)

# What a partial index holds is said in its own words, or the planner would not see that it applies.
_OPEN_OF = f"run.deployment_id = {{}} AND run.state < {FIRST_FINAL}"
_NOT_LATE = f"run.deployment_id IS NOT NULL AND run.state = {SCHEDULED} AND run.state_name IS NULL AND {ENQUEUED}"
# As `_waiting.was_due` says; by the index `run_was_due`.
_WAS_DUE = (
    f"run.deployment_id IS NOT NULL AND run.state = {SCHEDULED} AND run.owner = {NOBODY} "
    "AND (run.scheduled <= run.created OR run.seq > 1) AND run.scheduled > ?"
)

READ_WAITING = f"SELECT {RUN} FROM run WHERE {_OPEN_OF.format('?')} AND {ENQUEUED} ORDER BY scheduled, id"
READ_NOT_LATE = f"SELECT {RUN} FROM run WHERE {_NOT_LATE} AND scheduled <= ? ORDER BY scheduled, id LIMIT ?"
IS_ANY_LATE = f"SELECT 1 FROM run WHERE {_NOT_LATE} AND scheduled <= ? LIMIT 1"

READ_REQUESTS = f"SELECT {REQUEST} FROM request WHERE owner = ? AND answer IS NULL ORDER BY id"
READ_ANSWER = "SELECT answer FROM request WHERE id = ?"
READ_INPUTS = f"SELECT {INPUT} FROM input WHERE run_id = ? AND key = ? AND n > ? ORDER BY n LIMIT ?"


def read_deployments(ids: Sequence[bytes] | None, flow: str | None, name: str | None) -> Query:
    """Deployments by flow and name."""
    conditions, values = ["1"], list[Any]()
    if ids is not None:
        conditions.append(f"id IN ({_marks(ids)})")
        values += ids
    for condition, wanted in (("flow = ?", flow), ("name = ?", name)):
        if wanted is not None:
            conditions.append(condition)
            values.append(wanted)
    return f"SELECT {DEPLOYMENT} FROM deployment WHERE {' AND '.join(conditions)} ORDER BY flow, name", values


def read_rules(deployment_ids: Sequence[bytes]) -> Query:
    """Rules by deployment, kind and slug."""
    sql = f"SELECT {RULE} FROM rule WHERE deployment_id IN ({_marks(deployment_ids)})"
    return f"{sql} ORDER BY deployment_id, kind, slug", list(deployment_ids)


def places(deployment_ids: Sequence[bytes]) -> Query:
    """Deployments, each with the number of its runs that have a place, where that number matters."""
    running = (
        f"SELECT count(*) FROM run WHERE {_OPEN_OF.format('deployment.id')} AND run.owner > {NOBODY} AND NOT ({WAITS})"
    )
    columns = f"{DEPLOYMENT}, CASE WHEN concurrency_limit IS NULL THEN 0 ELSE ({running}) END"
    return f"SELECT {columns} FROM deployment WHERE id IN ({_marks(deployment_ids)})", list(deployment_ids)


def due(wanted: Iterable[tuple[bytes, int]], now: int) -> Query:
    """Of each deployment the first so many runs that wait and are due: its id, when each was due, the run's id.

    One statement for all of them: `sqlite3` gives up the GIL at each.
    """
    first = (
        f"SELECT * FROM (SELECT deployment_id, scheduled, id FROM run "
        f"WHERE {_OPEN_OF.format('?')} AND owner = {NOBODY} AND scheduled <= ? ORDER BY scheduled, id LIMIT ?)"
    )
    values: list[Any] = []
    parts = 0
    for deployment_id, number in wanted:
        values += [deployment_id, now, number]
        parts += 1
    return " UNION ALL ".join([first] * parts), values


def set_forward(deployment_ids: Sequence[bytes], now: int) -> Query:
    """Have runs due now that were due when they were written, by a clock that was set back since.

    As a statement of its own, so that all else may go by `scheduled` alone; and what is due later does not overtake.
    """
    sql = f"UPDATE run SET scheduled = ? WHERE {_WAS_DUE} AND run.deployment_id IN ({_marks(deployment_ids)})"
    return sql, [now, now, *deployment_ids]


def is_any_set_forward(deployment_ids: Sequence[bytes], now: int) -> Query:
    """Whether there are runs that `set_forward` would have due."""
    sql = f"SELECT 1 FROM run WHERE {_WAS_DUE} AND run.deployment_id IN ({_marks(deployment_ids)}) LIMIT 1"
    return sql, [now, *deployment_ids]


def next_due(deployment_ids: Sequence[bytes], after: int) -> Query:
    """When the first run is due that waits, of those due after a moment."""
    first = (
        f"SELECT scheduled FROM run WHERE {_OPEN_OF.format('deployment.id')} AND run.owner = {NOBODY} "
        f"AND run.scheduled > ? ORDER BY run.scheduled LIMIT 1"
    )
    return f"SELECT min(({first})) FROM deployment WHERE id IN ({_marks(deployment_ids)})", [after, *deployment_ids]


def of_keys(deployment_id: bytes, keys: Sequence[str]) -> Query:
    """The runs of a deployment that have one of some idempotency keys."""
    condition = f"deployment_id = ? AND idempotency_key IN ({_marks(keys)}) AND idempotency_key IS NOT NULL"
    return f"SELECT {RUN} FROM run WHERE {condition}", [deployment_id, *keys]


def is_running(deployment_id: bytes, prefix: str) -> Query:
    """Whether a deployment has a run that has not ended and whose idempotency key begins with a text."""
    condition = f"{_OPEN_OF.format('?')} AND substr(idempotency_key, 1, ?) = ?"
    return f"SELECT 1 FROM run WHERE {condition} LIMIT 1", [deployment_id, len(prefix), prefix]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
