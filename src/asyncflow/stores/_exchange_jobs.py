"""What processes write for one another: functions of the writer's connection, each one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow._deployment_rows import InputRow, RequestRow
from asyncflow._rows import storable
from asyncflow.stores import _deployment_queries as queries
from asyncflow.stores._database import transaction
from asyncflow.stores._sql import fetch, marks

if TYPE_CHECKING:
    import sqlite3

__all__ = ["add_input", "answer", "ask", "forget"]

_UNREAD = "DELETE FROM request WHERE id = ? AND asker NOT IN (SELECT id FROM process)"


def ask(connection: sqlite3.Connection, row: RequestRow) -> int:
    """Keep a request; gives its number."""
    names = RequestRow._fields[1:]
    with transaction(connection):
        sql = f"INSERT INTO request ({', '.join(names)}) VALUES ({marks(names)})"
        return int(connection.execute(sql, list(map(storable, row[1:]))).lastrowid or 0)


def answer(connection: sqlite3.Connection, request_id: int, text: str) -> None:
    """As the port says."""
    with transaction(connection):
        sql = "UPDATE request SET answer = ? WHERE id = ? AND answer IS NULL"
        connection.execute(sql, [storable(text), request_id])
        connection.execute(_UNREAD, [request_id])


def forget(connection: sqlite3.Connection, request_id: int) -> None:
    """As the port says."""
    with transaction(connection):
        connection.execute("DELETE FROM request WHERE id = ?", [request_id])


def add_input(connection: sqlite3.Connection, row: InputRow) -> int:
    """Keep an input behind those of its run and key; gives its place."""
    kept = InputRow._make(map(storable, row))
    with transaction(connection):
        sql = "SELECT ifnull(max(n) + 1, 0) FROM input WHERE run_id = ? AND key = ?"
        ((n,),) = fetch(connection, sql, [kept.run_id, kept.key])
        connection.execute(f"INSERT INTO input ({queries.INPUT}) VALUES ({marks(kept)})", kept._replace(n=n))
        return int(n)
