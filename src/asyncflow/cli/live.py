"""Showing a run while it goes on: a thread looks into the store now and then, and a view shows what is new.

On a terminal the view is a tree that is drawn again and again, elsewhere it is plain lines. Log
records come from `logging` directly, because a record in the store has lost its exception.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from asyncflow._rows import (
    FLOW,
    STAND_IN,
    STATE_CODES,
    RunRow,
    default_task_run_name,
    microseconds,
    states_of,
)
from asyncflow.abc import RunStore
from asyncflow.cli.output import clock_time, duration_between, escaped, one_line, printable
from asyncflow.cli.screen import Screen
from asyncflow.cli.tree import Line, Node, build_tree, counts, lay_out
from asyncflow.exceptions import RuntimeClosedError, StoreError
from asyncflow.states import State, StateType

__all__ = [
    "PlainView",
    "TreeView",
    "View",
    "Watcher",
    "can_draw",
    "listen",
    "log_line",
    "make_view",
    "plain_line",
    "state_line",
    "state_style",
    "tree_line",
]

_FRAME_SECONDS = 0.1
_SHARE_OF_TIME = 10
"""Looking takes at most one part of so many of the time: a tree of 20,000 runs takes a while to read."""
_MICRO = 1_000_000

_STYLES = {
    StateType.COMPLETED: ("✓", "green"),
    StateType.FAILED: ("✗", "bold red"),
    StateType.CRASHED: ("✗", "bold red"),
    StateType.CANCELLED: ("⊘", "yellow"),
    StateType.CANCELLING: ("⊘", "yellow"),
    StateType.RUNNING: ("●", "cyan"),
    StateType.SCHEDULED: ("↻", "yellow"),
    StateType.PAUSED: ("‖", "yellow"),
    StateType.PENDING: ("○", "dim"),
}


def state_style(state: StateType) -> tuple[str, str]:
    """The mark of a state and its style."""
    return _STYLES[state]


class View(Protocol):
    """Where a run is shown. `log` is called from any thread, the others from one at a time."""

    def start(self) -> None:
        """Before the run."""

    def show(self, rows: Sequence[RunRow]) -> None:
        """What the store holds now of the run and those below it."""

    def log(self, record: logging.LogRecord, text: str) -> None:
        """A log record of the run or of the program."""

    def close(self, rows: Sequence[RunRow]) -> None:
        """The end, with the last that the store holds."""

    def abandon(self) -> None:
        """The end, without more to show. Called from any thread."""


def make_view(console: Console, *, plain: bool) -> View:
    """A tree where it can be drawn, else plain lines."""
    return TreeView(console) if can_draw(console) and not plain else PlainView(console)


def can_draw(console: Console) -> bool:
    """Whether something can be drawn in place there."""
    return console.is_terminal and not console.is_dumb_terminal


# --- looking ---------------------------------------------------------------------------------


class Watcher:
    """Keeps a view up to date from a thread of its own, which nothing waits for until `close`."""

    def __init__(self, store: RunStore, view: View) -> None:
        self._store = store
        self._view = view
        self.run_id: bytes | None = None
        """The run that is shown; None while there is none."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="asyncflow-watcher", daemon=True)

    def start(self) -> None:
        """Start looking; there is something to see from `follow` on."""
        self._view.start()
        self._thread.start()

    def follow(self, run_id: bytes) -> None:
        """The outermost run exists, and this is its id."""
        self.run_id = run_id

    def close(self) -> None:
        """Show the end."""
        self._stop.set()
        self._thread.join()
        self._view.close(self._rows())

    def abandon(self) -> None:
        """Leave the terminal as it was found: the process is about to go without more ado."""
        self._stop.set()
        self._thread.join(1)
        self._view.abandon()

    def _watch(self) -> None:
        pause = _FRAME_SECONDS
        while not self._stop.wait(pause):
            before = time.monotonic()
            self._view.show(self._rows())
            pause = max(_FRAME_SECONDS, (time.monotonic() - before) * _SHARE_OF_TIME)

    def _rows(self) -> Sequence[RunRow]:
        if self.run_id is None:
            return ()
        # The run itself reports what is wrong with the store, and it may be closed while the process is left.
        with suppress(StoreError, RuntimeClosedError):
            return self._store.read_tree(self.run_id)
        return ()


# --- log records -----------------------------------------------------------------------------


class _Handler(logging.Handler):
    def __init__(self, log: Callable[[logging.LogRecord, str], None]) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log(record, _text_of(record))
        except Exception:  # noqa: BLE001  # as every handler does: a log line must not stop the program
            self.handleError(record)


def listen(log: Callable[[logging.LogRecord, str], None]) -> None:
    """Have `log` called with log records and their texts, unless the program has set up a way to show them itself."""
    logging.getLogger("asyncflow").setLevel(logging.INFO)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_Handler(log))
    handler: Any
    for handler in root.handlers:
        if getattr(handler, "stream", None) in (sys.__stderr__, sys.__stdout__):
            # Made before the view began: it would write into the middle of the tree.
            handler.setStream(sys.stderr)


def _text_of(record: logging.LogRecord) -> str:
    """The message on one line, whatever it holds; below it, indented, the traceback."""
    text = escaped(record.getMessage())
    below = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return text + "".join(f"\n    {escaped(line)}" for line in below.split("\n") if line)


