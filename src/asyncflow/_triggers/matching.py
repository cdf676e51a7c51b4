"""Which events a trigger is about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from asyncflow.exceptions import TriggerError

__all__ = ["EventFact", "EventMatch", "Names", "is_series", "match_given", "names_given"]

Names = str | tuple[str, ...]


class EventFact(NamedTuple):
    """What a trigger is told of an event."""

    id: str
    """Its place among all events of the home."""
    at: int
    """When it occurred, in microseconds since 1970 UTC."""
    name: str
    resource: str | None = None
    payload: Any = None
    """Plain data: what JSON gives."""


@dataclass(frozen=True, slots=True)
class EventMatch:
    """Events of a name, about a resource: `EventMatch("order.*", resource="order/*")`.

    Each is a text in which `*` stands for anything, or a list of such texts, of which one is enough.
    Left out, any will do.
    """

    event: str | Collection[str] | None = None
    resource: str | Collection[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", names_given("EventMatch", "event", self.event))
        object.__setattr__(self, "resource", names_given("EventMatch", "resource", self.resource))

    def accepts(self, fact: EventFact) -> bool:
        """Whether an event is one of these."""
        return _one_matches(self.event, fact.name) and _one_matches(self.resource, fact.resource)

    def literal_resources(self) -> list[str]:
        """The resources that it names without a `*`."""
        return [each for each in _several(self.resource) if "*" not in each]

    def to_data(self) -> dict[str, Any]:
        """As a JSON object."""
        given = {"event": self.event, "resource": self.resource}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value}

    def __str__(self) -> str:
        about = f" of {' or '.join(map(repr, _several(self.resource)))}" if self.resource else ""
        return (" or ".join(map(repr, _several(self.event))) or "any event") + about


def match_given(kind: str, name: str, value: object) -> EventMatch:
    """The match that somebody gave: one, or the name of events. Raises `TriggerError`."""
    if isinstance(value, EventMatch):
        return value
    if isinstance(value, str) and value:
        return EventMatch(value)
    if _is_mapping(value) and value and value.keys() <= {"event", "resource"}:  # as it was stored
        return EventMatch(**value)
    raise TriggerError(kind, name, value, "the name of an event such as 'order.paid', or EventMatch('order.*', ...)")


def names_given(kind: str, field: str, value: object) -> Names | None:
    """A text or a list of texts that somebody gave. Raises `TriggerError`."""
    if value is None or (isinstance(value, str) and value):
        return value
    if is_series(value):
        names = tuple(value)
        if names and all(isinstance(each, str) and each for each in names):
            return names
    raise TriggerError(kind, field, value, "a text such as 'order.*', or a list of such texts")


def is_series(value: object) -> TypeGuard[Collection[Any]]:
    """Whether it is several of something."""
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _several(names: Any) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


def _one_matches(names: Any, text: str | None) -> bool:
    if names is None:
        return True
    return text is not None and any(_matches(each, text) for each in _several(names))


def _matches(pattern: str, text: str) -> bool:
    """Whether `text` is `pattern`, where `*` stands for anything.

    Not fnmatch, whose [ ] and ? would mean something in names that hold them; and no regular expression, which
    takes the longer the more stars there are, over a text that anybody may have written.
    """
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    *middle, last = others
    end = len(text) - len(last)
    if not (text.startswith(first) and text.endswith(last) and len(first) <= end):
        return False
    place = len(first)
    for part in middle:
        found = text.find(part, place, end)  # the first that fits leaves most for the others
        if found < 0:
            return False
        place = found + len(part)
    return True
