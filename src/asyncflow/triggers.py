"""When a deployment starts runs because of events: rules that read what happened, event by event.

Triggers are plain values, and reading is pure: what a trigger remembers is plain data that whoever reads
gives back, so any process can go on where another left off, and reading the same events again from the same
memory gives the same firings under the same keys.

The memory is bounded: `MOST_REMEMBERED` events or open waits, whatever happens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from asyncflow._triggers.absence import AbsenceTrigger
from asyncflow._triggers.fields import MOST_REMEMBERED, Firing, Memory, Trigger
from asyncflow._triggers.matching import EventFact, EventMatch, names_given
from asyncflow._triggers.sequence import SequenceTrigger
from asyncflow._triggers.templates import filled
from asyncflow.exceptions import TriggerError
from asyncflow.retries import Seconds

__all__ = [
    "MOST_REMEMBERED",
    "AbsenceTrigger",
    "EventFact",
    "EventMatch",
    "EventTrigger",
    "Firing",
    "SequenceTrigger",
    "Trigger",
    "advance",
    "describe_trigger",
    "firing_parameters",
    "next_look",
    "trigger_of",
    "trigger_to_data",
]


@dataclass(frozen=True)
class EventTrigger(Trigger):
    """By events of a name, about a resource: `EventTrigger("order.*", resource="order/*", threshold=10, within=60)`.

    In texts `*` stands for anything; a list of texts is any of them. With a `threshold`, that many events must
    have occurred within `within` seconds; each event counts for one firing.
    """

    kind: ClassVar[str] = "event"

    event: str | Collection[str] | None = None
    resource: str | Collection[str] | None = field(default=None, kw_only=True)
    threshold: int = field(default=1, kw_only=True)
    within: Seconds | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("event", names_given("EventTrigger", "event", self.event))
        self._set("resource", names_given("EventTrigger", "resource", self.resource))
        if self.event is None and self.resource is None:
            raise self._bad("event", None, "the name of an event such as 'order.paid' ('*' for all), or a resource")
        number: Any = self.threshold
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_REMEMBERED:
            raise self._bad("threshold", number, f"a whole number from 1 to {MOST_REMEMBERED:,}")
        if number > 1 and self.within is None:
            raise self._bad("within", None, f"the seconds in which threshold={number} events count together")
        if self.within is not None:
            self._set_within(self.within)

    @cached_property
    def _match(self) -> EventMatch:
        return EventMatch(self.event, self.resource)

    def advance(self, memory: Memory, events: Iterable[EventFact], now: int) -> tuple[Memory, list[Firing]]:
        seen = [EventFact(*each) for each in memory.get("seen", ())]
        firings: list[Firing] = []
        for fact in events:
            if not self._match.accepts(fact):
                continue
            oldest = fact.at - self._within
            seen = [*(each for each in seen if self.threshold > 1 and each.at >= oldest), fact]
            if len(seen) >= self.threshold:
                firings.append(Firing(fact.id, tuple(seen)))
                seen = []
        return ({"seen": [self._kept(each) for each in seen]} if seen else {}), firings

    def describe(self) -> str:
        return (
            f"{self._match}" if self.threshold == 1 else f"{self.threshold} of {self._match} within {self.within:g} s"
        )


# --- reading ---------------------------------------------------------------------------------


def advance(
    trigger: Trigger, memory: Mapping[str, Any], events: Sequence[EventFact], now: int
) -> tuple[dict[str, Any], list[Firing]]:
    """What a trigger makes of the next events: its new memory (JSON), and the firings they led to.

    Args:
        trigger: The rule.
        memory: What the last call gave; empty to begin with.
        events: What happened since then, all of it, in the order of the record.
        now: Microseconds since 1970 UTC: the moment up to which `events` tells everything. Where more events
            are on record than are given, it is the moment of the last that is given.
    """
    return trigger.advance(dict(memory), events, now)


def next_look(trigger: Trigger, memory: Mapping[str, Any]) -> int | None:
    """When to call `advance` although nothing happens, for what did not happen; None when there is no need."""
    return trigger.next_look(memory)


def firing_parameters(trigger: Trigger, firing: Firing) -> dict[str, Any]:
    """The trigger's parameters with what the events tell. Raises `TemplateError` where they do not tell it."""
    return filled(trigger.parameters or {}, firing.events)


# --- as data, and for people -----------------------------------------------------------------

_KINDS: dict[str, type[Trigger]] = {each.kind: each for each in (EventTrigger, SequenceTrigger, AbsenceTrigger)}


def trigger_to_data(trigger: Trigger) -> dict[str, Any]:
    """A trigger as a JSON object with sorted keys: equal triggers give equal text."""
    return trigger.to_data()


def trigger_of(data: Mapping[str, Any]) -> Trigger:
    """The trigger that `trigger_to_data` was given. Raises `TriggerError` for anything else."""
    kind = data.get("kind")
    if kind not in _KINDS:
        raise TriggerError("trigger", "kind", kind, "one of " + ", ".join(map(repr, _KINDS)))
    try:
        return _KINDS[kind](**{name: value for name, value in data.items() if name != "kind"})
    except TypeError as error:
        raise TriggerError("trigger", "data", dict(data), f"what trigger_to_data gives ({error})") from None


def describe_trigger(trigger: Trigger) -> str:
    """A trigger in a few words, for a table: "3 of 'order.failed' within 60 s"."""
    return trigger.describe()
