"""`asyncflow events`: what happened, a line for each event, also as it happens."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Annotated, Any, cast

from cyclopts import Parameter
from rich.text import Text

from asyncflow._backend.detect import host_here
from asyncflow._backend.inline import drive
from asyncflow._event_pages import EventReader
from asyncflow._event_rows import cursor_of, event_of
from asyncflow._rows import FLOW
from asyncflow._services import Services
from asyncflow._subscriptions import Subscription
from asyncflow.cli.home import Home, open_recorded, row_of
from asyncflow.cli.output import UsageError, escaped, json_text, table_console, write_data
from asyncflow.cli.records import event_json
from asyncflow.cli.watched import INTERRUPTED
from asyncflow.cli.words import count_of
from asyncflow.clock import SystemClock
from asyncflow.events import Event, EventFilter

__all__ = ["events"]

_STYLES = {"Completed": "green", "Failed": "bold red", "Crashed": "bold red", "Cancelled": "yellow"}


def events(
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], help="What happens from now on, until Ctrl-C.", negative="")
    ] = False,
    flow_run: Annotated[str | None, Parameter(help="The id of a flow run: in it, and in those below it.")] = None,
    name: Annotated[
        list[str] | None, Parameter(help="Of this name; * at the end stands for anything: 'task-run.*'.", negative="")
    ] = None,
    after: Annotated[str | None, Parameter(help="After the event with this id (see --json).")] = None,
    limit: Annotated[int | None, Parameter(help="At most so many.")] = None,
    json: Annotated[
        bool, Parameter(name="--json", help="One JSON document; with --follow one per line.", negative="")
    ] = False,
    home: Home = None,
) -> int:
    """Print what happened, oldest first: changes of states, and what programs emitted."""
    services = open_recorded(home)
    wanted = EventFilter(names=name or None, flow_run_id=None if flow_run is None else _flow_run(services, flow_run))
    found = _followed(services, wanted, after) if follow else _recorded(services, wanted, after)
    if limit is not None:
        found = islice(found, count_of("--limit", limit))
    if json and not follow:
        write_data(json_text([event_json(event) for event in found]))
        return 0
    write = _write_json if json else _printer()
    try:
        for event in found:
            write(event)
    except KeyboardInterrupt:
        if follow:  # it is how one stops
            return INTERRUPTED
        raise
    return 0


def _flow_run(services: Services, run_id: str) -> str:
    row = row_of(services, run_id)
    if row.kind != FLOW:
        raise UsageError(f"--flow-run {run_id}: that is a task run")
    return row.id.hex()


def _recorded(services: Services, wanted: EventFilter, after: str | None) -> Iterator[Event]:
    """What there is, a page at a time."""
    reader, cursor, has_more = EventReader(services.store, wanted), cursor_of(after), True
    while has_more:
        rows, cursor, has_more = reader.page(cursor)
        yield from map(event_of, rows)


def _followed(services: Services, wanted: EventFilter, after: str | None) -> Iterator[Event]:
    """What happens, as it comes."""

    async def opened() -> Services:
        return services

    subscription = Subscription(opened, lambda: host_here(SystemClock()), wanted, after)
    while True:
        try:
            yield drive(cast("Any", anext(subscription)))
        except StopAsyncIteration:  # the runtime was closed
            return


def _write_json(event: Event) -> None:
    write_data(json_module.dumps(event_json(event), ensure_ascii=False) + "\n")


def _printer() -> Callable[[Event], None]:
    """Writes events for people: time, name, what it is about, on one line whatever it holds."""
    console = table_console()

    def write(event: Event) -> None:
        at = event.occurred.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        if console.is_terminal:
            style = _STYLES.get(event.name.partition(".")[2], "blue")
            parts = (at, "dim"), "  ", (escaped(event.name), style), f"  {_about(event)}"
            console.print(Text.assemble(*parts), soft_wrap=True)
        else:
            write_data(f"{at}  {escaped(event.name)}  {_about(event)}\n")

    return write


def _about(event: Event) -> str:
    if event.state is None:
        told = [event.resource or "", "" if event.payload is None else json_module.dumps(event.payload)]
    else:
        told = [event.payload["name"], str(event.task_run_id or event.flow_run_id), event.state.message or ""]
    return "  ".join(escaped(each) for each in told if each)
