"""A table of runs, which fits into the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncflow._rows import FLOW, STATE_CODES, RunRow, flow_run_of, microseconds, task_run_of
from asyncflow.cli.live import state_style
from asyncflow.cli.output import age, duration_between, one_line
from asyncflow.states import StateType

__all__ = ["due_words", "print_runs"]

_ROOM_FOR_NAMES = 100
_SCHEDULED = STATE_CODES[StateType.SCHEDULED]


def print_runs(console: Console, rows: Sequence[RunRow]) -> None:
    """Print runs in the order they come in; of one that waits to be started, when it is due in place of how long."""
    if not rows:
        console.print("no runs")
        return
    has_names = console.width >= _ROOM_FOR_NAMES  # ids are for copying, so they are what stays whole
    waiting = [_is_waiting(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ID", no_wrap=True, min_width=36)
    table.add_column("STATE", no_wrap=True, min_width=11)
    for title in ("FLOW" if rows[0].kind == FLOW else "TASK", *(["NAME"] if has_names else [])):
        table.add_column(title, overflow="ellipsis", no_wrap=True)
    table.add_column("AGE", no_wrap=True, justify="right", min_width=3)
    took = "DUE" if all(waiting) else "TOOK/DUE" if any(waiting) else "TOOK"
    table.add_column(took, no_wrap=True, justify="right", min_width=6)
    now = microseconds(datetime.now(UTC))
    for row in rows:
        run = flow_run_of(row) if row.kind == FLOW else task_run_of(row)
        mark, style = state_style(run.state.type)
        names = [one_line(row.function), *([one_line(run.name)] if has_names else [])]
        state = Text(f"{mark} {one_line(run.state.name)}", style)
        table.add_row(str(run.id), state, *names, age(row.created, now), _took(row, now))
    console.print(table)


def due_words(due: int, now: int) -> str:
    """`in 4 min 10 s`, or `12.0 s ago`."""
    return f"in {duration_between(now, due)}" if due > now else f"{duration_between(due, now)} ago"


def _is_waiting(row: RunRow) -> bool:
    return row.scheduled is not None and row.state == _SCHEDULED


def _took(row: RunRow, now: int) -> str:
    if row.scheduled is not None and _is_waiting(row):
        return due_words(row.scheduled, now)
    return "" if row.started is None else duration_between(row.started, row.ended or now)
