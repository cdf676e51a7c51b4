"""The records of events, made from what the journal tells."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from asyncflow._journal import Cursor, EventRow, cursor_text, parse_cursor
from asyncflow._rows import FLOW, STATE_TYPES, RunRow, default_task_run_name, maybe_uuid, moment, state_at
from asyncflow.events import Event, EventKind
from asyncflow.exceptions import OptionError
from asyncflow.serializers import decode

__all__ = ["cursor_of", "event_of", "flow_run_id_of", "kind_of", "name_of", "payload_of", "resource_of"]

_TITLES = tuple(type_.value.title() for type_ in STATE_TYPES)


def kind_of(row: EventRow) -> EventKind:
    """Of which kind an event is."""
    if row.run is None:
        return "emitted"
    return "flow-run" if row.run.kind == FLOW else "task-run"


def name_of(row: EventRow) -> str:
    """The name of an event."""
    if row.run is None:
        return row.name or ""
    return f"{kind_of(row)}.{row.entry[1] or _TITLES[row.entry[0]]}"


def resource_of(row: EventRow) -> str | None:
    """What an event is about."""
    return row.resource if row.run is None else f"{kind_of(row)}/{UUID(bytes=row.run.id)}"


def event_of(row: EventRow) -> Event:
    """The record of an event."""
    run = row.run
    return Event(
        id=cursor_text(row.cursor),
        name=name_of(row),
        occurred=moment(row.at),
        resource=resource_of(row),
        payload=payload_of(row),
        flow_run_id=maybe_uuid(flow_run_id_of(row)),
        task_run_id=maybe_uuid(row.task_run_id if run is None else None if run.kind == FLOW else run.id),
        state=None if run is None else state_at(run, row.sequence, row.entry),
    )


def payload_of(row: EventRow) -> Any:
    """What else an event tells."""
    if row.run is not None:
        return _about(row.run)
    return None if row.payload is None else decode(row.payload)


def _about(run: RunRow) -> dict[str, str]:
    if run.kind == FLOW:
        return {"name": run.name or run.function, "flow_name": run.function}
    return {"name": run.name or default_task_run_name(run.function, run.id), "task_name": run.function}


def flow_run_id_of(row: EventRow) -> bytes | None:
    """The flow run that an event happened in, or to."""
    if row.run is None:
        return row.flow_run_id
    return row.run.id if row.run.kind == FLOW else row.run.flow_run_id


def cursor_of(after: Event | str | None) -> Cursor | None:
    """The cursor that an event or its id stands for."""
    if after is None:
        return None
    text = after.id if isinstance(after, Event) else after
    try:
        return parse_cursor(text)
    except (ValueError, TypeError):
        raise OptionError("after", after, "an event, or the id of one") from None
