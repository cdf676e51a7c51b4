"""Ctrl-C and SIGTERM for the commands that run flows: an orderly stop, then a quicker one, then none.

The first signal interrupts the runs, which have their time for clean-ups and can be resumed. The
second does not wait for those any longer. The third leaves without recording anything. A run that
ignores its cancellation cannot keep the process either: Python has no means to end a coroutine that
swallows it, so the process leaves when the time for clean-ups is over.

A server lets the runs that go on end first, for `drain_seconds`: there the second signal is what
interrupts them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Literal

from asyncflow._moved import MovedRun
from asyncflow._rows import FIRST_FINAL, moved
from asyncflow._rules import INTERRUPTED, RESTING, STOPPING
from asyncflow._services import Services
from asyncflow._shutdown import interrupt_now
from asyncflow.abc import Ticket
from asyncflow.exceptions import AsyncflowError
from asyncflow.runtime import HOME
from asyncflow.states import StateType

__all__ = ["Stopper"]

_MARGIN_SECONDS = 1.0
"""Beyond the time for clean-ups: for what the engine does when it is over. What then only waits for the disk is waited
for on the way out."""
_THIRD = 3
_Wish = Literal["stop", "be quick", "ended"]


class Stopper:
    """What the signals do while a flow runs. Made and used on the main thread."""

    def __init__(
        self,
        services: Services,
        run_ids: Callable[[], Iterable[bytes]],
        leave: Callable[[str, int], None],
        *,
        drain: Callable[[bool], None] | None = None,
    ) -> None:
        """`run_ids` gives the outermost runs. `leave(message, status)` is called last, and must not return.

        With `drain` the first signal calls `drain(True)`, and the runs have the settings' `drain_seconds` to end;
        `drain(False)` is called before those that have not are interrupted. It must not take long.
        """
        self._services = services
        self._run_ids = run_ids
        self._leave = leave
        self._drain = drain
        self._wishes: SimpleQueue[_Wish] = SimpleQueue()  # may be filled by a signal handler, whatever it interrupts
        self._count = 0
        self._in_loop = False
        self.signal: signal.Signals | None = None
        """The first that came."""

    @property
    def status(self) -> int | None:
        """The exit status that tells of the signal; None when there was none."""
        return None if self.signal is None else 128 + self.signal

    @property
    def cause(self) -> str:
        """What stopped it, for people."""
        return "Ctrl-C" if self.signal in (None, signal.SIGINT) else self.signal.name

    @contextmanager
    def answering(self) -> Generator[None]:
        """While this is open the signals are answered here."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # An ignored one stays ignored: a shell starts background jobs like that.
        ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN and handler is not None]
        for number in ours:
            signal.signal(number, self._answer)
        thread = threading.Thread(target=self._carry_out, name="asyncflow-way-out", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._wishes.put("ended")
            if self.signal is not None:
                thread.join()  # when it is leaving already, nothing else may use the store, or leave in another way
            # After a signal the process is on its way out: another one must not tear that apart, and the third
            # is still immediate.
            for number in ours if self.signal is None else ():
                signal.signal(number, before[number])

    @contextmanager
    def in_loop(self) -> Generator[None]:
        """While an event loop runs on this thread: it is told by cancelling; a KeyboardInterrupt tears it apart."""
        self._in_loop = True
        try:
            yield
        finally:
            self._in_loop = False

    def _answer(self, number: int, _: FrameType | None) -> None:
        # As little as possible: this interrupts whatever the thread is at. A thread does the rest.
        self._count += 1
        if self.signal is None:
            self.signal = signal.Signals(number)
        if self._count >= _THIRD:
            os._exit(self.status or 1)
        self._wishes.put("stop" if self._count == 1 else "be quick")
        if self._count == 1 and not self._in_loop:
            self._services.intake.is_open = False  # before what it raises: the run is interrupted, not crashed
            raise KeyboardInterrupt  # the only way to stop a body on its caller's own thread

    def _carry_out(self) -> None:
        settings = self._services.settings
        if self._wishes.get() == "ended":
            return
        if self._drain is not None:
            self._drain(True)
            with suppress(Empty):
                if self._wishes.get(timeout=settings.drain_seconds) == "ended":
                    return
            self._drain(False)
        for services in HOME.every_open():
            interrupt_now(services)
        seconds = settings.grace_seconds + _MARGIN_SECONDS
        try:
            why = "it was stopped again" if self._wishes.get(timeout=seconds) == "be quick" else None
        except Empty:
            why = f"it has not ended {seconds:g} seconds after {self.cause}"
        if why is not None:
            with suppress(AsyncflowError):  # nothing more can be done about it, and leaving must not fail
                self._abandon(why)
            self._leave(f"{why}; what was still open is recorded as interrupted", self.status or 1)

    def _abandon(self, why: str) -> None:
        store, run_ids = self._services.store, list(self._run_ids())
        if run_ids:
            self._wait_for_the_disk()  # what began a moment ago is on its way
        for run_id in run_ids:
            for row in reversed(store.read_tree(run_id)):
                if row.state < FIRST_FINAL and row.state_name not in RESTING:
                    message = f"interrupted because {STOPPING}; {why}"
                    now = int(time.time() * 1_000_000)
                    store.put(MovedRun(run_id, moved(row, StateType.PAUSED, now, name=INTERRUPTED, message=message)))
        store.close()

    def collect_torn_runs(self) -> None:
        """Let runs that a KeyboardInterrupt tore out of the engine end, and wait for the record of that.

        What else dies with them complains that its loop is gone, which is what was asked for.
        """
        hook, sys.unraisablehook = sys.unraisablehook, _ignore
        try:
            gc.collect()
        finally:
            sys.unraisablehook = hook
        self._wait_for_the_disk()

    def _wait_for_the_disk(self) -> None:
        recorded = threading.Event()
        self._services.store.confirm(Ticket(lambda _: recorded.set()))
        recorded.wait(self._services.settings.durability_seconds)


def _ignore(_: Any) -> None:
    pass
