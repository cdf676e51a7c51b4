"""What a home needs now and then: the runs of processes that died ended, and what is too old deleted.

And at once: what other processes ask of the runs of this one, when they ring its bell. Every open
runtime does it for its home, in a thread of its own that nobody waits for; several processes on one
home may do it at the same time, and each dead process and each run is dealt with by one of them.
Nothing here can fail a run: what goes wrong is logged, and tried again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import orjson

from asyncflow._control.requests import Requests
from asyncflow._live_requests import Responder, say_off, unsay_off
from asyncflow._retention import Pace, Retention
from asyncflow._rows import CachedRow, TransactionRow, maybe_uuid
from asyncflow._services import Services
from asyncflow.abc import Reaped
from asyncflow.exceptions import ForkedRuntimeError, RuntimeClosedError
from asyncflow.logs import library_logger

__all__ = [
    "Sweeper", "Swept", "Upkeep", "delete_batch", "end_runs_of_dead", "hooks_of", "interruption", "microseconds_now",
    "reaping",
]  # fmt: skip

_SWEEP_SECONDS = 60.0
"""How often runs are looked for that are too old or too many."""
_MOST_PASSED_OVER = 10_000
_PAUSES = (0.010, 0.050)
"""Seconds between two batches: as long as the last one took, within these."""
_JOIN_SECONDS = 0.05
"""Longest that closing waits for the thread."""


def microseconds_now(services: Services) -> int:
    """The clock's time as the stores' columns have it."""
    return round(services.clock.now() * 1_000_000)


class Swept(NamedTuple):
    """What one batch did."""

    runs: list[bytes]
    """The outermost runs that were deleted, each with all below it."""
    cached: list[CachedRow]
    """The cached values that were deleted: they had expired."""
    has_more: bool
    """Whether there may be more to do at once."""


class Sweeper:
    """Deletes what `retention` does not keep, one small batch at a time, and gives the space back."""

    def __init__(self, services: Services, retention: Retention) -> None:
        self._services = services
        self._retention = retention
        self._pace = Pace()
        self._is_shrinking = False
        self._cannot_shrink = False
        self._passed_over: set[bytes] = set()
        """Runs that could not be deleted: something below them goes on. Those behind them are not to wait for that."""
        self._left = 0

    @property
    def is_too_big(self) -> bool:
        """Whether the database has more bytes than it may, and deleting could do something about it."""
        limit = self._retention.size
        if limit is None or self._cannot_shrink:
            return False
        return self._is_shrinking or self._services.store.size() > limit

    def sweep(self) -> Swept:
        """Delete a batch of runs; where there are none, old values and transactions; else give a little space back.

        Blocks. Space is given back last, because while runs are deleted new ones can use it.
        """
        store = self._services.store
        swept = self.delete()
        if swept.has_more:
            return swept
        now = microseconds_now(self._services)
        before = self._retention.before(now)
        cached = store.delete_cached(expired_at=now, made_before=before)
        if cached or (before is not None and (store.delete_transactions(before) or store.delete_journal(before))):
            return Swept([], cached, has_more=True)
        left, self._left = self._left, store.give_back()
        # What stays the same is what a reader keeps from being given back: not to be asked for without a pause.
        has_more = 0 < self._left != left
        if not has_more:
            self._passed_over.clear()
        return Swept([], [], has_more)

    def delete(self) -> Swept:
        """Delete a batch of runs, and nothing else. Blocks."""
        due = self._due(microseconds_now(self._services))
        runs = delete_batch(self._services, due, self._pace)
        self._passed_over.update(set(due).difference(runs))
        # Where there is no room for older runs, what was told before the oldest of the others is not kept either.
        forgotten = self._services.store.delete_journal(None) if self._is_shrinking else 0
        self._cannot_shrink = self._is_shrinking and not due and not forgotten
        return Swept(runs, [], has_more=bool(due or forgotten))

    def _due(self, now: int) -> list[bytes]:
        store, retention, most = self._services.store, self._retention, self._pace.trees
        before = retention.before(now)
        due = [] if before is None else self._oldest(most, before)
        if due:
            return due
        excess = retention.excess(store.size(), store.count_outermost, shrinking=self._is_shrinking)
        self._is_shrinking = excess > 0
        return self._oldest(min(most, excess), None) if excess else []

    def _oldest(self, most: int, before: int | None) -> list[bytes]:
        passed_over = self._passed_over
        if len(passed_over) >= _MOST_PASSED_OVER:
            return []
        found = self._services.store.read_oldest(most + len(passed_over), before)
        return [each for each in found if each not in passed_over][:most]


def delete_batch(services: Services, due: list[bytes], pace: Pace) -> list[bytes]:
    """Delete outermost runs that have ended; gives which, and lets `pace` know how long it took. Blocks.

    Their files go in this thread and not in the writer's: each system call waits for the GIL, and while a
    busy loop holds that, the writer would do nothing else.
    """
    if not due:
        return []
    started = time.monotonic()
    gone = services.store.delete_runs(due)
    pace.note(len(due), time.monotonic() - started)
    if services.results is not None:
        services.results.delete(gone)
    return gone


class Upkeep:
    """The upkeep of one open runtime's home."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._seconds = services.settings.upkeep_seconds
        self._sweeper = Sweeper(services, Retention.of(services.settings))
        self._responder = Responder(services)
        self._sweep_at = 0.0
        self._failing: set[str] = set()
        self._pid = os.getpid()
        self._bell = threading.Event()
        """Set when there may be something to do at once: somebody asks for something, or it is to end."""
        self._is_stopped = False
        self._stop_listening: Callable[[], None] | None = None
        self._requests = Requests(services, self._bell.set)
        self._thread = threading.Thread(target=self._run, name="asyncflow-upkeep", daemon=True)

    def open(self) -> None:
        """See to what dead processes left behind, now; and to all the rest in a thread."""
        self._attempt("looking for dead processes", self._reap)
        self._tell_whether_off(is_off=not self._seconds)
        self._stop_listening = self._services.store.listen(self._bell.set)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no thread left, and runs need none of ours
            self._report("starting its thread", error)

    def stop(self) -> None:
        """Do nothing more. Does not wait for what is being done."""
        if self._pid == os.getpid():  # in a forked child nobody is left to release the event's lock
            self._is_stopped = True
            if self._stop_listening is not None:
                self._stop_listening()
            self._bell.set()
            if not self._seconds:
                self._tell_whether_off(is_off=False)

    def _tell_whether_off(self, *, is_off: bool) -> None:
        """Let those who ask what runs wait for know whether anybody will answer them here."""
        home, owner = self._services.settings.home, self._services.store.owner
        if is_off:
            say_off(home, owner)
        else:
            unsay_off(home, [owner])

    def join(self) -> None:
        """After `stop`, and once the store is closed, so that nothing is left to wait for: let the thread end."""
        if self._pid == os.getpid() and self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        reap_at = time.monotonic() + self._seconds
        due: float | None = time.monotonic()
        while self._wait_until(due):
            self._attempt("doing what others ask for", self._requests.serve)
            if self._seconds:
                self._attempt("answering who asks what its runs wait for", self._responder.answer)
            started = time.monotonic()
            if due is None or started < due:  # it was the bell
                continue
            if self._seconds and started >= reap_at:
                self._attempt("looking for dead processes", self._reap)
                reap_at = started + self._seconds
            if self._attempt("deleting what is not kept any longer", self._sweep):
                took = time.monotonic() - started
                due = time.monotonic() + min(max(took, _PAUSES[0]), _PAUSES[1])  # time for others
            else:
                due = time.monotonic() + self._seconds if self._seconds else None

    def _wait_until(self, due: float | None) -> bool:
        """Wait until the bell rings, or a moment has come; whether to go on."""
        if not self._is_stopped:
            self._bell.wait(None if due is None else max(due - time.monotonic(), 0))
            self._bell.clear()
        return not self._is_stopped

    def _sweep(self) -> bool:
        """Delete a batch if it is time, or there are too many bytes; whether there may be more."""
        if time.monotonic() < self._sweep_at:
            # Without giving space back: a home that is full all the time uses it again at once.
            return self._sweeper.is_too_big and self._sweeper.delete().has_more
        self._sweep_at = time.monotonic() + _SWEEP_SECONDS  # also after an error
        self._responder.sweep()
        has_more = self._sweeper.sweep().has_more
        if has_more:
            self._sweep_at = 0.0
        return has_more

    def _reap(self) -> bool:
        end_runs_of_dead(self._services)
        return False

    def _attempt(self, what: str, act: Callable[[], bool]) -> bool:
        try:
            result = act()
        except (RuntimeClosedError, ForkedRuntimeError):
            self._is_stopped = True  # closed meanwhile: nobody is to know
            return False
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not end the thread, and no run is at fault
            if not self._is_stopped and what not in self._failing:
                self._report(what, error)
            self._failing.add(what)  # told once, until it has worked again
            return False
        self._failing.discard(what)
        return result

    def _report(self, what: str, error: Exception) -> None:
        library_logger().warning("the upkeep of %r: %s failed: %s", str(self._services.settings.home), what, error)


