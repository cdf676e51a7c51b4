"""What the contract suites put into a store: rows, and a live run as small as one can be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from asyncflow._backend.inline import InlineHost, drive
from asyncflow._deployment_rows import ENQUEUE, NOBODY, SCHEDULE, DeploymentRow, RuleRow
from asyncflow._rows import FLOW, STATE_CODES, TASK, CachedRow, RunRow, json_of, moved
from asyncflow.abc import ResultStore, RunStore, Ticket
from asyncflow.clock import SystemClock
from asyncflow.ids import new_id
from asyncflow.states import StateType

START = 1_760_000_000_000_000
"""Microseconds since 1970: when the runs of the tests begin."""
SCHEDULED = STATE_CODES[StateType.SCHEDULED]


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


def deployment_row(name: str = "nightly", **columns: Any) -> DeploymentRow:
    """The row of a deployment without a limit, but for `columns`."""
    row = DeploymentRow(
        id=sha256(name.encode()).digest()[:16], flow="totals", name=name, entrypoint="shop:totals", data="{}", paused=0,
        concurrency_limit=None, collision=ENQUEUE, created=START, updated=START,
    )  # fmt: skip
    return row._replace(**columns)


def rule_row(deployment: DeploymentRow, slug: str = "daily", **columns: Any) -> RuleRow:
    """The row of a schedule of a deployment, but for `columns`."""
    rule_id = sha256(deployment.id + repr(slug).encode()).digest()[:16]
    return RuleRow(rule_id, deployment.id, SCHEDULE, slug, '{"cron":"@daily"}', 1, "0")._replace(**columns)


def waiting_row(deployment: DeploymentRow, due: int = START, key: str | None = None, **columns: Any) -> RunRow:
    """The row of a run of a deployment's that waits to be started, but for `columns`."""
    history = json_of([[SCHEDULED, None, None, START, {"scheduled_time": due}]])
    row = run_row(
        kind=FLOW, function=deployment.flow, key=deployment.flow, name="calm-otter", state=SCHEDULED, started=None,
        ended=None, run_count=0, seq=1, parameters="{}", result=None, history=history, owner=NOBODY,
        deployment_id=deployment.id, scheduled=due, idempotency_key=key,
    )  # fmt: skip
    return row._replace(**columns)


def on(row: RunRow, state: StateType, at: int, name: str | None = None) -> RunRow:
    """`row` in its next state, as the process that runs it writes it."""
    after = moved(row, state, at, name=name)
    return after._replace(run_count=max(row.run_count, 1), started=row.started or at)


def go_on(store: RunStore, run_id: bytes, state: StateType, at: int, name: str | None = None) -> RunRow:
    """Have a run go to a state, as its owner writes it; gives its row."""
    known = store.read_run(run_id)
    assert known is not None
    store.put(LiveRun(after := on(known, state, at, name), journalled=known.seq))
    settle(store)
    return after
