"""The SQL of a batch: one statement with a row for each run, for as many rows as are put in at once.

Statements exist for powers of two only, so that each is prepared once; the last row is repeated up
to the next one, which the sequence number makes harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any

from asyncflow._journal import EMITTED
from asyncflow._rows import ItemRow, LogRow, RunRow

__all__ = [
    "characters", "insert_event", "insert_item", "insert_log", "insert_run", "plain_values", "put_values",
    "rare_values", "seize", "statements", "upsert", "upsert_plain",
]  # fmt: skip

CHUNK = 1024
"""Most rows in one statement: 24 columns each, and SQLite takes 32,766 values. It keeps 3 KB for each
of them, in each statement it has prepared: 7 MB when all sizes have occurred."""


def statements(sql: Callable[[int], str], rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[str, list[Any]]]:
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        size = 1 << (len(chunk) - 1).bit_length()
        values = list(chain.from_iterable(chunk))
        values += chunk[-1] * (size - len(chunk))
        yield sql(size), values


_PUT = RunRow._fields[: RunRow._fields.index("deployment_id")]
"""What a run's own process writes of it. What comes after these is written when it is made for its deployment,
and not again: the row of a run that is not one's costs nothing more for it."""
_RARE = ("name", "state_name", "message", "tags", "parameters", "result_file", "error", "history", "details")
_COMMON = tuple(name for name in _PUT if name not in _RARE)
rare_values = itemgetter(*(RunRow._fields.index(name) for name in _RARE))
put_values = itemgetter(slice(len(_PUT)))
"""The columns that `upsert` and `seize` write."""


def plain_values(row: RunRow) -> tuple[Any, ...]:
    """A plain run's columns, the rare ones (all NULL) left out, ids as `bytearray`.

    `sqlite3` looks for an adapter for every value that is not exactly an int, float, str or
    bytearray, and a None or bytes costs it ten times the binding itself.
    """
    parent, flow_run, digest = row[2], row[3], row[22]
    return (
        bytearray(row[0]),
        row[1],
        None if parent is None else bytearray(parent),
        None if flow_run is None else bytearray(flow_run),
        row[4],
        row[5],
        row[7],
        *row[10:15],
        row[17],
        None if digest is None else bytearray(digest),
        row[23],
    )


def characters(rows: Sequence[RunRow], rare: Sequence[RunRow], others: Iterable[Sequence[Any]]) -> int:
    """About how much text a batch holds; of the runs that are not `rare` only the result can be long."""
    columns = chain((row.result for row in rows), chain.from_iterable(map(rare_values, rare)), chain(*others))
    return sum(len(text) for text in columns if isinstance(text, str))


@cache
def upsert_plain(size: int) -> str:
    return _upsert_of(_COMMON, size)


@cache
def upsert(size: int) -> str:
    return _upsert_of(_PUT, size)


@cache
def insert_run(size: int) -> str:
    """Of runs that are not on record: the last one may be among them again, which does nothing."""
    return _insert("OR IGNORE", "run", RunRow._fields, size)


@cache
def seize(size: int) -> str:
    """`upsert`, for runs of another owner's."""
    return _upsert_of(_PUT, size, "excluded.seq > run.seq")


# A run that another process has taken over is that one's: what its former owner still writes is ignored.
_NEWER_AND_OURS = "excluded.seq > run.seq AND excluded.owner = run.owner"


def _upsert_of(names: tuple[str, ...], size: int, condition: str = _NEWER_AND_OURS) -> str:
    changes = ", ".join(f"{name} = {f'excluded.{name}' if name in names else 'NULL'}" for name in _PUT if name != "id")
    return (
        f"INSERT INTO run ({', '.join(names)}) VALUES {_places(len(names), size)} "
        f"ON CONFLICT (id) DO UPDATE SET {changes} WHERE {condition}"
    )


@cache
def insert_log(size: int) -> str:
    return _insert("OR IGNORE", "log", LogRow._fields, size)


@cache
def insert_event(size: int) -> str:
    return _insert("OR IGNORE", "event", ("journal", "n", *EMITTED), size)


@cache
def insert_item(size: int) -> str:
    return _insert("OR REPLACE", "item", ItemRow._fields, size)


def _insert(or_else: str, table: str, names: tuple[str, ...], size: int) -> str:
    return f"INSERT {or_else} INTO {table} ({', '.join(names)}) VALUES {_places(len(names), size)}"


def _places(columns: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)
