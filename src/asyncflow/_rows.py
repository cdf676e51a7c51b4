"""The row of a run: what a store keeps, as plain columns, and the records made from it.

Both stores keep these same columns, so that what a reader sees cannot differ between them. Times
are integers, microseconds since 1970 UTC; ids are 16 bytes; everything structured is JSON text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast
from uuid import UUID

import orjson

from asyncflow._facts import details_from
from asyncflow.ids import state_id
from asyncflow.previews import hide
from asyncflow.runs import FlowRun, LogRecord, TaskRun
from asyncflow.states import State, StateDetails, StateType

__all__ = [
    "ACTIVE", "COMMITTED", "FIRST_FINAL", "FLOW", "INTERRUPTED", "ROLLED_BACK", "STAND_IN", "STATE_CODES",
    "STATE_TYPES", "TASK", "CachedRow", "ItemRow", "LogRow", "RunRow", "TransactionRow", "birth_of",
    "default_task_run_name", "details_of", "flow_run_of", "history_of", "json_of", "log_record_of", "maybe_moment",
    "maybe_uuid", "microseconds", "moment", "moved", "parameters_of", "state_at", "state_of", "states_of",
    "storable", "task_run_of", "word_for",
]  # fmt: skip

FLOW = 0
TASK = 1
STAND_IN = 2
"""A task run that stands for a nested flow in its parent."""

STATE_TYPES = tuple(StateType)
"""A row holds a state type as its position here: final ones are COMPLETED's and above."""
STATE_CODES = {type_: code for code, type_ in enumerate(STATE_TYPES)}
FIRST_FINAL = STATE_CODES[StateType.COMPLETED]
_MOST_PLAIN = 2
"""States before the final one that the time columns can tell: Pending and Running."""


class RunRow(NamedTuple):
    """One run's newest state, and what is needed to tell its history."""

    id: bytes
    kind: int
    """FLOW, TASK or STAND_IN."""
    parent_id: bytes | None
    """The run whose body called this one; for a nested flow, its STAND_IN. None for an outermost run."""
    flow_run_id: bytes | None
    """The nearest flow run around it; None outside of any flow."""
    function: str
    """The flow's or task's name."""
    key: str
    """What identifies the function across processes: a task's key, a flow's name."""
    name: str | None
    """The run's name; None for a task run's default, `{function}-{last 3 hex digits of id}`."""
    state: int
    """Position in STATE_TYPES."""
    state_name: str | None
    """None when it is the type's default."""
    message: str | None
    created: int
    started: int | None
    ended: int | None
    run_count: int
    seq: int
    """Number of states the run has been in: a write with a lower one is stale and ignored."""
    tags: str | None
    parameters: str | None
    result: str | None
    """JSON of the value of a completed run that is persisted."""
    result_file: str | None
    """JSON {"path", "sha256", "size"}: where a value over 64 KiB is instead; the path is relative to home."""
    error: str | None
    """JSON of the exception of a failed or crashed run."""
    history: str | None
    """JSON list of all states, each [type code, name, message, time, facts], when they are not the plain
    Pending, Running, final; see `states_of`."""
    details: str | None
    """JSON object of rarer facts: flow version, child_flow_run_id, why a result was not kept, ..."""
    digest: bytes | None
    """What it was given, digested: 16 bytes, none for a call with nothing; None when it cannot be digested."""
    owner: int
    """The number of the opened store that writes it; see `RunStore.reap`."""
    deployment_id: bytes | None = None
    """The deployment that it is a run of; None for most."""
    scheduled: int | None = None
    """When such a run was to begin."""
    idempotency_key: str | None = None
    """Of one deployment there is one run with it."""


class CachedRow(NamedTuple):
    """One value kept under a key, for every run that asks for it."""

    key: str
    task: str
    """The key of the task that made it."""
    run_id: bytes
    """The run that made it."""
    created: int
    expires: int | None
    """The first moment at which it may not be used any more; None = never."""
    result: str | None
    """JSON of the value, where there is no file."""
    result_file: str | None
    """As of a run; a store that has files moves every cached value into one."""


class TransactionRow(NamedTuple):
    """A transaction: one that is open when its owner dies was interrupted, and its hooks were not run."""

    id: bytes
    key: str | None
    run_id: bytes | None
    """The run whose body opened it."""
    state: int
    """ACTIVE, COMMITTED, ROLLED_BACK or INTERRUPTED."""
    created: int
    ended: int | None
    owner: int
    data: str | None
    """JSON object of what was put into it with `set`."""
    hooks: str | None
    """JSON list of the names of the hooks that it is to run."""


