"""Showing what a server does: a board that is drawn in place, or a line when a run begins and when it ends.

The runs are those of this process, so nothing is read from the store to show them: a thread looks at
them now and then. (What waits, and whether somebody has paused a deployment, is asked for once a second,
and only for the board.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from rich.console import Console
from rich.text import Text

from asyncflow._rows import FLOW, RunRow, microseconds, states_of
from asyncflow._run import Run
from asyncflow.abc import RunQuery, RunStore
from asyncflow.cli.board import Board, Served, is_over
from asyncflow.cli.live import can_draw, log_line, plain_line, state_line
from asyncflow.cli.screen import Screen
from asyncflow.cli.tree import state_name
from asyncflow.deployments import Deployment
from asyncflow.exceptions import RuntimeClosedError, StoreError
from asyncflow.schedules import describe, next_slot
from asyncflow.states import StateType
from asyncflow.triggers import describe_trigger

__all__ = ["ServeView", "Showing", "make_serve_view"]

_FRAME_SECONDS = 0.25
_ASK_SECONDS = 1.0
_MOST_COUNTED = 101
_MICRO = 1_000_000


class ServeView(Protocol):
    """Where a server is shown. `log` and `stop` are called from any thread, the others from one at a time."""

    def start(self) -> None:
        """Before it serves."""

    def take(self, row: RunRow, since: int) -> None:
        """A run as it is now, of which `since` states were told."""

    def show(self) -> None:
        """What came since the last time."""

    def stop(self, what: str, text: str) -> None:
        """No more runs begin."""

    def log(self, record: logging.LogRecord, text: str) -> None:
        """A log record of a run or of the program."""

    def close(self) -> None:
        """The end."""


def make_serve_view(
    console: Console, deployments: Sequence[Deployment], store: RunStore, title: str, *, plain: bool
) -> ServeView:
    """A board where it can be drawn, else plain lines."""
    return (
        BoardView(console, deployments, store, title)
        if can_draw(console) and not plain
        else LinesView(console, deployments)
    )


class Showing:
    """Looks at the runs of this process from a thread of its own, which nothing waits for until `close`."""

    def __init__(self, view: ServeView) -> None:
        self.view = view
        self._begun: deque[Run] = deque()
        self._going: dict[bytes, tuple[Run, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="asyncflow-watcher", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self.view.start()
        self._thread.start()

    def begin(self, run: Run) -> None:
        """A run begins here. From any thread."""
        self._begun.append(run)

    def going(self) -> list[bytes]:
        """The ids of the runs that had not ended when they were looked at last."""
        return list(self._going)

    def close(self) -> None:
        """Show the end."""
        self._stop.set()
        self._thread.join()
        self._look()
        self.view.close()

    def abandon(self) -> None:
        """Leave the terminal as it was found: the process is about to go without more ado."""
        self._stop.set()
        self._thread.join(1)
        self.view.close()

    def _look_on(self) -> None:
        while not self._stop.wait(_FRAME_SECONDS):
            self._look()

    def _look(self) -> None:
        while self._begun:
            run = self._begun.popleft()
            self._going[run.id] = run, _before_its_claim(run.rows()[0])
        for run, seen in list(self._going.values()):
            row = run.rows()[0]
            if row.seq > seen:
                self.view.take(row, seen)
                self._going[run.id] = run, row.seq
                if is_over(row):
                    del self._going[run.id]
        self.view.show()


def _before_its_claim(row: RunRow) -> int:
    """How many of its states were told before: those of its earlier lives, here or in another process."""
    return max((n for n, state in enumerate(states_of(row)) if state.is_pending()), default=0)


# --- plain lines -----------------------------------------------------------------------------


class LinesView:
    """A line when a run begins, pauses or ends, and for each log record."""

    def __init__(self, console: Console, deployments: Sequence[Deployment]) -> None:
        self._console = console
        self._deployments = deployments
        self._names = {each.id.bytes: each.full_name for each in deployments}
        self._lock = threading.Lock()
        self._lines: list[tuple[int, Text]] = []
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Say what is served."""
        for each in self._deployments:
            slot = next_of(each)
            when = f"{words_of(each)}{'' if slot is None else f', next {slot.astimezone():%Y-%m-%d %H:%M:%S}'}"
            self._say("Serving", f"{each.full_name}  {when}")

    def take(self, row: RunRow, since: int) -> None:
        """Keep a line for each of its new states that is told."""
        for state in states_of(row)[since:]:
            if state.is_running() or state.is_final() or state.is_paused():
                line = state_line(row, state, self._names.get(row.deployment_id or b""))
                # Where it begins, what the other commands know it by.
                self._add(microseconds(state.timestamp), _with_id(line, row) if state.is_running() else line)
        if is_over(row):
            self._counts[state_name(row)] += 1

    def show(self) -> None:
        """Print what is kept, in order."""
        with self._lock:
            lines, self._lines = self._lines, []
        for _, line in sorted(lines, key=lambda entry: entry[0]):
            self._console.print(line, soft_wrap=True)

    def stop(self, what: str, text: str) -> None:
        """Keep a line about it."""
        self._say(what, text)

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Keep it for the next time."""
        self._add(int(record.created * _MICRO), log_line(record, text))

    def close(self) -> None:
        """Say how many runs there were."""
        total, listed = self._counts.total(), ", ".join(f"{n:,} {name}" for name, n in self._counts.most_common())
        self._say("Stopped", f"{total:,} run{'' if total == 1 else 's'}{': ' if listed else ''}{listed}")
        self.show()

    def _say(self, what: str, text: str) -> None:
        now = _now()
        self._add(now, plain_line(now, what, "bold", text))

    def _add(self, at: int, line: Text) -> None:
        with self._lock:
            self._lines.append((at, line))


# --- the board -------------------------------------------------------------------------------


class BoardView:
    """The board, drawn in place; failures, warnings and prints go above it."""

    def __init__(self, console: Console, deployments: Sequence[Deployment], store: RunStore, title: str) -> None:
        self._screen = Screen(console)
        self._store = store
        self._schedules = {each.id.bytes: each for each in deployments}
        self._board = Board({each.id.bytes: Served(each.full_name, words_of(each)) for each in deployments}, title)
        self._asked = -_ASK_SECONDS
        self._drawn: list[Text] = []

    def start(self) -> None:
        """Begin drawing."""
        self._screen.start()

    def take(self, row: RunRow, since: int) -> None:
        """Change its line; a failure is told above, where it stays."""
        self._board.take(row)
        for state in states_of(row)[since:]:
            if state.is_failed() or state.is_crashed():
                served = self._board.served.get(row.deployment_id or b"")
                self._screen.say(_with_id(state_line(row, state, None if served is None else served.name), row))

    def show(self) -> None:
        """Draw what has changed."""
        if time.monotonic() - self._asked >= _ASK_SECONDS:
            self._asked = time.monotonic()
            # The server tells what is wrong with the store, and it may be closed while the process is left.
            with suppress(StoreError, RuntimeClosedError):
                self._ask()
        lines = self._board.lines(_now(), self._screen.width, self._screen.height)
        if lines != self._drawn or self._screen.has_more:
            self._drawn = lines
            self._screen.draw(lines)

    def stop(self, what: str, text: str) -> None:
        """Print it above."""
        self._board.is_stopping = True
        self._screen.say(plain_line(_now(), what, "bold", text))

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Print warnings above. (All else that runs log is in their records: `asyncflow runs logs ID`.)"""
        if record.levelno >= logging.WARNING:
            self._screen.say(log_line(record, text))

    def close(self) -> None:
        """Draw it for the last time, and leave it standing."""
        self._screen.let_go()
        self.show()
        self._screen.stop()

    def _ask(self) -> None:
        for row in self._store.read_deployments(ids=list(self._schedules)):
            served = self._board.served[row.id]
            served.is_paused = bool(row.paused)
            served.next_slot = next_of(self._schedules[row.id])
            query = RunQuery(
                kinds=frozenset({FLOW}),
                states=frozenset({StateType.SCHEDULED}),
                deployment_id=row.id,
                limit=_MOST_COUNTED,
            )
            served.waiting = len(self._store.read_runs(query))


def words_of(deployment: Deployment) -> str:
    """When a deployment runs by itself, in a few words."""
    rules = [describe(each) for each in deployment.schedules if each.active]
    rules += [f"on {describe_trigger(each)}" for each in deployment.triggers if each.active]
    return ", ".join(rules) or "when asked"


def next_of(deployment: Deployment) -> datetime | None:
    """The next slot of all its schedules."""
    now = datetime.now(UTC)
    slots = [next_slot(each, now) for each in deployment.schedules if each.active]
    return min((slot for slot in slots if slot is not None), default=None)


def _with_id(line: Text, row: RunRow) -> Text:
    return line.append(f"  {UUID(bytes=row.id)}", "dim")


def _now() -> int:
    return time.time_ns() // 1000
