"""`asyncflow runs logs`: what a run logged, a line for each record, also while it goes on."""

from __future__ import annotations

import json as json_module
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from asyncflow._backend.detect import host_here
from asyncflow._backend.inline import drive
from asyncflow._log_following import LinesOfRun, has_ended
from asyncflow._rows import FLOW, LogRow, RunRow, default_task_run_name, log_record_of, moment
from asyncflow._services import Services
from asyncflow.abc import LogQuery, RunStore
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.output import UsageError, complain, escaped, json_text, table_console, write_data
from asyncflow.cli.records import log_json
from asyncflow.cli.watched import INTERRUPTED
from asyncflow.cli.words import RunId, count_of
from asyncflow.clock import SystemClock
from asyncflow.doctor.records import Records
from asyncflow.exceptions import OptionError

__all__ = ["logs"]

_PAGE = 1000
_DEATH_SECONDS = 1.0
"""How often to look whether the process of a run that is followed still lives."""


def logs(
    run_id: RunId,
    /,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], help="Go on until the run ends, with what it logs.", negative="")
    ] = False,
    level: Annotated[str | None, Parameter(help="This level and above, such as WARNING.")] = None,
    tail: Annotated[int | None, Parameter(help="Of what there is, at most so many, the newest.")] = None,
    limit: Annotated[int | None, Parameter(help="At most so many, the oldest.")] = None,
    traceback: Annotated[bool, Parameter(help="Show whole tracebacks, below their lines.", negative="")] = False,
    json: Annotated[
        bool, Parameter(name="--json", help="One JSON document; with --follow one per line.", negative="")
    ] = False,
    home: Home = None,
) -> int:
    """Print what a run logged, oldest first: of a flow run with its tasks, or of a task run."""
    if limit is not None and (follow or tail is not None):
        raise UsageError("--limit gives the oldest lines, --tail the newest, --follow all that come; give one of them")
    services = open_recorded(home)
    run = row_of(services, run_id)
    query = LogQuery(run_id=run.id, level=_level_of(level), after_id=b"", limit=_PAGE)
    lines: Iterable[LogRow] = _recorded(services, query)
    if limit is not None:
        lines = islice(lines, count_of("--limit", limit))
    if json and not follow:
        lines = lines if tail is None else deque(lines, count_of("--tail", tail))
        write_data(json_text([log_json(log_record_of(line)) for line in lines]))
        return 0
    write = _write_json if json else _Printer(services.store, tracebacks=traceback).write
    try:
        last = _write_all(lines, write) if tail is None else _write_newest(lines, count_of("--tail", tail), write)
        return _follow(services, replace(query, after_id=last), write) if follow else 0
    except KeyboardInterrupt:
        if follow:  # it is how one stops
            return INTERRUPTED
        raise


def _level_of(level: str | None) -> int | None:
    if level is None:
        return None
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise OptionError("--level", level, "a level of logging, such as WARNING")
    return number


def _recorded(services: Services, query: LogQuery) -> Iterator[LogRow]:
    """What there is, a page at a time."""
    while page := services.store.read_logs(query):
        yield from page
        if len(page) < query.limit:  # another look would be at all lines of all runs since
            return
        query = replace(query, after_id=page[-1].id)


def _write_all(lines: Iterable[LogRow], write: Callable[[LogRow], None]) -> bytes:
    """Write the lines; gives the last one's id."""
    last = b""
    for line in lines:
        write(line)
        last = line.id
    return last


def _write_newest(lines: Iterable[LogRow], number: int, write: Callable[[LogRow], None]) -> bytes:
    """Write the last lines; gives the id of the very last one."""
    newest = deque(lines, max(number, 1))
    _write_all(islice(newest, len(newest) - min(number, len(newest)), None), write)
    return newest[-1].id if newest else b""


# --- following -------------------------------------------------------------------------------


def _follow(services: Services, query: LogQuery, write: Callable[[LogRow], None]) -> int:
    """Write what comes until the run ends; gives the exit status."""
    watch = _Watch(services.settings.home)
    host = host_here(SystemClock())
    lines = LinesOfRun(query, watch.is_over)
    while page := drive(lines.page(services, host)):
        _write_all(page, write)
    if watch.is_dead:
        complain("the process of this run has died; `asyncflow runs reap` ends what it left open")
    return 1 if watch.is_dead else 0


class _Watch:
    """Whether a run is over: it has ended, or its process has died, which this command does not record."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._looked = time.monotonic()
        self.is_dead = False

    def is_over(self, row: RunRow | None) -> bool:
        if has_ended(row):
            return True
        if not self.is_dead and time.monotonic() - self._looked >= _DEATH_SECONDS:
            assert row is not None
            self.is_dead = self._has_died(row.owner)
            self._looked = time.monotonic()
        return self.is_dead

    def _has_died(self, number: int) -> bool:
        with closing(Records(self._home)) as records:
            return any(owner.id == number and owner.is_dead(self._home) for owner in records.owners())


# --- writing ---------------------------------------------------------------------------------


def _write_json(line: LogRow) -> None:
    # In ASCII: there are more characters that end a line, or control a terminal, than those JSON escapes.
    write_data(json_module.dumps(log_json(log_record_of(line))) + "\n")


class _Printer:
    """Writes records for people: time, level, the run's name, and the text on one line whatever it holds."""

    def __init__(self, store: RunStore, *, tracebacks: bool) -> None:
        self._store = store
        self._tracebacks = tracebacks
        self._names: dict[bytes | None, str] = {None: ""}
        self._console = table_console()

    def write(self, line: LogRow) -> None:
        text, below = split_traceback(line.message)
        at = moment(line.timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        level = f"{logging.getLevelName(line.level):<8}"
        text = f"{self._name(line.task_run_id or line.flow_run_id)}: {escaped(text)}"
        if below and not self._tracebacks:
            text += f": {escaped(summary_of(below))}"
        elif below:
            text += "".join(f"\n    {escaped(each)}" for each in below.split("\n"))
        if self._console.is_terminal:
            style = "bold red" if line.level >= logging.ERROR else "yellow" if line.level >= logging.WARNING else "blue"
            self._console.print(Text.assemble((at, "dim"), "  ", (level, style), f"  {text}"), soft_wrap=True)
        else:
            write_data(f"{at}  {level}  {text}\n")

    def _name(self, run_id: bytes | None) -> str:
        if run_id not in self._names:
            row = None if run_id is None else self._store.read_run(run_id)
            self._names[run_id] = "?" if row is None else escaped(_name_of(row))
        return self._names[run_id]


def _name_of(row: RunRow) -> str:
    return row.name or (row.function if row.kind == FLOW else default_task_run_name(row.function, row.id))


_HEADER = "Traceback (most recent call last):"
_BELOW = re.compile(
    r"\n(?=(?:  \+ Exception Group )?Traceback \(most recent call last\):\n|Stack \(most recent call last\):\n)"
)
_GROUP = re.compile(r"^  \| (\S.*)$", re.MULTILINE)


def split_traceback(message: str) -> tuple[str, str]:
    """The text that was logged, and the traceback or stack below it."""
    found = _BELOW.search(message)
    return (message, "") if found is None else (message[: found.start()], message[found.end() :])


def summary_of(traceback: str) -> str:
    """What was raised in the end, as the traceback says it: `ValueError: the reason`."""
    *_, last = traceback.rpartition(f"{_HEADER}\n")
    for line in last.split("\n"):
        if line and not line[0].isspace():
            return line
    group = _GROUP.search(traceback)
    return traceback.rstrip("\n").rpartition("\n")[2].strip() if group is None else group[1]