ACTIVE, COMMITTED, ROLLED_BACK, INTERRUPTED = range(4)


def word_for(transaction: TransactionRow) -> str:
    """What the details of its members say of how it ended."""
    return "rolled_back" if transaction.state == ROLLED_BACK else "committed"


class LogRow(NamedTuple):
    """One line logged by a run."""

    flow_run_id: bytes | None
    task_run_id: bytes | None
    timestamp: int
    level: int
    logger: str
    message: str
    extra: str | None = None
    """JSON object of what else the line tells."""
    id: bytes = b""
    """Given by the store when the line is written: the lines of one process have them in the order of its commits."""


class ItemRow(NamedTuple):
    """One item that a generator run has handed over, kept so that a consumer can go on from it."""

    run_id: bytes
    n: int
    """Its place among the run's items."""
    data: str
    """JSON."""


# --- times ---------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def moment(column: int) -> datetime:
    """The aware UTC time of a column, to the microsecond (dividing by a million would round)."""
    return _EPOCH + timedelta(microseconds=column)


def microseconds(time: datetime) -> int:
    """The column of an aware time."""
    return (time - _EPOCH) // _MICROSECOND


def maybe_moment(column: int | None) -> datetime | None:
    """`moment`, of a column that may be null."""
    return None if column is None else moment(column)


# --- states --------------------------------------------------------------------------------


def state_of(row: RunRow) -> State[Any]:
    """The run's newest state, without data: `client.read_result` reads that."""
    entries = history_of(row)
    return state_at(row, len(entries) - 1, entries[-1])


def states_of(row: RunRow) -> list[State[Any]]:
    """All states the run has been in, oldest first, without data."""
    return [state_at(row, sequence, entry) for sequence, entry in enumerate(history_of(row))]


def history_of(row: RunRow) -> list[Sequence[Any]]:
    """A list of (type code, name, message, time, facts); the `history` column when there is one.

    Nearly every run is Pending, Running, then ended: its times and its newest state say all.
    """
    if row.history is not None:
        history: list[Sequence[Any]] = _loads(row.history)
        return history
    entries: list[Sequence[Any]] = [(STATE_CODES[StateType.PENDING], None, None, row.created)]
    if row.started is not None:
        entries.append((STATE_CODES[StateType.RUNNING], None, None, row.started))
    if row.ended is not None:
        entries.append((row.state, None, None, row.ended))
    entries[-1] = (row.state, row.state_name, row.message, entries[-1][3])
    return entries


def state_at(row: RunRow, sequence: int, entry: Sequence[Any]) -> State[Any]:
    """One of `states_of`, counted from 0, of which the run's history has an entry."""
    code: int = entry[0]
    facts: dict[str, Any] | None = entry[4] if len(entry) > 4 else None
    return State(
        type=STATE_TYPES[code],
        name=entry[1] or "",
        message=entry[2],
        timestamp=moment(entry[3]),
        state_details=_state_details(row, facts or {}),
        id=state_id(row.id, sequence),
    )


def _state_details(row: RunRow, facts: dict[str, Any]) -> StateDetails:
    is_flow = row.kind == FLOW
    return StateDetails(
        flow_run_id=maybe_uuid(row.id if is_flow else row.flow_run_id),
        task_run_id=None if is_flow else maybe_uuid(row.id),
        child_flow_run_id=_child_flow_run_id(row),
        parent_task_run_id=maybe_uuid(row.parent_id) if is_flow else None,
        **details_from(facts),
    )


def moved(
    row: RunRow,
    state: StateType,
    at: int,
    *,
    name: str | None = None,
    message: str | None = None,
    facts: dict[str, Any] | None = None,
) -> RunRow:
    """`row` in one more state: what a store writes for a run that nobody runs here.

    A run that goes back to a state that is not final has no end, value or error any more.
    """
    code = STATE_CODES[state]
    ended = code >= FIRST_FINAL
    entries = history_of(row)
    at = max(at, entries[-1][3])  # a history does not go back
    is_bare = row.history is None and row.ended is None and row.state_name is None and row.message is None
    is_plain = ended and is_bare and row.seq <= _MOST_PLAIN
    history = None if is_plain else json_of([*entries, [code, name, message, at, facts]])
    changed = row._replace(
        state=code, state_name=name, message=message, seq=row.seq + 1, ended=at if ended else None, history=history
    )
    return changed if ended else changed._replace(result=None, result_file=None, error=None)


# --- runs ----------------------------------------------------------------------------------


