"""Ctrl-C with a way out: a run that ignores its cancellation cannot keep the process for ever.

The event loop answers Ctrl-C as it always does, by cancelling. What has not ended when the time for
clean-ups is over is recorded Crashed, and the process leaves without asking anybody: Python has no
means to end a coroutine that swallows its cancellation.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from asyncflow._rows import FIRST_FINAL, STATE_CODES, RunRow
from asyncflow._services import Services
from asyncflow.abc import Recordable, Ticket
from asyncflow.exceptions import AsyncflowError
from asyncflow.states import StateType

__all__ = ["collect_torn_runs", "handler_restored", "way_out"]

_CRASHED = STATE_CODES[StateType.CRASHED]
_MARGIN_SECONDS = 2.0


@contextmanager
def way_out(services: Services, run_id: Callable[[], bytes | None], leave: Callable[[str], None]) -> Generator[None]:
    """While this is open, on the loop's own thread, the first Ctrl-C starts the time for clean-ups.

    `run_id` gives the outermost run. `leave(message)` is called last, on a thread of ours, and must
    not return.
    """
    settings = services.settings
    seconds = settings.grace_seconds + settings.durability_seconds + _MARGIN_SECONDS
    ended = threading.Event()

    def wait() -> None:
        if not ended.wait(seconds):
            with suppress(AsyncflowError):  # nothing more can be done about it, and leaving must not fail
                _abandon(services, run_id())
            leave(f"it has not ended {seconds:g} seconds after Ctrl-C; what is still open is recorded Crashed")

    waiting = threading.Thread(target=wait, name="asyncflow-way-out", daemon=True)
    answer = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if waiting.ident is None:
            waiting.start()
        if callable(answer):
            answer(number, frame)

    if not callable(answer):  # ignored, or not Python's: there is no Ctrl-C to answer
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGINT, answer)  # the loop takes its own one away, and no other


@contextmanager
def handler_restored() -> Generator[None]:
    """Around a whole event loop: one that was torn apart leaves a handler that keeps its tasks alive."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def collect_torn_runs(services: Services) -> None:
    """Let runs that a repeated Ctrl-C tore out of their loop end, and wait for the record of that.

    What else dies with them complains that its loop is gone, which is what was asked for.
    """
    hook, sys.unraisablehook = sys.unraisablehook, _ignore
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
    recorded = threading.Event()
    services.store.confirm(Ticket(lambda _: recorded.set()))
    recorded.wait(services.settings.durability_seconds)


def _ignore(_: object) -> None:
    pass


def _abandon(services: Services, run_id: bytes | None) -> None:
    if run_id is not None:
        for row in services.store.read_tree(run_id):
            if row.state < FIRST_FINAL:
                services.store.put(_Abandoned(run_id, row))
    services.store.close()


class _Abandoned(Recordable):
    """A run that did not end, as it is to be recorded."""

    def __init__(self, root_id: bytes, row: RunRow) -> None:
        self.queued = False
        self._root_id = root_id
        self._row = row

    @property
    def root_id(self) -> bytes:
        return self._root_id

    def rows(self) -> Sequence[RunRow]:
        row, at = self._row, int(time.time() * 1_000_000)
        message = "ignored its cancellation until the process left"
        history = None if row.history is None else _with_entry(row.history, [_CRASHED, None, message, at])
        return [
            row._replace(state=_CRASHED, state_name=None, message=message, ended=at, seq=row.seq + 1, history=history)
        ]


def _with_entry(history: str, entry: list[Any]) -> str:
    return json.dumps([*json.loads(history), entry])
