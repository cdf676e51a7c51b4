"""The database's schema: a table of runs, some of what else there is, and views for people who open it.

A run is one row, with integer codes and 16-byte ids, because that is what a task run may cost:
about 235 bytes with its indexes, and 20 in the journal. The views tell the same with text ids, state
names and ISO times, so that any SQLite tool shows what happened. Nothing in asyncflow reads them.

The table is clustered on the id (WITHOUT ROWID): ids grow with time, so rows are appended, and
neither the key nor a row number is kept twice. Each secondary index ends with the id by itself,
so `run_of_parent` is really (parent_id, id): the children of a run in the order they were made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow._rows import FLOW, STATE_CODES, STATE_TYPES
from asyncflow.states import StateType

if TYPE_CHECKING:
    import sqlite3

__all__ = ["APPLICATION_ID", "VERSION", "migrate"]

APPLICATION_ID = 0x41464C57
"""In the file's header: tells our database from any other SQLite file."""


def _text_id(column: str) -> str:
    """SQL for an id as people write it; SQLite has no function that does."""
    digits = f"hex({column})"
    parts = "||'-'||".join(f"substr({digits},{start},{size})" for start, size in _GROUPS)
    return f"CASE WHEN {column} IS NOT NULL THEN lower({parts}) END"


_GROUPS = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))


def _time(column: str) -> str:
    return f"strftime('%Y-%m-%dT%H:%M:%S',({column})/1000000,'unixepoch')||printf('.%06dZ',({column})%1000000)"


def _choose(column: str, names: list[str]) -> str:
    return f"CASE {column} " + " ".join(f"WHEN {code} THEN '{name}'" for code, name in enumerate(names)) + " END"


def _state_type(column: str) -> str:
    return _choose(column, [type_.value for type_ in STATE_TYPES])


def _state_name(name: str, code: str) -> str:
    return f"coalesce({name}, {_choose(code, [type_.value.title() for type_ in STATE_TYPES])})"


_NEWEST = f"""
    {_state_type("state")} AS state_type, {_state_name("state_name", "state")} AS state_name,
    message AS state_message, run_count, tags"""
_TIMES = f"""
    {_time("created")} AS created, {_time("started")} AS start_time, {_time("ended")} AS end_time"""

_FLOW_RUNS = f"""
CREATE VIEW flow_runs AS SELECT
    {_text_id("id")} AS id, name, function AS flow_name, json_extract(details, '$.version') AS flow_version,
    {_NEWEST}, {_TIMES}, parameters, result, result_file, error,
    coalesce(json_extract(details, '$.parent_flow_run_id'), {_text_id("flow_run_id")}) AS parent_flow_run_id,
    {_text_id("parent_id")} AS parent_task_run_id,
    {_text_id("deployment_id")} AS deployment_id, {_time("scheduled")} AS scheduled_time, idempotency_key
FROM run WHERE kind = {FLOW}"""

_TASK_RUNS = f"""
CREATE VIEW task_runs AS SELECT
    {_text_id("id")} AS id, coalesce(name, function||'-'||substr(lower(hex(id)), -3)) AS name,
    function AS task_name, key AS task_key,
    {_NEWEST}, {_TIMES}, result, result_file, error,
    {_text_id("flow_run_id")} AS flow_run_id,
    CASE WHEN parent_id IS NOT flow_run_id THEN {_text_id("parent_id")} END AS parent_task_run_id,
    json_extract(details, '$.child_flow_run_id') AS child_flow_run_id
FROM run WHERE kind <> {FLOW}"""

# The history of a plain run as the `history` column would have it; see `asyncflow._rows._history`.
_PENDING = f"json_array({STATE_CODES[StateType.PENDING]}, NULL, NULL, created)"
_RUNNING = f"json_array({STATE_CODES[StateType.RUNNING]}, NULL, NULL, started)"
_LAST = "json_array(state, state_name, message, coalesce(ended, started, created))"
_PLAIN = f"""CASE
    WHEN ended IS NOT NULL AND started IS NOT NULL THEN json_array({_PENDING}, {_RUNNING}, {_LAST})
    WHEN ended IS NOT NULL OR started IS NOT NULL THEN json_array({_PENDING}, {_LAST})
    ELSE json_array({_LAST}) END"""

