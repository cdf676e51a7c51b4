"""Triggers by events that do not come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

from asyncflow._triggers.fields import MOST_REMEMBERED, Firing, Memory, Trigger
from asyncflow._triggers.matching import EventFact, EventMatch, match_given
from asyncflow._triggers.templates import needs_payloads_of
from asyncflow.retries import Seconds

__all__ = ["AbsenceTrigger"]

_LATE = 1_000_000
"""Microseconds after its end that an absence is found: an event may be on record a moment after it occurred."""


@dataclass(frozen=True, kw_only=True)
class AbsenceTrigger(Trigger):
    """By what did not happen: `AbsenceTrigger(after="order.placed", expect="order.paid", within=3600)`.

    After an event of `after`, none of `expect` within `within` seconds, about the same resource (unless
    `same_resource` is false). Without `after`: none of `expect` for that long since the last one, or since the
    deployment was made; it fires once for a silence, and again after the next event. Resources that are not
    named are waited for once they were heard of.

    It fires a second after the time is over, for events that are still on their way to the record.
    """

    kind: ClassVar[str] = "absence"

    expect: str | EventMatch
    after: str | EventMatch | None = None
    within: Seconds
    same_resource: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("expect", match_given("AbsenceTrigger", "expect", self.expect))
        if self.after is not None:
            self._set("after", match_given("AbsenceTrigger", "after", self.after))
        self._set_within(self.within)

    @cached_property
    def _keeps_payloads(self) -> bool:
        return any(needs_payloads_of(self.parameters, root) for root in ("event", "events"))

    @cached_property
    def _from_the_beginning(self) -> list[str]:
        """What is waited for before anything was seen."""
        if self.after is not None:
            return []
        return cast("EventMatch", self.expect).literal_resources() if self.same_resource else [""]

    def advance(self, memory: Memory, events: Iterable[EventFact], now: int) -> tuple[Memory, list[Firing]]:
        waits: dict[str, _Wait] = {key: _wait_of(each) for key, each in memory.get("waits", {}).items()}
        dropped = memory.get("dropped", 0)
        firings: list[Firing] = []
        if self._from_the_beginning and not memory.get("begun"):
            waits |= {key: _Wait(now + self._within, None) for key in self._from_the_beginning}
        for fact in events:
            key = (fact.resource or "") if self.same_resource else ""
            expected = cast("EventMatch", self.expect).accepts(fact)
            opens = expected if self.after is None else not expected and cast("EventMatch", self.after).accepts(fact)
            wait = waits.get(key)
            if wait is not None and fact.at > wait.until and (expected or opens):
                firings.append(_absence(waits.pop(key)))
            if expected:
                waits.pop(key, None)
            if opens and key not in waits:
                if len(waits) < MOST_REMEMBERED:
                    waits[key] = _Wait(fact.at + self._within, fact)
                else:
                    dropped += 1
        over = sorted((wait.until, key) for key, wait in waits.items() if now >= wait.until + _LATE)
        firings += [_absence(waits.pop(key)) for _, key in over]
        after: Memory = {"begun": True} if self._from_the_beginning else {}
        if dropped:
            after["dropped"] = dropped
        if waits:
            after["waits"] = {
                key: [wait.until, None if wait.since is None else self._kept(wait.since)] for key, wait in waits.items()
            }
        return after, firings

    def next_look(self, memory: Mapping[str, Any]) -> int | None:
        if self._from_the_beginning and not memory.get("begun"):
            return 0
        return min((each[0] + _LATE for each in memory.get("waits", {}).values()), default=None)

    def describe(self) -> str:
        since = "" if self.after is None else f" after {self.after}"
        return f"no {self.expect} within {self.within:g} s{since}"


class _Wait(NamedTuple):
    """Something is to happen until a moment."""

    until: int
    since: EventFact | None


def _wait_of(data: Sequence[Any]) -> _Wait:
    return _Wait(data[0], None if data[1] is None else EventFact(*data[1]))


def _absence(wait: _Wait) -> Firing:
    if wait.since is None:
        return Firing(f"beginning-{wait.until}", ())
    return Firing(wait.since.id, (wait.since,))
