"""The SQLite store's requests, inputs and bells: see `asyncflow._exchange_port`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from asyncflow._deployment_rows import InputRow, RequestRow
from asyncflow._exchange_port import Exchange
from asyncflow.stores import _deployment_queries as queries
from asyncflow.stores import _exchange_jobs as jobs
from asyncflow.stores._access import Access
from asyncflow.stores._bells import Bell

__all__ = ["SQLiteExchange"]


class SQLiteExchange(Access, Exchange):
    """Reads with a connection of its own, writes by the writer's thread."""

    _bell: Bell

    def ask(self, owner: int, run_id: bytes, kind: str, data: str | None, now: int) -> int:
        row = RequestRow(0, owner, run_id, kind, data, self.owner, now, None)
        return self._call("asking another process", lambda connection: jobs.ask(connection, row))

    def read_requests(self) -> list[RequestRow]:
        return [RequestRow._make(row) for row in self._read("reading requests", queries.READ_REQUESTS, [self.owner])]

    def answer(self, request_id: int, text: str) -> None:
        self._call("answering a request", lambda connection: jobs.answer(connection, request_id, text))

    def read_answer(self, request_id: int) -> str | None:
        rows = self._read("reading an answer", queries.READ_ANSWER, [request_id])
        return rows[0][0] if rows else None

    def forget(self, request_id: int) -> None:
        self._call("forgetting a request", lambda connection: jobs.forget(connection, request_id))

    def add_input(self, run_id: bytes, key: str, data: str, sender: bytes | None, now: int) -> int:
        row = InputRow(run_id, key, 0, data, sender, now)
        return self._call("keeping an input", lambda connection: jobs.add_input(connection, row))

    def read_inputs(self, run_id: bytes, key: str, after: int, limit: int) -> list[InputRow]:
        rows = self._read("reading inputs", queries.READ_INPUTS, [run_id, key, after, limit])
        return [InputRow._make(row) for row in rows]

    def ring(self, owners: Iterable[int] | None = None) -> None:
        if self._refusal is None:  # a forked child has nobody to speak for
            self._bell.ring(owners)

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        if self._refusal is not None:
            raise self._refusal()
        return self._bell.listen(wake)