_STATES = f"""
CREATE VIEW states AS SELECT
    {_text_id("run.id")} AS run_id, {_choose("kind", ["flow run", "task run", "task run"])} AS run_kind,
    entry.key AS sequence,
    {_state_type("json_extract(entry.value, '$[0]')")} AS type,
    {_state_name("json_extract(entry.value, '$[1]')", "json_extract(entry.value, '$[0]')")} AS name,
    json_extract(entry.value, '$[2]') AS message,
    {_time("json_extract(entry.value, '$[3]')")} AS timestamp
FROM run, json_each(coalesce(history, {_PLAIN})) AS entry
ORDER BY run.id, entry.key"""

_LOGS = f"""
CREATE VIEW logs AS SELECT
    {_time("timestamp")} AS timestamp, level, logger AS name, message, extra,
    {_text_id("flow_run_id")} AS flow_run_id, {_text_id("task_run_id")} AS task_run_id
FROM log ORDER BY log.timestamp, log.id"""

_EVENTS = f"""
CREATE VIEW events AS SELECT
    {_time("event.at")} AS timestamp, name, resource, payload,
    {_text_id("flow_run_id")} AS flow_run_id, {_text_id("task_run_id")} AS task_run_id
FROM event ORDER BY journal, n"""

_DEPLOYMENTS = f"""
CREATE VIEW deployments AS SELECT
    {_text_id("id")} AS id, flow AS flow_name, name, entrypoint, data, paused, concurrency_limit, collision,
    {_time("created")} AS created, {_time("updated")} AS updated
FROM deployment ORDER BY flow, name"""

