"""`asyncflow runs`: what was recorded of runs, as tables or as JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

from cyclopts import App, Parameter
from rich.table import Table
from rich.text import Text

from asyncflow._backend.inline import drive
from asyncflow._rows import FLOW, TASK, RunRow, flow_run_of, microseconds, task_run_of
from asyncflow.abc import RunQuery
from asyncflow.cli.home import Home, open_recorded
from asyncflow.cli.live import state_style
from asyncflow.cli.output import (
    UsageError,
    age,
    duration_between,
    json_text,
    one_line,
    printable,
    table_console,
    write_data,
)
from asyncflow.cli.records import log_json, run_json, show_json
from asyncflow.cli.show import print_run
from asyncflow.client import get_client
from asyncflow.exceptions import RunNotFoundError
from asyncflow.ids import parse_id
from asyncflow.states import StateType

__all__ = ["app"]

app = App(name="runs", help="List runs and look at what was recorded of them.")

RunId = Annotated[str, Parameter(help="The id of a flow run or a task run.")]
AsJSON = Annotated[bool, Parameter(name="--json", help="One JSON document.", negative="")]
_ROOM_FOR_NAMES = 100
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@app.command
def ls(
    *,
    state: Annotated[
        list[str] | None, Parameter(help="Only runs in this state, such as failed. Can be repeated.", negative="")
    ] = None,
    flow: Annotated[str | None, Parameter(help="Only runs of this flow.")] = None,
    task: Annotated[str | None, Parameter(help="Task runs, of this task.")] = None,
    tasks: Annotated[bool, Parameter(help="Task runs instead of flow runs.", negative="")] = False,
    name: Annotated[str | None, Parameter(help="Only runs of this name.")] = None,
    tag: Annotated[
        list[str] | None, Parameter(help="Only runs with this tag. Repeated: with all of them.", negative="")
    ] = None,
    within: Annotated[str | None, Parameter(name="--in", help="Only what this flow run called (its id).")] = None,
    since: Annotated[
        str | None, Parameter(help="Only runs created since: 2024-01-31, 2024-01-31T12:00, or 90s, 15m, 2h, 7d ago.")
    ] = None,
    limit: Annotated[int, Parameter(help="At most so many.")] = 50,
    offset: Annotated[int, Parameter(help="Without so many of the newest.")] = 0,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """List runs, newest first: flow runs, or with --tasks task runs."""
    if task is not None and flow is not None:
        raise UsageError("--flow lists flow runs and --task lists task runs; give one of them")
    query = RunQuery(
        kinds=frozenset({TASK} if tasks or task is not None else {FLOW}),
        states=_states(state),
        name=name,
        function=task if task is not None else flow,
        tags=frozenset(tag) if tag else None,
        flow_run_id=None if within is None else _id(within),
        since=_since(since),
        limit=_count("--limit", limit),
        offset=_count("--offset", offset),
    )
    rows = open_recorded(home).store.read_runs(query)
    if json:
        write_data(json_text([run_json(flow_run_of(row) if row.kind == FLOW else task_run_of(row)) for row in rows]))
    else:
        _print_table(rows)
    return 0


@app.command
def show(run_id: RunId, /, *, json: AsJSON = False, home: Home = None) -> int:
    """Show a run: its states, parameters, result or error, and the runs it called."""
    services = open_recorded(home)
    rows = services.store.read_tree(_id(run_id))
    if not rows:
        raise RunNotFoundError(run_id, services.settings.home)
    states = drive(get_client().read_states(run_id))
    if json:
        write_data(json_text(show_json(rows, states)))
    else:
        print_run(table_console(), rows, states)
    return 0


@app.command
def logs(
    run_id: RunId,
    /,
    *,
    level: Annotated[str | None, Parameter(help="This level and above, such as WARNING.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, the oldest.")] = 1000,
    json: AsJSON = False,
    home: Home = None,
) -> int:
    """Print what a run logged, oldest first: of a flow run with its tasks, or of a task run."""
    services = open_recorded(home)
    _known(services.store.read_run(_id(run_id)), run_id, services.settings.home)
    records = drive(get_client().read_logs(run_id, level=level, limit=_count("--limit", limit)))
    if json:
        write_data(json_text([log_json(record) for record in records]))
        return 0
    console = table_console()
    for record in records:
        at = record.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        console.print(f"{at}  {_level_name(record.level):<8}  {printable(record.message)}", soft_wrap=True)
    return 0


@app.command
def result(run_id: RunId, /, *, home: Home = None) -> int:
    """Print the recorded value of a completed run, as JSON."""
    services = open_recorded(home)
    _known(services.store.read_run(_id(run_id)), run_id, services.settings.home)
    write_data(json_text(drive(get_client().read_result(run_id))))
    return 0


# --- words to values -------------------------------------------------------------------------


def _id(text: str) -> bytes:
    try:
        return parse_id(text)
    except ValueError:
        raise RunNotFoundError(text) from None


def _known(row: RunRow | None, run_id: str, home: object) -> None:
    if row is None:
        raise RunNotFoundError(run_id, str(home))


def _states(names: Iterable[str] | None) -> frozenset[StateType] | None:
    if not names:
        return None
    try:
        return frozenset(StateType(name.upper()) for name in names)
    except ValueError:
        known = ", ".join(type_.value.lower() for type_ in StateType)
        raise UsageError(f"--state {' '.join(names)!r}: the states are {known}") from None


def _count(option: str, number: int) -> int:
    if number < 0:
        raise UsageError(f"{option} {number}: it must be 0 or more")
    return number


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    try:
        if unit in _UNITS:
            return microseconds(datetime.now(UTC) - timedelta(**{_UNITS[unit]: float(number)}))
        return microseconds(datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError):
        raise UsageError(f"--since {text!r}: write a date, a date and time, or 90s, 15m, 2h, 7d") from None


def _level_name(level: int) -> str:
    return str(logging.getLevelName(level))


# --- the table -------------------------------------------------------------------------------


def _print_table(rows: Sequence[RunRow]) -> None:
    console = table_console()
    if not rows:
        console.print("no runs")
        return
    has_names = console.width >= _ROOM_FOR_NAMES  # ids are for copying, so they are what stays whole
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ID", no_wrap=True, min_width=36)
    table.add_column("STATE", no_wrap=True, min_width=11)
    for title in ("FLOW" if rows[0].kind == FLOW else "TASK", *(["NAME"] if has_names else [])):
        table.add_column(title, overflow="ellipsis", no_wrap=True)
    table.add_column("AGE", no_wrap=True, justify="right", min_width=3)
    table.add_column("TOOK", no_wrap=True, justify="right", min_width=6)
    now = microseconds(datetime.now(UTC))
    for row in rows:
        run = flow_run_of(row) if row.kind == FLOW else task_run_of(row)
        mark, style = state_style(run.state.type)
        names = [one_line(row.function), *([one_line(run.name)] if has_names else [])]
        took = "" if row.started is None else duration_between(row.started, row.ended or now)
        state = Text(f"{mark} {one_line(run.state.name)}", style)
        table.add_row(str(run.id), state, *names, age(row.created, now), took)
    console.print(table)
