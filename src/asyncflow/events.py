"""What happened: every change of a run's state, and what programs emit themselves.

Both are told by the store's journal, so following events is reading it from some place on: nothing is
buffered but the page that is being read, a slow reader loses nothing, and runs pay nothing for readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast, get_args
from uuid import UUID

from asyncflow._journal import EventRow
from asyncflow._rows import FLOW
from asyncflow.context import current_run
from asyncflow.exceptions import EventPayloadError, NoRuntimeError, NotJSONError, OptionError
from asyncflow.ids import parse_id
from asyncflow.runtime import HOME
from asyncflow.serializers import encode
from asyncflow.states import State

__all__ = ["Event", "EventFilter", "EventKind", "emit_event"]

EventKind = Literal["flow-run", "task-run", "emitted"]

_LONGEST_PAYLOAD = 64 * 1024
"""Characters of JSON."""
_MASK = "**********"
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    id: str
    """Where it stands among all events of the home: reading `after` it goes on with the next one."""
    name: str
    """Of a state: "flow-run." or "task-run." and the state's name, such as "flow-run.Completed"."""
    occurred: datetime
    """When (aware, UTC)."""
    resource: str | None = None
    """What it is about, as whoever emitted it says; of a state: "flow-run/<id>" or "task-run/<id>"."""
    payload: Any = None
    """What else whoever emitted it tells; of a state: the names of the run and of its flow or task."""
    flow_run_id: UUID | None = None
    """The flow run that it happened in, or to."""
    task_run_id: UUID | None = None
    """The task run that it happened in, or to; None when that was a flow's body itself."""
    state: State[Any] | None = None
    """The state that a run came to, without its value; None for an emitted event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events. Conditions left out do not apply."""

    names: str | Iterable[str] | None = None
    """One of these; `*` at the end stands for whatever follows: "task-run.*"."""
    flow_run_id: UUID | str | None = None
    """In this flow run, or in one below it; its own states, too."""
    resource: str | None = None
    """About this; `*` at the end stands for whatever follows."""
    kinds: EventKind | Iterable[EventKind] | None = None
    """Of these kinds: states of flow runs ("flow-run"), of task runs ("task-run"), "emitted" ones."""

    def __post_init__(self) -> None:
        names = _several(self.names)
        for name in names or ():
            _check_pattern("names", name)
        if self.resource is not None:
            _check_pattern("resource", self.resource)
        kinds = _several(self.kinds)
        if not set(kinds or ()) <= set(get_args(EventKind)):
            raise OptionError("kinds", self.kinds, "one or several of " + ", ".join(map(repr, get_args(EventKind))))
        try:
            flow_run_id = None if self.flow_run_id is None else UUID(bytes=parse_id(self.flow_run_id))
        except (ValueError, AttributeError, TypeError):
            raise OptionError("flow_run_id", self.flow_run_id, "the id of a flow run") from None
        for name, value in (("names", names), ("kinds", kinds), ("flow_run_id", flow_run_id)):
            object.__setattr__(self, name, value)


def _several(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return given if given is None else (given,) if isinstance(given, str) else tuple(given)


def _check_pattern(option: str, pattern: object) -> None:
    if not isinstance(pattern, str) or not pattern or "*" in pattern[:-1]:
        raise OptionError(option, pattern, "a name, with * only at its end: 'task-run.*'")


# --- emitting --------------------------------------------------------------------------------


def emit_event(name: str, resource: str | None = None, payload: Any = None) -> None:
    """Tell that something happened. Returns at once: the event is on record a moment later.

    In the body of a run it belongs to that run; elsewhere it needs a runtime that is open
    (`NoRuntimeError`). An event that a run emitted is on record before the run's end is; where the disk
    is so far behind that 10,000 wait, more are dropped and counted in `client.dropped_events`.

    Args:
        name: What happened: "order.placed". Names that begin with "flow-run." or "task-run." are the states'.
        resource: What it happened to: "order/7".
        payload: More about it, as JSON of at most 64 KiB: plain data, dataclasses, pydantic models. Secrets
            (`SecretStr`) are written as stars. `EventPayloadError` when it is something else.
    """
    if not _is_text(name) or name.startswith(("flow-run.", "task-run.")):
        raise OptionError("name", name, "a text such as 'order.placed', not beginning with 'flow-run.' or 'task-run.'")
    if not (resource is None or _is_text(resource)):
        raise OptionError("resource", resource, "a text such as 'order/7'")
    text = None if payload is None else _payload_text(name, payload)
    run = current_run.get()
    services = HOME.in_force() if run is None else run.services
    if services is None:
        raise NoRuntimeError
    flow_run_id = task_run_id = None
    if run is not None:
        is_flow = run.kind == FLOW
        flow_run_id, task_run_id = (run.id, None) if is_flow else (run.flow_run_id, run.id)
    at = int(services.clock.now() * _MICRO)
    services.store.put_event(EventRow(at, name, resource, text, flow_run_id, task_run_id))


def _is_text(given: object) -> bool:
    return isinstance(given, str) and given != ""


def _payload_text(name: str, payload: Any) -> str:
    try:
        text = encode(_masked(payload), where="payload")
    except NotJSONError as error:
        raise EventPayloadError(name, f"{error.path} is not JSON: {error.problem}") from None
    except RecursionError:
        raise EventPayloadError(name, "it is nested too deep, or contains itself") from None
    if len(text) > _LONGEST_PAYLOAD:
        raise EventPayloadError(name, f"it takes {len(text):,} characters of JSON, and {_LONGEST_PAYLOAD:,} may be")
    return text


def _masked(value: Any) -> Any:
    """`value` with stars for the secrets in its lists and dicts."""
    if isinstance(value, dict):
        return {key: _masked(each) for key, each in cast("Any", value).items()}
    if isinstance(value, list | tuple):
        return [_masked(each) for each in cast("Any", value)]
    kind = type(cast("object", value))
    return _MASK if hasattr(kind, "get_secret_value") else value
