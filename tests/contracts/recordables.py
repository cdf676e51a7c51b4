"""What the contract suites put into a store: rows, and a live run as small as one can be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from asyncflow._backend.inline import InlineHost, drive
from asyncflow._rows import STATE_CODES, TASK, CachedRow, RunRow
from asyncflow.abc import ResultStore, RunStore, Ticket
from asyncflow.clock import SystemClock
from asyncflow.ids import new_id
from asyncflow.states import StateType

START = 1_760_000_000_000_000
"""Microseconds since 1970: when the runs of the tests begin."""


def run_row(**columns: Any) -> RunRow:
    """The row of a plain completed task run, but for `columns`."""
    row = RunRow(
        id=new_id(), kind=TASK, parent_id=None, flow_run_id=None, function="fetch", key="shop.fetch", name=None,
        state=STATE_CODES[StateType.COMPLETED], state_name=None, message=None,
        created=START, started=START + 5, ended=START + 9, run_count=1, seq=3,
        tags=None, parameters=None, result="null", result_file=None, error=None, history=None, details=None,
        digest=None, owner=0,
    )  # fmt: skip
    return row._replace(**columns)


def read_result(results: ResultStore, row: RunRow | CachedRow) -> str | None:
    """The text that `results` reads for `row`, where no loop runs."""
    host = InlineHost(SystemClock())
    text: str | None = drive(results.read(row, host))
    return text


def write_results(results: ResultStore, batch: Sequence[tuple[bytes, RunRow]]) -> list[RunRow]:
    """What a store does with `results` in one turn; gives the rows it commits."""
    rows = results.write(batch)
    results.publish([(root, row) for (root, _), row in zip(batch, rows, strict=True)])
    return rows


class LiveRun:
    """A run as a store sees it; assign to `current` to change it."""

    def __init__(self, *rows: RunRow, root_id: bytes | None = None, journalled: int = 0) -> None:
        self.queued = False
        self.journalled = journalled
        self.current: Sequence[RunRow] = rows
        self.root_id = rows[0].id if root_id is None else root_id

    def rows(self) -> Sequence[RunRow]:
        return self.current


class Waiter:
    """Waits for tickets: `ticket()` makes one, `wait()` blocks until all of them are resolved."""

    def __init__(self) -> None:
        self.calls: list[list[Ticket]] = []
        self._left = threading.Semaphore(0)
        self._made = 0

    def ticket(self) -> Ticket:
        self._made += 1
        return Ticket(self.wake)

    def wake(self, tickets: list[Ticket]) -> None:
        self.calls.append(tickets)
        self._left.release(len(tickets))

    def wait(self, timeout: float = 20) -> list[Ticket]:
        """The tickets, in the order they were resolved."""
        for _ in range(self._made):
            assert self._left.acquire(timeout=timeout), f"no acknowledgement within {timeout} seconds"
        self._made = 0
        return [ticket for call in self.calls for ticket in call]


def record(store: RunStore, *rows: RunRow) -> None:
    """Put each row as a run of its own and wait until all are on disk."""
    for row in rows:
        store.put(LiveRun(row))
    settle(store)


def settle(store: RunStore) -> None:
    waiter = Waiter()
    store.confirm(waiter.ticket())
    assert [ticket.error for ticket in waiter.wait()] == [None]
