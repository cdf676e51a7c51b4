"""Requests, inputs and bells of the store in memory: see `asyncflow._exchange_port`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import count

from asyncflow._deployment_rows import InputRow, RequestRow
from asyncflow._exchange_port import Exchange
from asyncflow._rows import storable
from asyncflow.stores._memory_rows import MemoryRows
from asyncflow.stores._watchers import Watchers

__all__ = ["MemoryExchange"]


class MemoryExchange(MemoryRows, Exchange):
    """Between those who use the same store: nobody else can reach it."""

    def __init__(self) -> None:
        super().__init__()
        self._requests: dict[int, RequestRow] = {}
        self._next_request = count(1).__next__
        self._inputs: dict[tuple[bytes, str], list[InputRow]] = {}
        self._listeners = Watchers()

    def ask(self, owner: int, run_id: bytes, kind: str, data: str | None, now: int) -> int:
        self._check()
        with self._lock:
            row = RequestRow(self._next_request(), owner, run_id, kind, data, self.owner, now, None)
            self._requests[row.id] = RequestRow._make(map(storable, row))
            return row.id

    def read_requests(self) -> list[RequestRow]:
        self._check()
        with self._lock:
            known = self._requests.values()
            return [row for row in known if row.owner == self.owner and row.answer is None]

    def answer(self, request_id: int, text: str) -> None:
        self._check()
        with self._lock:
            row = self._requests.get(request_id)
            if row is None or row.answer is not None:
                return
            self._requests[request_id] = row._replace(answer=str(storable(text)))
            self._forget_requests()

    def read_answer(self, request_id: int) -> str | None:
        self._check()
        row = self._requests.get(request_id)
        return None if row is None else row.answer

    def forget(self, request_id: int) -> None:
        self._check()
        with self._lock:
            self._requests.pop(request_id, None)

    def _forget_requests(self) -> None:
        """Delete what nobody will answer, and the answers that nobody will read."""
        here = self.owner
        gone = [
            row.id
            for row in self._requests.values()
            if row.owner != here or (row.answer is not None and row.asker != here)
        ]
        for each in gone:
            del self._requests[each]

    def add_input(self, run_id: bytes, key: str, data: str, sender: bytes | None, now: int) -> int:
        self._check()
        row = InputRow._make(map(storable, (run_id, key, 0, data, sender, now)))
        with self._lock:
            rows = self._inputs.setdefault((row.run_id, row.key), [])
            rows.append(row._replace(n=len(rows)))
            return rows[-1].n

    def read_inputs(self, run_id: bytes, key: str, after: int, limit: int) -> list[InputRow]:
        self._check()
        with self._lock:
            return [row for row in self._inputs.get((run_id, storable(key)), ()) if row.n > after][:limit]

    def _inputs_kept(self) -> list[InputRow]:
        return [row for rows in self._inputs.values() for row in rows]

    def _forget_inputs(self, gone: set[bytes]) -> None:
        """Delete what was sent to runs that are deleted."""
        for place in [each for each in self._inputs if each[0] in gone]:
            del self._inputs[place]

    def ring(self, owners: Iterable[int] | None = None) -> None:
        is_here = not self._closed and self._pid == os.getpid()
        if is_here and (owners is None or self.owner in owners):
            self._listeners.wake()

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._check()
        return self._listeners.add(wake)