def log_line(record: logging.LogRecord, text: str) -> Text:
    style = "bold red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else "blue"
    source = getattr(record, "run_name", None) or record.name
    return plain_line(int(record.created * _MICRO), record.levelname.title(), style, f"{one_line(str(source))}: {text}")


def plain_line(at: int, what: str, style: str, text: str) -> Text:
    return Text.assemble((clock_time(at), "dim"), "  ", (f"{what:<13}", style), " ", printable(text))


# --- plain lines -----------------------------------------------------------------------------

_HOLD = 100_000
"""Microseconds a line is held back: what the store tells of that time may still be on its way, and come before it."""
_TROUBLE = frozenset({StateType.FAILED, StateType.CRASHED})


class PlainView:
    """A line when a flow run begins or ends, when a task run fails or is to be retried, and for each log record."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged: deque[tuple[int, Text]] = deque()
        self._waiting: list[tuple[int, Text]] = []
        self._seen: dict[bytes, int] = {}
        self._since = 0

    def start(self) -> None:
        """Nothing to draw yet. What a resumed run did before is not told again."""
        self._since = int(time.time() * _MICRO)

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Keep it until its turn."""
        self._logged.append((int(record.created * _MICRO), log_line(record, text)))

    def show(self, rows: Sequence[RunRow]) -> None:
        """Print what is new and no longer held back."""
        self._collect(rows)
        self._print(before=int(time.time() * _MICRO) - _HOLD)

    def abandon(self) -> None:
        """Nothing was drawn."""

    def close(self, rows: Sequence[RunRow]) -> None:
        """Print the rest and the counts."""
        self._collect(rows)
        self._print(before=None)
        if rows:
            self._console.print(counts(rows), soft_wrap=True)

    def _collect(self, rows: Sequence[RunRow]) -> None:
        while self._logged:
            self._waiting.append(self._logged.popleft())
        for row in rows:
            seen = self._seen.get(row.id, 0)
            if row.seq > seen and row.kind != STAND_IN:
                self._seen[row.id] = row.seq
                if row.kind == FLOW or row.history is not None or row.state >= _FIRST_BAD:
                    told = [state for state in states_of(row)[seen:] if _is_told(row, state)]
                    lines = [(microseconds(state.timestamp), state_line(row, state)) for state in told]
                    self._waiting += [line for line in lines if line[0] >= self._since]

    def _print(self, before: int | None) -> None:
        self._waiting.sort(key=lambda entry: entry[0])
        while self._waiting and (before is None or self._waiting[0][0] <= before):
            self._console.print(self._waiting.pop(0)[1], soft_wrap=True)


_FIRST_BAD = min(STATE_CODES[type_] for type_ in _TROUBLE)


def _is_told(row: RunRow, state: State[object]) -> bool:
    if state.type in _TROUBLE or state.is_scheduled():
        return True
    return row.kind == FLOW and (state.is_running() or state.is_final())


def state_line(row: RunRow, state: State[object], label: str | None = None) -> Text:
    """A state of a run on one line; `label` is what it is a run of, where that is not its function."""
    kind, name = (
        ("flow", row.name or row.function)
        if row.kind == FLOW
        else ("task", row.name or default_task_run_name(row.function, row.id))
    )
    text = f"{label or f'{kind} {one_line(row.function)}'} {one_line(name)}"
    if state.is_final() and row.started is not None:
        text += f" in {duration_between(row.started, row.ended or microseconds(state.timestamp))}"
    if state.message and not state.is_completed():
        text += f": {one_line(state.message)}"
    return plain_line(microseconds(state.timestamp), state.name, state_style(state.type)[1], text)


# --- the tree --------------------------------------------------------------------------------


class TreeView:
    """The tree of runs, drawn in place; log records and prints go above it."""

    def __init__(self, console: Console) -> None:
        self._screen = Screen(console)
        self._last: Sequence[RunRow] = ()

    def start(self) -> None:
        """Begin drawing."""
        self._screen.start()

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Keep it for the next drawing."""
        self._screen.say(log_line(record, text))

    def show(self, rows: Sequence[RunRow]) -> None:
        """Draw the tree as it is now, below what was printed since the last time."""
        self._last = rows or self._last
        root = build_tree(self._last)
        self._screen.draw(() if root is None else self._lines(root, self._last))

    def abandon(self) -> None:
        """Draw what there is, and stop."""
        self.close(())

    def close(self, rows: Sequence[RunRow]) -> None:
        """Draw it for the last time, and leave it standing."""
        self._screen.let_go()
        self.show(rows)
        self._screen.stop()

    def _lines(self, root: Node, rows: Sequence[RunRow]) -> list[Text]:
        lines = lay_out(root, int(time.time() * _MICRO), self._screen.height - 2)
        return [*map(tree_line, lines), Text(counts(rows), "dim", no_wrap=True, overflow="ellipsis")]


def tree_line(line: Line) -> Text:
    mark, style = state_style(line.state)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(line.guide, "dim")
    if line.label:
        text.append(f"{mark} ", style)
        text.append(line.label, "bold" if not line.guide else "")
    if line.name:
        text.append(f"  {line.name}", "dim")
    bad = line.state in _TROUBLE
    text.append(f"  {line.note}" if line.note else "", style if bad else "dim")
    return text
