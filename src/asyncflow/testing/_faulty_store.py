"""A store on a disk that fails as a test wants it to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from asyncflow._backend.elsewhere import no_longer_awaited
from asyncflow._backend.virtual_clock import VirtualClock
from asyncflow._deployment_rows import DeploymentRow, Fired, InputRow, RequestRow, RuleRow
from asyncflow._journal import Cursor, EventRow
from asyncflow._rows import CachedRow, ItemRow, LogRow, RunRow, TransactionRow
from asyncflow.abc import LogQuery, Reaped, Recordable, RunQuery, RunStore, Ticket
from asyncflow.clock import SystemClock
from asyncflow.exceptions import OptionError, StoreBusyError, StoreError
from asyncflow.stores.memory import MemoryStore
from asyncflow.testing._faults import Fault, FaultPlan, Kind

__all__ = ["FaultyStore"]

T = TypeVar("T")
_TRY_AGAIN = 0.05
"""Seconds after which a write that failed is tried again."""
_FAILURES = (Kind.FAIL, Kind.BUSY)


class FaultyStore(RunStore):
    """A store that does wrong what `faults` say, and else what `inner` does.

        store = FaultyStore(MemoryStore(), [Fault.fail("put", after=3, times=10)])
        with Runtime(store=store):
            ...

    Writes go to `inner` in the order they came, one after the other, as to a disk: one that fails or
    takes its time holds up those behind it. What fails is tried again, and `last_error` says why
    meanwhile, so runs end with `DurabilityError` when it lasts too long for them. Each fault that
    came about is noted in `injected`, as the name of the operation and what went wrong.

    A runtime looks after such a store as after one on disk, every `upkeep_seconds`, which are
    operations too: `reap`, `read_oldest` and others.

    Args:
        inner: The store behind it.
        faults: What goes wrong.
        seed: For faults with a `chance`: the same one gives the same faults for the same operations.
        clock: What delays go by: the `VirtualClock` of the test, if it has one.
    """

    def __init__(
        self,
        inner: RunStore,
        faults: Iterable[Fault] = (),
        *,
        seed: int = 0,
        clock: VirtualClock | None = None,
    ) -> None:
        self.inner: RunStore = inner
        self.owner = inner.owner
        self.injected: list[tuple[str, str]] = []
        self.crashed: bool = False
        self._plan = FaultPlan(faults, seed)
        self._clock = clock
        self._error: StoreError | None = None
        self._queue: deque[tuple[str, Any]] = deque()
        self._is_paused = False
        # Re-entrant: what the store behind wakes may put something at once.
        self._lock = threading.RLock()

    def repair(self) -> None:
        """Have nothing go wrong any more, and write what waits."""
        with self._lock:
            self._plan.clear()
            self._go_on()

    def restarted(self) -> FaultyStore:
        """What a new process finds after a crash: the same store, of another owner, with nothing wrong.

        Opening a runtime on it ends what the crash has interrupted. For a `MemoryStore` behind; a home on
        disk is opened anew.
        """
        if not isinstance(self.inner, MemoryStore):
            raise OptionError("inner", self.inner, "a MemoryStore: open a new store on the home instead")
        self.crashed = True
        self.inner.owner += 1
        return FaultyStore(self.inner, clock=self._clock)

    # --- writes: in the order they came

    def put(self, item: Recordable) -> None:
        with self._lock:
            if not item.queued:  # its newest state is read when it is written
                item.queued = True
                self._enqueue("put", item)

    def put_log(self, row: LogRow) -> None:
        self._enqueue("put_log", row)

    def put_event(self, row: EventRow) -> None:
        self._enqueue("put_event", row)

    def put_item(self, row: ItemRow) -> None:
        self._enqueue("put_item", row)

    def confirm(self, ticket: Ticket) -> None:
        self._enqueue("confirm", ticket)

    def _enqueue(self, operation: str, what: Any) -> None:
        with self._lock:
            self._queue.append((operation, what))
            self._write()

    def _write(self) -> None:
        while self._queue and not self._is_paused:
            operation, what = self._queue[0]
            fault = None if self.crashed else self._fault(operation)
            if fault is not None and fault.kind in (*_FAILURES, Kind.DELAY):
                self._pause(fault, operation)
                return
            self._queue.popleft()
            if isinstance(what, Ticket) and (self.crashed or fault is not None):
                no_longer_awaited([what])
            elif not self.crashed and fault is None:
                self._error = None
                self._pass_on(operation, what)

    def _pass_on(self, operation: str, what: Any) -> None:
        if operation == "put":
            what.queued = False
        getattr(self.inner, operation)(what)

    def _pause(self, fault: Fault, operation: str) -> None:
        self._is_paused = True
        self._error = _error(fault, operation)
        if fault.kind is Kind.DELAY:  # it is done then, whatever else the plan says of it
            self._later(fault.seconds, self._write_first)
        else:
            self._later(_TRY_AGAIN, self._go_on)

    def _write_first(self) -> None:
        with self._lock:
            self._error = None
            if self._queue and not self.crashed:
                self._pass_on(*self._queue.popleft())
            self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            self._is_paused = False
            self._write()

    def _later(self, seconds: float, fn: Callable[[], object]) -> None:
        if self._clock is not None:
            self._clock.call_later(seconds, fn)
            return
        timer = threading.Timer(seconds, fn)
        timer.daemon = True
        timer.start()

    def _fault(self, operation: str) -> Fault | None:
        fault = self._plan.of(operation)
        if fault is not None:
            self.injected.append((operation, fault.kind.value))
            self.crashed = self.crashed or fault.kind is Kind.CRASH
        return fault

    @property
    def backlog(self) -> int:
        with self._lock:
            return self.inner.backlog + sum(not isinstance(what, Ticket) for _, what in self._queue)

    @property
    def last_error(self) -> StoreError | None:
        return self._error or self.inner.last_error

    # --- everything else: at once, or not

    def _ask(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        operation = method.__name__
        with self._lock:
            fault = None if self.crashed else self._fault(operation)
        if self.crashed:
            raise StoreError(operation, "the store", "the process has crashed")
        if fault is not None and fault.kind in _FAILURES:
            raise _error(fault, operation)
        if fault is not None and fault.seconds:
            (self._clock or SystemClock()).wait(threading.Event(), fault.seconds)
        return method(*args, **options)

    @property
    def dropped_logs(self) -> int:
        return self.inner.dropped_logs

    @property
    def dropped_events(self) -> int:
        return self.inner.dropped_events

    def read_run(self, run_id: bytes) -> RunRow | None:
        return self._ask(self.inner.read_run, run_id)

    def read_runs(self, query: RunQuery) -> list[RunRow]:
        return self._ask(self.inner.read_runs, query)

    def read_tree(self, run_id: bytes) -> list[RunRow]:
        return self._ask(self.inner.read_tree, run_id)

    def read_logs(self, query: LogQuery) -> list[LogRow]:
        return self._ask(self.inner.read_logs, query)

    def read_items(self, run_id: bytes, after: int, limit: int) -> list[ItemRow]:
        return self._ask(self.inner.read_items, run_id, after, limit)

    def read_journal(self, after: Cursor | None, limit: int) -> list[EventRow]:
        return self._ask(self.inner.read_journal, after, limit)

    def newest_cursor(self) -> Cursor:
        return self._ask(self.inner.newest_cursor)

    def cursor_since(self, at: int) -> Cursor:
        return self._ask(self.inner.cursor_since, at)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self.inner.watch(wake)

    def read_children(self, run_id: bytes) -> list[RunRow]:
        return self._ask(self.inner.read_children, run_id)

    def reap(self, now: int) -> Reaped:
        return self._ask(self.inner.reap, now)

    def read_interrupted(self) -> list[RunRow]:
        return self._ask(self.inner.read_interrupted)

    def claim(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        return self._ask(self.inner.claim, run_id, seq, now)

    def read_cached(self, key: str) -> CachedRow | None:
        return self._ask(self.inner.read_cached, key)

    def write_cached(self, row: CachedRow) -> None:
        self._ask(self.inner.write_cached, row)

    def write_transaction(self, row: TransactionRow, members: Sequence[bytes] = ()) -> None:
        self._ask(self.inner.write_transaction, row, members)

    def read_transactions(
        self, *, key: str | None = None, state: int | None = None, limit: int = 200
    ) -> list[TransactionRow]:
        return self._ask(self.inner.read_transactions, key=key, state=state, limit=limit)

    def size(self) -> int:
        return self._ask(self.inner.size)

    def count_outermost(self) -> int:
        return self._ask(self.inner.count_outermost)

    def delete_runs(self, root_ids: Sequence[bytes]) -> list[bytes]:
        return self._ask(self.inner.delete_runs, root_ids)

    def read_oldest(self, limit: int, before: int | None = None) -> list[bytes]:
        return self._ask(self.inner.read_oldest, limit, before)

    def delete_cached(
        self, expired_at: int | None = None, keys: Sequence[str] = (), *, made_before: int | None = None
    ) -> list[CachedRow]:
        return self._ask(self.inner.delete_cached, expired_at, keys, made_before=made_before)

    def delete_transactions(self, ended_before: int) -> int:
        return self._ask(self.inner.delete_transactions, ended_before)

    def delete_journal(self, before: int | None) -> int:
        return self._ask(self.inner.delete_journal, before)

    def give_back(self) -> int:
        return self._ask(self.inner.give_back)

    # --- deployments

    def write_deployment(
        self, row: DeploymentRow, rules: Sequence[RuleRow], *, keep_paused: bool = True
    ) -> DeploymentRow:
        return self._ask(self.inner.write_deployment, row, rules, keep_paused=keep_paused)

    def read_deployments(
        self, *, ids: Sequence[bytes] | None = None, flow: str | None = None, name: str | None = None
    ) -> list[DeploymentRow]:
        return self._ask(self.inner.read_deployments, ids=ids, flow=flow, name=name)

    def read_rules(self, deployment_ids: Sequence[bytes]) -> list[RuleRow]:
        return self._ask(self.inner.read_rules, deployment_ids)

    def pause_deployment(self, deployment_id: bytes, paused: bool, states: Mapping[bytes, str]) -> bool:
        return self._ask(self.inner.pause_deployment, deployment_id, paused, states)

    def delete_deployment(self, deployment_id: bytes, now: int) -> bool:
        return self._ask(self.inner.delete_deployment, deployment_id, now)

    def enqueue(self, rows: Sequence[RunRow]) -> list[RunRow]:
        return self._ask(self.inner.enqueue, rows)

    def fire(
        self, rule_id: bytes, before: str, after: str, rows: Sequence[RunRow], *, unless_running: bool = False
    ) -> Fired:
        return self._ask(self.inner.fire, rule_id, before, after, rows, unless_running=unless_running)

    def claim_due(self, deployment_ids: Sequence[bytes], now: int, limit: int) -> list[RunRow]:
        return self._ask(self.inner.claim_due, deployment_ids, now, limit)

    def next_due(
        self, deployment_ids: Sequence[bytes], after: int | None = None, *, now: int | None = None
    ) -> int | None:
        return self._ask(self.inner.next_due, deployment_ids, after, now=now)

    def requeue(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        return self._ask(self.inner.requeue, run_id, seq, now)

    def cancel_waiting(self, run_id: bytes, seq: int, now: int, message: str) -> RunRow | None:
        return self._ask(self.inner.cancel_waiting, run_id, seq, now, message)

    def mark_late(self, before: int, now: int) -> int:
        return self._ask(self.inner.mark_late, before, now)

    # --- requests, inputs, bells

    def ask(self, owner: int, run_id: bytes, kind: str, data: str | None, now: int) -> int:
        return self._ask(self.inner.ask, owner, run_id, kind, data, now)

    def read_requests(self) -> list[RequestRow]:
        return self._ask(self.inner.read_requests)

    def answer(self, request_id: int, text: str) -> None:
        self._ask(self.inner.answer, request_id, text)

    def read_answer(self, request_id: int) -> str | None:
        return self._ask(self.inner.read_answer, request_id)

    def forget(self, request_id: int) -> None:
        self._ask(self.inner.forget, request_id)

    def add_input(self, run_id: bytes, key: str, data: str, sender: bytes | None, now: int) -> int:
        return self._ask(self.inner.add_input, run_id, key, data, sender, now)

    def read_inputs(self, run_id: bytes, key: str, after: int, limit: int) -> list[InputRow]:
        return self._ask(self.inner.read_inputs, run_id, key, after, limit)

    def ring(self, owners: Iterable[int] | None = None) -> None:
        if not self.crashed:
            self.inner.ring(owners)

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        return self.inner.listen(wake)

    def close(self, timeout: float = 5.0) -> None:
        """Write what can be written and close the store behind it, unless that is to be found by another process."""
        with self._lock:
            self._go_on()
        if not self.crashed:
            self.inner.close(timeout)


def _error(fault: Fault, operation: str) -> StoreError:
    kind = StoreBusyError if fault.kind is Kind.BUSY else StoreError
    return kind(operation, "the store", fault.reason)
