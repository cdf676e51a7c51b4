"""The one thread that writes to the database, and the queue in front of it.

Guarantees:

- `put`, `put_log`, `put_event`, `put_item` and `confirm` take no lock and may be called from any thread, from a signal
  handler or a finalizer in the middle of one another: a deque's `append` and a `SimpleQueue`'s
  `put` are single C calls made for that. (An `Event` is not: its lock would be taken twice.)
- What was put before a ticket is committed before the ticket is resolved.
- Result files that no row cites are written when nobody waits for a commit: their inodes cost more than a run.
- A job runs after everything that waited when it was called is committed, between two turns.
- A turn that fails is tried again, with the same rows, until it works or the store is closed. An error from the
  disk does not say that nothing was written (a failed fsync can leave the commit in place), which is why every
  row's write can be repeated: by sequence number, or by a log line's id.

A busy event loop lets another thread have the GIL only every 5 ms or so, and `sqlite3` gives it up at every
statement. So a turn is few statements, each with a row for every run (see `_turn`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from asyncflow._journal import EventRow
from asyncflow._rows import ItemRow, LogRow, RunRow
from asyncflow.abc import Recordable, ResultStore, Ticket
from asyncflow.exceptions import StoreBusyError, StoreError
from asyncflow.stores._checkpoints import Checkpoints
from asyncflow.stores._database import Database
from asyncflow.stores._forking import SQLITE
from asyncflow.stores._job import Job
from asyncflow.stores._log_queue import LogQueue
from asyncflow.stores._turn import EVENT, OTHERS, Entry, Turn
from asyncflow.stores._watchers import Watchers

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Writer"]

T = TypeVar("T")

TURN = 1024
"""Most entries of the queue in one turn: what is written while the disk is slow stays bounded."""
LINGER = 0.010
"""Seconds a turn without a ticket waits for more to come."""
MOST_EVENTS = 10_000
"""Emitted events that may wait; more are dropped."""
MOST_UNPUBLISHED = 4096
"""Committed rows, and KiB of results in them, that may wait for their files while others wait for the disk."""
RETRY = (0.05, 0.5)
"""Seconds before a failed turn is tried again: at first, and at most."""
CHECK_SECONDS = 1.0
"""How often the writer makes sure that the file is still the one it opened."""
PATIENCE = 10.0
"""Seconds that somebody waits for a job to begin."""
JOB_ROWS = 128
"""A job counts for as many rows when it is time for a checkpoint."""


class Writer:
    """Writes what is put, in order, in a thread of its own."""

    def __init__(self, database: Database, results: ResultStore) -> None:
        self._database = database
        self._results = results
        self._connection = database.open_writer()
        self._checkpoints = Checkpoints(self._connection, database.path, database.checkpoint_lock)
        self._waiting: deque[Entry] = deque()
        self._logs = LogQueue()
        self._events: deque[EventRow] = deque()
        """Beside the queue, which has a place for each of them: so they can be counted, and keep their order."""
        self._signal: SimpleQueue[None] = SimpleQueue()
        self._idle = False  # asleep until anything comes
        self._lingering = False  # asleep for a moment, or until a ticket comes
        self._ticket_came = False
        self._writing = 0
        self._unpublished: dict[bytes, list[RunRow]] = {}
        """Committed rows by outermost run, whose result files are not written yet; the oldest first."""
        self._unpublished_weight = 0
        self._checked = 0.0
        self._give_up_at: float | None = None
        self.owner = 0
        """The number of the store, once it has one."""
        self.watchers = Watchers()
        self.dropped_events = 0
        self.last_error: StoreError | None = None
        """Why the turn under way has not worked yet."""
        self.thread = Thread(target=self._run, name="asyncflow-writer", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._connection.close()
            raise StoreError("starting the writer's thread", database.path, error) from error

    # --- any thread --------------------------------------------------------------------------

    def put(self, item: Recordable) -> None:
        if item.queued:  # its newest state is read when it is taken out
            return
        try:
            item.queued = True
            self._waiting.append(item)
        except BaseException:  # a Ctrl-C between the two: twice in the queue does no harm, not at all would
            self._waiting.append(item)
            raise
        if self._idle:
            self._wake()

    def put_log(self, row: LogRow) -> None:
        self._logs.put(row)
        if self._idle:
            self._wake()

    def put_event(self, row: EventRow) -> None:
        if len(self._events) >= MOST_EVENTS:
            self.dropped_events += 1
            return
        self._events.append(row)  # first: a place in the queue promises an event
        self._waiting.append(EVENT)
        if self._idle:
            self._wake()

    def put_item(self, row: ItemRow) -> None:
        self._waiting.append(row)
        if self._idle:
            self._wake()

    def confirm(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        self._ticket_came = True
        if self._idle or self._lingering:
            self._wake()

    def call(self, operation: str, act: Callable[[sqlite3.Connection], T], patience: float = PATIENCE) -> T:
        """Have `act` done by the writer's thread, and wait for it. What it raises is raised here.

        Raises `StoreError` when it could not even be begun for so many seconds: then it never is.
        """
        job = self.ask(operation, act, patience)
        if not job.wait(self.thread):
            reason = self.last_error or f"the writer did not come to it within {patience:g} seconds"
            raise StoreError(operation, self._database.path, reason)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def ask(self, operation: str, act: Callable[[sqlite3.Connection], Any], patience: float = PATIENCE) -> Job:
        """`call` without waiting."""
        job = Job(operation, act, patience)
        self._waiting.append(job)
        self._ticket_came = True
        if self._idle or self._lingering:
            self._wake()
        return job

    @property
    def dropped_logs(self) -> int:
        return self._logs.dropped

    @property
    def backlog(self) -> int:
        return len(self._waiting) + self._writing

    def close(self, timeout: float) -> bool:
        """Write what waits and end the thread; whether that was done within `timeout` seconds."""
        self._give_up_at = time.monotonic() + timeout
        self._signal.put(None)
        self.thread.join(timeout)
        if not self._has_records():
            self.thread.join(timeout)  # at most it still wrote copies, and it stops after the one it is at
        return not (self.thread.is_alive() or self._has_records())

    def _has_records(self) -> bool:
        return self._writing > 0 or any(not isinstance(each, Job) for each in self._waiting.copy())

    def _wake(self) -> None:
        self._idle = self._lingering = False
        self._signal.put(None)

    # --- the writer's thread -----------------------------------------------------------------

    def _run(self) -> None:
        more = False
        try:
            while self._wait_for_work():
                if not more:  # else the last turn was full: what is left has waited long enough
                    self._linger()
                with SQLITE:
                    more = self._take_turn()
        finally:
            with SQLITE, suppress(Exception):
                self._connection.close()
            late = self.last_error or StoreError("closing", self._database.path, "there was no time left to write it")
            self._resolve([each for each in self._waiting if isinstance(each, Ticket)], late)
            self._refuse([each for each in self._waiting if isinstance(each, Job)], late)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to write; false when the writer is to end."""
        while self._unpublished_weight > MOST_UNPUBLISHED:
            self._publish_one()
        while not (self._waiting or self._logs):
            if self._unpublished and not self._has_given_up():
                self._publish_one()
                continue
            if self._give_up_at is not None:
                return False
            # The flag first, then the look, then the sleep: who puts something after the look sees the flag.
            self._idle = True
            if not (self._waiting or self._logs or self._give_up_at is not None):
                self._signal.get()
            self._idle = False
        return not self._has_given_up()

    def _linger(self) -> None:
        # Time that nobody is waiting in. A ticket that comes meanwhile waits for one of these at most.
        while self._unpublished and not self._ticket_came and self._give_up_at is None:
            self._publish_one()
        self._lingering = True
        if not self._ticket_came and self._give_up_at is None:
            with suppress(Empty):
                self._signal.get(timeout=LINGER)
        self._lingering = False

    def _take_turn(self) -> bool:
        """Write one turn; whether it was full. In a function of its own so that nothing of it stays in memory."""
        turn, self._ticket_came = Turn(), False
        taken = self._take(turn)
        # After the runs and all of them: so every line put before one of the tickets is among them.
        turn.take_logs(self._logs.take())
        self._writing = len(turn.runs) + len(turn.events) + len(turn.items)
        if self._persist(turn):
            self._writing = 0
            if turn.size:
                self.watchers.wake()
            self._resolve(turn.tickets, turn.unreadable)
            for (root, _), row in zip(turn.runs, turn.rows or (), strict=True):
                self._unpublished.setdefault(root, []).append(row)
                self._unpublished_weight += _weight(row)
            for job in turn.jobs:
                self._do(job)
            self._checkpoints.run_if_due()
            if (missing := self._logs.warning()) is not None:
                _report(missing)
        else:
            self._resolve(turn.tickets, self.last_error)
            self._refuse(turn.jobs, self.last_error)
        return taken == TURN

    def _take(self, turn: Turn) -> int:
        waiting = self._waiting
        for taken in range(TURN):
            if not waiting:
                return taken
            entry = waiting.popleft()
            if isinstance(entry, OTHERS):
                turn.take_other(entry, self._events)
                continue
            try:
                turn.take_run(entry)
            except Exception as error:  # noqa: BLE001  # one such run must not keep the others from disk
                turn.unreadable = StoreError("recording a run", self._database.path, repr(error))
                _report(f"a run could not be recorded: {error!r}")
        return TURN

    def _persist(self, turn: Turn) -> bool:
        """Bring a turn to disk, however often it takes; false when the store is closing and time is up."""
        delay, longest = RETRY
        is_held_long = time.monotonic() + self._database.busy_seconds
        while True:
            try:
                self._write(turn)
            except StoreError as error:
                if isinstance(error, StoreBusyError) and time.monotonic() < is_held_long and not self._has_given_up():
                    continue
                # Without its traceback, whose frames hold the rows of this turn.
                self.last_error = error.with_traceback(None)
                self.last_error.__cause__ = self.last_error.__context__ = None
            except Exception as error:  # noqa: BLE001  # out of memory, say: as much a reason to try again
                self.last_error = StoreError("writing", self._database.path, repr(error))
            else:
                self.last_error = None
                return True
            if self._has_given_up():
                return False
            with suppress(Empty):
                self._signal.get(timeout=delay)
            delay = min(delay * 2, longest)

    def _do(self, job: Job) -> None:
        if job.take():
            job.run(self._connection, self._database, self._has_given_up)
            self._checkpoints.wrote(JOB_ROWS)
            self.watchers.wake()

    def _refuse(self, jobs: list[Job], error: StoreError | None) -> None:
        for job in jobs:
            if job.take():
                job.answer(error=error)

    def forget(self, roots: Sequence[bytes]) -> None:
        """For jobs: write no copies of these outermost runs any more, which are deleted."""
        for root in roots:
            self._unpublished_weight -= sum(map(_weight, self._unpublished.pop(root, ())))

    def _publish_one(self) -> None:
        """Write the copies for people of what was committed longest ago, of one outermost run."""
        root, rows = next(iter(self._unpublished.items()))
        del self._unpublished[root]
        self._unpublished_weight -= sum(map(_weight, rows))
        try:
            self._results.publish([(root, row) for row in rows])
        except Exception as error:  # noqa: BLE001  # the rows are on disk, and they are the record
            _report(f"result files could not be written: {error!r}")

    def _has_given_up(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at

    def _write(self, turn: Turn) -> None:
        if turn.rows is None:
            turn.rows = self._results.write(turn.runs) if turn.runs else []
        self._check_in_place()
        with self._database.mapped("writing"):
            try:
                turn.commit(self._connection, self.owner)
            except _binding_errors():
                turn.make_storable()
                turn.commit(self._connection, self.owner)
        self._checkpoints.wrote(turn.size, turn.characters)

    def _check_in_place(self) -> None:
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._database.check_in_place()
            self._checked = now

    def _resolve(self, tickets: list[Ticket], error: StoreError | None) -> None:
        by_wake: dict[Callable[[list[Ticket]], None], list[Ticket]] = {}
        for ticket in tickets:
            ticket.error = error
            ticket.done = True
            by_wake.setdefault(ticket.wake, []).append(ticket)
        for wake, group in by_wake.items():
            try:
                wake(group)
            except Exception as problem:  # noqa: BLE001  # its loop may be gone; the others still wait
                _report(f"waking those who wait for the disk failed: {problem!r}")


def _binding_errors() -> tuple[type[Exception], ...]:
    import sqlite3

    return ValueError, OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError


def _weight(row: RunRow) -> int:
    return 1 + len(row.result or "") // 1024


def _report(message: str) -> None:
    import logging

    logging.getLogger("asyncflow").error(message)
