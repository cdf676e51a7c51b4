"""The ports: what the engine needs from outside, each stated as a contract.

Every adapter passes the port's contract test suite (`tests/contracts/`). Nothing here does I/O.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from asyncflow._deployment_port import DeploymentStore
from asyncflow._exchange_port import Exchange
from asyncflow._journal import Cursor, EventRow
from asyncflow._queries import LogQuery, Reaped, RunQuery
from asyncflow._rows import CachedRow, ItemRow, LogRow, RunRow, TransactionRow
from asyncflow.exceptions import StoreError

__all__ = ["Clock", "LogQuery", "Reader", "Reaped", "Recordable", "ResultStore", "RunQuery", "RunStore", "Ticket"]

T = TypeVar("T")


class Clock(Protocol):
    """Where every reading of time comes from."""

    def now(self) -> float:
        """Seconds since 1970 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Block this thread until `event` is set or `seconds` have passed; gives whether the event was set.

        It may return earlier: who waits looks at the clock again. `seconds` may be infinite. Only
        threads without a loop wait by the clock; loops have their own time.
        """
        ...


class Recordable(Protocol):
    """A live run, as a store sees it.

    The store keeps a run in its queue at most once. `put` sets `queued`; whoever takes the run
    out clears `queued` *before* reading `rows()`. So a change made after the clearing queues the
    run again, and one made before it is in the rows: none is lost.
    """

    queued: bool
    journalled: int
    """How many of its states the store has recorded; whoever makes one of a recorded run says its number."""

    @property
    def root_id(self) -> bytes:
        """The outermost run above it (itself, when it is outermost): names the folder of its results."""
        ...

    def rows(self) -> Sequence[RunRow]:
        """Its rows as of now: one, or two for a nested flow (its own and its stand-in's)."""
        ...


class Ticket:
    """Somebody's wish to know when everything put before it is on disk.

    `wake(tickets)` is called from the store's thread, once per batch for all tickets of that
    batch that share an equal `wake`, after `done` and `error` are set on each of them. It must
    not block or raise.
    """

    __slots__ = ("done", "error", "wake")

    def __init__(self, wake: Callable[[list[Ticket]], None]) -> None:
        self.wake: Callable[[list[Ticket]], None] = wake
        self.done: bool = False
        self.error: Exception | None = None


class RunStore(DeploymentStore, Exchange, ABC):
    """Where runs are recorded.

    Writing: `put`, `put_log`, `put_event`, `put_item` and `confirm` never block, never await, may be called from any
    thread, and are carried out in the order they were called. A write is idempotent by
    (run id, seq): an older state never replaces a newer one, and a final state is never
    replaced by anything but a state with a higher seq. To which deployment a run belongs is not written so:
    see `DeploymentStore`.

    Reading: the `read_*` methods block (the client calls them in a worker thread), see everything
    whose ticket is done, and are never blocked by writers.

    Errors: every failure is a `StoreError` or one of its subclasses; `sqlite3` errors and
    `OSError` do not leave the store. Use in a process other than the one that opened it raises
    `ForkedRuntimeError`; use after `close` raises `RuntimeClosedError`.
    """

    @abstractmethod
    def put(self, item: Recordable) -> None:
        """Record the newest state of `item`, soon."""

    @abstractmethod
    def put_log(self, row: LogRow) -> None:
        """Keep a log line, soon. When too many wait, it is dropped and counted in `dropped_logs`."""

    @abstractmethod
    def put_event(self, row: EventRow) -> None:
        """Keep an emitted event, soon. When too many wait, it is dropped and counted in `dropped_events`."""

    @abstractmethod
    def put_item(self, row: ItemRow) -> None:
        """Keep an item of a generator run, soon, in place of one with its number. Never dropped; see `backlog`."""

    @abstractmethod
    def confirm(self, ticket: Ticket) -> None:
        """Resolve `ticket` when everything put before is on disk, or could not be brought there."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """How many records wait to be written, now: runs, events and items."""

    @property
    def last_error(self) -> StoreError | None:
        """Why what waits has not been written yet; None while nothing is wrong."""
        return None

    @property
    @abstractmethod
    def dropped_logs(self) -> int:
        """How many log lines were dropped since the store was opened."""

    @property
    @abstractmethod
    def dropped_events(self) -> int:
        """How many emitted events were dropped since the store was opened."""

    @abstractmethod
    def read_run(self, run_id: bytes) -> RunRow | None:
        """The run's row, or None when there is none."""

    @abstractmethod
    def read_runs(self, query: RunQuery) -> list[RunRow]:
        """The runs `query` asks for, newest first."""

    @abstractmethod
    def read_tree(self, run_id: bytes) -> list[RunRow]:
        """The run and every run below it, in the order they were created; empty when there is none."""

    @abstractmethod
    def read_logs(self, query: LogQuery) -> list[LogRow]:
        """The log lines `query` asks for, oldest first."""

    @abstractmethod
    def read_items(self, run_id: bytes, after: int, limit: int) -> list[ItemRow]:
        """The items of a run with a number above `after`, in order."""

    # --- the journal: every change of a state, and every emitted event, in the order of the commits of all processes

    @abstractmethod
    def read_journal(self, after: Cursor | None, limit: int) -> list[EventRow]:
        """The first `limit` of what happened after a cursor, in order; None = since the journal begins.

        What is committed later, by whichever process, has a cursor above all that was committed before:
        who goes on after the last one read misses nothing and meets nothing twice. Within one commit the
        order is that of time. The states of a run that was deleted are left out. Raises `EventsGoneError`
        when the journal does not reach back to the cursor any more.
        """

    @abstractmethod
    def newest_cursor(self) -> Cursor:
        """After all that is committed, before all that will be."""

    @abstractmethod
    def cursor_since(self, at: int) -> Cursor:
        """Before everything that was committed when or after a moment (microseconds since 1970 UTC) had come."""

    @abstractmethod
    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called after each commit of this process, by the store's thread; gives what ends that.

        It must not block or raise, and may be called once more while it is being ended. Commits of other
        processes wake nobody.
        """

    is_instant: bool = False
    """Whether nothing here ever blocks, so that it is called where it is needed, on a loop too. (While a loop on
    virtual time waits for a thread, its time jumps.)"""

    # --- taking over: these block until what they did is on disk

    owner: int
    """Which of all stores ever opened on this home this is: what it writes carries the number.

    A run belongs to the store that wrote it until another one takes it over; from then on
    whatever the first still writes of it is ignored.
    """

    @abstractmethod
    def read_children(self, run_id: bytes) -> list[RunRow]:
        """The runs that a run called, in the order they were made: nested flows themselves, not their stand-ins."""

    @abstractmethod
    def reap(self, now: int) -> Reaped:
        """Find the runs of processes that have died, and end them.

        An open run of a dead owner becomes Crashed; an outermost flow run whose details say
        `"resume": "auto"` becomes Paused, named Interrupted, and waits to be claimed; one of a deployment that
        had been claimed and of which nothing was executed waits to be started again. An open
        transaction of a dead owner becomes INTERRUPTED. All of one owner in one commit, and each
        by one process only. Never touches what a living process owns, however long it has been
        stopped or busy. When it has ended something, it rings everybody's bell. `now` is in microseconds
        since 1970 UTC.
        """

    @abstractmethod
    def read_interrupted(self) -> list[RunRow]:
        """The outermost flow runs that are Paused, named Interrupted, oldest first."""

    @abstractmethod
    def claim(self, run_id: bytes, seq: int, now: int) -> RunRow | None:
        """Take over a run that has ended or rests (Interrupted, Suspended), to run it again.

        Gives its row as it is then: Pending, named Resuming, owned by this store. (Also the
        stand-in of a nested flow.) What rests below it becomes Cancelled: it may not be
        called again. None when the run is not in its state number `seq` any more:
        somebody else was first.
        """

    # --- cached values

    @abstractmethod
    def read_cached(self, key: str) -> CachedRow | None:
        """The value kept under `key`, expired or not; None when there is none."""

    @abstractmethod
    def write_cached(self, row: CachedRow) -> None:
        """Keep a value under its key, in place of an older one; its file first, where there are files."""

    # --- transactions

    @abstractmethod
    def write_transaction(self, row: TransactionRow, members: Sequence[bytes] = ()) -> None:
        """Record a transaction's newest state.

        The details of the runs `members` say how it ended from then on, `"rolled_back": true` or
        `"committed": true`: what the former returned is never given to another call, and the hooks
        of the latter are never called again.
        """

    @abstractmethod
    def read_transactions(
        self, *, key: str | None = None, state: int | None = None, limit: int = 200
    ) -> list[TransactionRow]:
        """Transactions, newest first."""

    # --- retention

    @abstractmethod
    def size(self) -> int:
        """Bytes that the store takes, without what is free for new rows."""

    @abstractmethod
    def count_outermost(self) -> int:
        """How many outermost runs there are, without those that wait to be started: they are never deleted."""

    @abstractmethod
    def delete_runs(self, root_ids: Sequence[bytes]) -> list[bytes]:
        """Delete outermost runs that have ended or wait to be resumed; gives which.

        All below them goes as well: runs, logs, events, items, inputs. One that goes on or waits to be
        started, and an id that is not
        an outermost run's, are left alone.
        """

    @abstractmethod
    def read_oldest(self, limit: int, before: int | None = None) -> list[bytes]:
        """The ids of the outermost runs created first that have ended.

        With `before`, those that had ended by then, or wait to be resumed since then; in microseconds.
        """

    @abstractmethod
    def delete_cached(
        self, expired_at: int | None = None, keys: Sequence[str] = (), *, made_before: int | None = None
    ) -> list[CachedRow]:
        """Delete cached values; gives them.

        Those that had expired at a moment, those under `keys`, and of those that never expire the
        ones made before a moment. Moments are in microseconds since 1970 UTC.
        """

    @abstractmethod
    def delete_transactions(self, ended_before: int) -> int:
        """Forget a batch of the transactions that ended before a moment, and their keys; gives how many."""

    @abstractmethod
    def delete_journal(self, before: int | None) -> int:
        """Forget a batch of the oldest part of the journal, with the events emitted then; gives how many commits.

        What was committed before a moment, in microseconds since 1970 UTC; with None, before the oldest
        outermost run that is kept was created: everything, where there is none.
        """

    @abstractmethod
    def give_back(self) -> int:
        """Give a little of the space that deleted rows left back to the disk; gives the bytes that are still to be."""

    @abstractmethod
    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, within `timeout` seconds, and release everything. A second call does nothing."""


class Reader(Protocol):
    """How whoever reads a value waits for it, so that it blocks no loop: every host is one."""

    async def read_file(self, path: Path) -> bytes:
        """The content of a file; a symbolic link is not followed. Raises `OSError`."""
        ...

    async def run_blocking(self, fn: Callable[[], T]) -> T:
        """Run a call that may block for a moment."""
        ...


class ResultStore(ABC):
    """Where results are kept as files; called by the run store's writing thread only."""

    @abstractmethod
    def write(self, batch: Sequence[tuple[bytes, RunRow]]) -> list[RunRow]:
        """Write what the rows of a batch of (root id, row) are to cite, before they are committed.

        Gives the rows to commit: those whose value went to a durable file cite it
        (`result_file`) instead of carrying it (`result`). Raises `StoreError` when a file that
        a row is to cite could not be made durable.
        """

    @abstractmethod
    def publish(self, batch: Sequence[tuple[bytes, RunRow]]) -> None:
        """Write the copies for people of what a batch has committed, in the same turn. Must not raise."""

    @abstractmethod
    def write_cached(self, row: CachedRow) -> CachedRow:
        """Move the value of a cached row into a file that is durable; gives the row that cites it.

        Raises `StoreError` when that could not be done.
        """

    @abstractmethod
    def delete(self, root_ids: Sequence[bytes], cached: Sequence[CachedRow] = ()) -> None:
        """Delete the files of outermost runs and of cached values whose rows are gone. Must not raise."""

    seals: bool = False
    """Whether `seal` changes anything: then it is called where it blocks no loop."""

    def seal(self, text: str, what: str) -> str:
        """The JSON of an item as its row is to hold it; `what` it is, for an error. May block."""
        return text

    def unseal(self, text: str, what: str) -> str:
        """The JSON that `seal` was given. May block."""
        return text

    @abstractmethod
    async def read(self, row: RunRow | CachedRow, reader: Reader) -> str | None:
        """The JSON of a row's value, checked against its checksum; None when none was recorded.

        Raises `MissingResultError` when the file is gone, `StoreError` when it cannot be read or is
        not what was written.
        """