def default_task_run_name(function: str, run_id: bytes) -> str:
    """The name of a task run that was given none."""
    return f"{function}-{run_id.hex()[-3:]}"


def flow_run_of(row: RunRow) -> FlowRun:
    """The record of a flow's run (a row of kind FLOW)."""
    details = details_of(row) | birth_of(row)
    parent = details.get("parent_flow_run_id")
    return FlowRun(
        **_common(row),
        name=row.name or row.function,
        flow_name=row.function,
        flow_version=details.get("version"),
        parameters=parameters_of(row),
        parent_flow_run_id=maybe_uuid(row.flow_run_id) if parent is None else UUID(parent),
        parent_task_run_id=maybe_uuid(row.parent_id) or _uuid_of_text(details.get("parent_task_run_id")),
        deployment_id=maybe_uuid(row.deployment_id),
        expected_start_time=maybe_moment(row.scheduled),
    )


def birth_of(row: RunRow) -> dict[str, Any]:
    """How a run of a deployment came to be: told by its first state, which whoever runs it keeps."""
    entry = history_of(row)[0] if row.deployment_id is not None else ()
    return (entry[4] if len(entry) > 4 else None) or {}


def parameters_of(row: RunRow) -> dict[str, Any]:
    """What a flow run was given, by name, as anybody may see it.

    A run that waits has its secrets in its row, for whoever will begin it.
    """
    recorded: dict[str, Any] = {} if row.parameters is None else _loads(row.parameters)
    return hide(recorded, birth_of(row).get("secret", ()))


def task_run_of(row: RunRow) -> TaskRun:
    """The record of a task's run (a row of kind TASK or STAND_IN)."""
    return TaskRun(
        **_common(row),
        name=row.name or default_task_run_name(row.function, row.id),
        task_name=row.function,
        task_key=row.key,
        flow_run_id=maybe_uuid(row.flow_run_id),
        # Called by the flow's body itself, it has no task above it.
        parent_task_run_id=None if row.parent_id == row.flow_run_id else maybe_uuid(row.parent_id),
        child_flow_run_id=_child_flow_run_id(row),
    )


def log_record_of(row: LogRow) -> LogRecord:
    """The record of a log line."""
    return LogRecord(
        timestamp=moment(row.timestamp),
        level=row.level,
        name=row.logger,
        message=row.message,
        flow_run_id=maybe_uuid(row.flow_run_id),
        task_run_id=maybe_uuid(row.task_run_id),
        extra={} if row.extra is None else _loads(row.extra),
    )


def _common(row: RunRow) -> dict[str, Any]:
    return {
        "id": UUID(bytes=row.id),
        "state": state_of(row),
        "run_count": row.run_count,
        "tags": () if row.tags is None else tuple(_loads(row.tags)),
        "created": moment(row.created),
        "start_time": maybe_moment(row.started),
        "end_time": maybe_moment(row.ended),
    }


def _loads(text: str) -> Any:
    import json  # not orjson: integers of any size; at first use: importing asyncflow is to be quick

    return json.loads(text)


def details_of(row: RunRow) -> dict[str, Any]:
    """The rarer facts that a row tells."""
    details: dict[str, Any] = {} if row.details is None else _loads(row.details)
    return details


def _child_flow_run_id(row: RunRow) -> UUID | None:
    return None if row.kind == FLOW else _uuid_of_text(details_of(row).get("child_flow_run_id"))


def _uuid_of_text(value: str | None) -> UUID | None:
    return None if value is None else UUID(value)


def maybe_uuid(value: bytes | None) -> UUID | None:
    """The id in a column that may be null."""
    return None if value is None else UUID(bytes=value)


# --- what a column can hold ----------------------------------------------------------------

_INTEGER = range(-(2**63), 2**63)


def json_of(value: Any) -> str:
    """Dicts and lists of scalars as JSON, for a column; half surrogate pairs escaped as `storable` does."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return orjson.dumps(_storable_parts(value)).decode()


def _storable_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {storable(name): _storable_parts(part) for name, part in cast("Any", value).items()}
    if isinstance(value, list):
        return [_storable_parts(part) for part in cast("Any", value)]
    return storable(value) if isinstance(value, str) else value


def storable(value: Any) -> Any:
    """`value` as any store can keep it: half surrogate pairs escaped, integers within 64 bits.

    A log message or a name may hold such a thing. It must not keep the rows beside it from disk.
    """
    if value is None or isinstance(value, bytes | float):
        return value
    if isinstance(value, int):
        return value if value in _INTEGER else max(min(value, _INTEGER[-1]), _INTEGER[0])
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