def end_runs_of_dead(services: Services) -> None:
    """End the runs that dead processes left behind, and tell of it. Blocks."""
    reaped, home = services.store.reap(microseconds_now(services)), str(services.settings.home)
    if reaped.crashed or reaped.interrupted or reaped.requeued:
        library_logger().warning("%s (%r)", reaping(reaped), home)
    for transaction in reaped.transactions:
        library_logger().warning("%s (%r)", interruption(transaction), home)


def reaping(reaped: Reaped) -> str:
    """One line about the runs that dead processes left behind."""
    crashed, interrupted, requeued = reaped.crashed, reaped.interrupted, reaped.requeued
    told: list[str] = []
    if crashed or not (interrupted or requeued):
        told.append(f"{crashed:,} {'run' if crashed == 1 else 'runs'} of processes that have died ended as Crashed")
    if interrupted:
        what = "run waits" if interrupted == 1 else "runs wait"
        told.append(f"{interrupted:,} interrupted flow {what} to be resumed")
    if requeued:
        what = "run that had not begun waits" if requeued == 1 else "runs that had not begun wait"
        told.append(f"{requeued:,} {what} again")
    return "; ".join(told)


def interruption(row: TransactionRow) -> str:
    """One line about a transaction whose process died inside of it."""
    key = "without a key" if row.key is None else repr(row.key)
    run = "" if row.run_id is None else f" of run {maybe_uuid(row.run_id)}"
    hooks = ", ".join(hooks_of(row))
    return (
        f"transaction {key}{run} was interrupted by its process's death: it was neither committed nor rolled back, "
        f"and of its hooks none was run: {hooks or '(it had none yet)'}"
    )


def hooks_of(row: TransactionRow) -> list[str]:
    """The names of the hooks that a transaction was to run."""
    return [str(each) for each in orjson.loads(row.hooks or "[]")]