_VIEWS = {
    "flow_runs": _FLOW_RUNS, "task_runs": _TASK_RUNS, "states": _STATES, "logs": _LOGS, "events": _EVENTS,
    "deployments": _DEPLOYMENTS,
}  # fmt: skip

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE run (
            id BLOB NOT NULL PRIMARY KEY, kind INTEGER, parent_id BLOB, flow_run_id BLOB,
            function TEXT, key TEXT, name TEXT, state INTEGER, state_name TEXT, message TEXT,
            created INTEGER, started INTEGER, ended INTEGER, run_count INTEGER, seq INTEGER,
            tags TEXT, parameters TEXT, result TEXT, result_file TEXT, error TEXT, history TEXT, details TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX run_of_parent ON run (parent_id)",
        "CREATE INDEX run_of_flow_run ON run (flow_run_id)",
        "CREATE INDEX run_of_flow ON run (id) WHERE kind = 0",
        "CREATE INDEX run_not_ended ON run (id) WHERE state < 5",
        """CREATE TABLE log (
            id BLOB NOT NULL PRIMARY KEY,
            flow_run_id BLOB, task_run_id BLOB, timestamp INTEGER, level INTEGER, logger TEXT, message TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX log_of_flow_run ON log (flow_run_id, timestamp)",
        "CREATE INDEX log_of_task_run ON log (task_run_id, timestamp) WHERE task_run_id IS NOT NULL",
    ),
    (
        "ALTER TABLE run ADD COLUMN digest BLOB",
        "ALTER TABLE run ADD COLUMN owner INTEGER NOT NULL DEFAULT 0",
        # A number is never used again: what a dead process wrote must not look like a living one's.
        """CREATE TABLE process (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            lock TEXT NOT NULL, pid INTEGER, host TEXT, boot TEXT, born INTEGER, opened INTEGER
        )""",
        """CREATE TABLE cache (
            key TEXT NOT NULL PRIMARY KEY, task TEXT, run_id BLOB,
            created INTEGER, expires INTEGER, result TEXT, result_file TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX cache_expiring ON cache (expires, created)",
        """CREATE TABLE txn (
            id BLOB NOT NULL PRIMARY KEY, key TEXT, run_id BLOB, state INTEGER,
            created INTEGER, ended INTEGER, owner INTEGER, data TEXT, hooks TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX txn_of_key ON txn (key) WHERE key IS NOT NULL",
        "CREATE INDEX txn_of_state ON txn (state) WHERE state <> 1",
    ),
    (
        "ALTER TABLE log ADD COLUMN extra TEXT",
        # A row for each commit that changed states or brought events; a number is never used again, so cursors last.
        """CREATE TABLE journal (
            id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, owner INTEGER NOT NULL, changes BLOB NOT NULL
        )""",
        """CREATE TABLE event (
            journal INTEGER NOT NULL, n INTEGER NOT NULL, at INTEGER, name TEXT, resource TEXT, payload TEXT,
            flow_run_id BLOB, task_run_id BLOB, PRIMARY KEY (journal, n)
        ) WITHOUT ROWID""",
        "CREATE INDEX event_of_flow_run ON event (flow_run_id) WHERE flow_run_id IS NOT NULL",
        "CREATE INDEX event_of_task_run ON event (task_run_id) WHERE task_run_id IS NOT NULL",
        """CREATE TABLE item (
            run_id BLOB NOT NULL, n INTEGER NOT NULL, data TEXT, PRIMARY KEY (run_id, n)
        ) WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE run ADD COLUMN deployment_id BLOB",
        "ALTER TABLE run ADD COLUMN scheduled INTEGER",
        "ALTER TABLE run ADD COLUMN idempotency_key TEXT",
        # Partial ones all of them: a run that no deployment made has no place in any.
        "CREATE INDEX run_of_deployment ON run (deployment_id) WHERE deployment_id IS NOT NULL",
        # Those that wait are its part with owner 0, in the order they are due; all others have somebody's number.
        """CREATE INDEX run_of_deployment_open ON run (deployment_id, owner, scheduled)
            WHERE deployment_id IS NOT NULL AND state < 5""",
        """CREATE INDEX run_not_late ON run (scheduled)
            WHERE deployment_id IS NOT NULL AND state = 0 AND state_name IS NULL""",
        """CREATE INDEX run_was_due ON run (deployment_id, scheduled)
            WHERE deployment_id IS NOT NULL AND state = 0 AND owner = 0 AND (scheduled <= created OR seq > 1)""",
        """CREATE UNIQUE INDEX run_of_idempotency_key ON run (deployment_id, idempotency_key)
            WHERE idempotency_key IS NOT NULL""",
        """CREATE TABLE deployment (
            id BLOB NOT NULL PRIMARY KEY, flow TEXT, name TEXT, entrypoint TEXT, data TEXT, paused INTEGER,
            concurrency_limit INTEGER, collision TEXT, created INTEGER, updated INTEGER
        ) WITHOUT ROWID""",
        """CREATE TABLE rule (
            id BLOB NOT NULL PRIMARY KEY, deployment_id BLOB NOT NULL, kind INTEGER, slug TEXT,
            data TEXT, active INTEGER, state TEXT
        ) WITHOUT ROWID""",
        "CREATE INDEX rule_of_deployment ON rule (deployment_id)",
        # A number is never used again: an answer must not be taken for another request's.
        """CREATE TABLE request (
            id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, run_id BLOB, kind TEXT, data TEXT,
            asker INTEGER, at INTEGER, answer TEXT
        )""",
        """CREATE TABLE input (
            run_id BLOB NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL, data TEXT, sender BLOB, at INTEGER,
            PRIMARY KEY (run_id, key, n)
        ) WITHOUT ROWID""",
    ),
)
"""What brings the tables from each version to the next: literal text, never edited, only added to."""

VERSION = len(_MIGRATIONS)


def migrate(connection: sqlite3.Connection, found: int) -> None:
    """Bring the schema from version `found` to `VERSION`, inside the transaction that is open."""
    for statements in _MIGRATIONS[found:]:
        for statement in statements:
            connection.execute(statement)
    for name, view in _VIEWS.items():  # views hold no data, so they are made anew
        connection.execute(f"DROP VIEW IF EXISTS {name}")
        connection.execute(view)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
