"""What every kind of trigger has: parameters with templates, a name, and a memory that is plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

from asyncflow._schedules.fields import is_slug, plain_parameters
from asyncflow._triggers.matching import EventFact, EventMatch, is_series
from asyncflow._triggers.templates import check_templates, needs_payloads_of
from asyncflow.exceptions import OptionError, TriggerError
from asyncflow.retries import Seconds, seconds_of

__all__ = ["MOST_REMEMBERED", "Firing", "Memory", "Trigger"]

MOST_REMEMBERED = 1000
"""Events, resources or open waits that one trigger remembers. What comes on top is counted as "dropped"."""
_MICRO = 1_000_000

Memory = dict[str, Any]


class Firing(NamedTuple):
    """A trigger asks for a run."""

    key: str
    """Of this firing alone among those of its trigger, the same whoever finds it."""
    events: tuple[EventFact, ...]
    """What led to it, oldest first; empty for an absence in which nothing was ever seen."""


@dataclass(frozen=True, kw_only=True)
class Trigger(ABC):
    """Which events start a run: `EventTrigger`, `SequenceTrigger` or `AbsenceTrigger`."""

    kind: ClassVar[str]

    parameters: Mapping[str, Any] | None = field(default=None, hash=False)
    """Parameters of its runs, over those of the deployment; `{{ event.payload.city }}` in a text is filled in."""
    slug: str | None = None
    """Its name within its deployment: letters, digits, "-", "_", "."."""
    active: bool = True

    def __post_init__(self) -> None:
        if not (self.slug is None or is_slug(self.slug)):
            raise self._bad("slug", self.slug, "1 to 100 letters, digits, '-', '_' or '.'")
        if not isinstance(cast("object", self.active), bool):
            raise self._bad("active", self.active, "True or False")
        try:
            plain = plain_parameters(self.parameters)
        except OptionError as error:
            raise self._bad("parameters", error.value, error.expected) from None
        self._set("parameters", plain)
        check_templates(type(self).__name__, plain or {})

    def _bad(self, name: str, value: object, expected: str) -> TriggerError:
        return TriggerError(type(self).__name__, name, value, expected)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _set_within(self, within: Seconds | None) -> None:
        try:
            seconds = 0.0 if within is None else seconds_of("within", within)
        except OptionError:
            seconds = 0.0
        if seconds < 1 / _MICRO:
            raise self._bad("within", within, "seconds above 0, or a timedelta")
        self._set("within", seconds)

    @cached_property
    def _within(self) -> int:
        return round(cast("float", getattr(self, "within", 0) or 0) * _MICRO)

    @cached_property
    def _keeps_payloads(self) -> bool:
        return needs_payloads_of(self.parameters, "events")

    def _kept(self, fact: EventFact) -> list[Any]:
        """An event as it is remembered: with its payload only where a template asks for it."""
        return [*fact[:4], fact.payload if self._keeps_payloads else None]

    @abstractmethod
    def advance(self, memory: Memory, events: Iterable[EventFact], now: int) -> tuple[Memory, list[Firing]]:
        """See `advance` of this module."""

    def next_look(self, memory: Mapping[str, Any]) -> int | None:
        """See `next_look` of this module."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """In a few words, for a table."""

    def to_data(self) -> dict[str, Any]:
        """As a JSON object; fields that have their default are left out, as in a schedule's."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {each.name: _as_data(data[each.name]) for each in fields(self) if data[each.name] != each.default}
        return dict(sorted({"kind": self.kind, **given}.items()))


def _as_data(value: object) -> Any:
    if isinstance(value, EventMatch):
        return value.to_data()
    return [_as_data(each) for each in value] if is_series(value) else value
