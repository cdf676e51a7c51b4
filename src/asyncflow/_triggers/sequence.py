"""Triggers by events that follow one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, cast

from asyncflow._triggers.fields import MOST_REMEMBERED, Firing, Memory, Trigger
from asyncflow._triggers.matching import EventFact, EventMatch, is_series, match_given
from asyncflow.retries import Seconds

__all__ = ["SequenceTrigger"]

_MOST_STEPS = 20
_Chain = list[EventFact]
"""Events that matched the first steps, one each."""


@dataclass(frozen=True)
class SequenceTrigger(Trigger):
    """By events that follow one another: `SequenceTrigger(["file.arrived", "file.checked"], within=600)`.

    The first and the last at most `within` seconds apart; other events may come between. With `same_resource`
    all are about one resource, and each resource is on its own. Each event counts for one firing.
    """

    kind: ClassVar[str] = "sequence"

    steps: Sequence[str | EventMatch]
    within: Seconds = field(kw_only=True)
    same_resource: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given: object = self.steps
        if not is_series(given) or not 2 <= len(given) <= _MOST_STEPS:
            raise self._bad("steps", given, f"a list of 2 to {_MOST_STEPS} events")
        steps = tuple(match_given("SequenceTrigger", "steps", each) for each in given)
        self._set("steps", steps)
        self._set_within(self.within)

    def advance(self, memory: Memory, events: Iterable[EventFact], now: int) -> tuple[Memory, list[Firing]]:
        # Of all beginnings that reached a step, the one that began last is the last to run out: no other is needed.
        begun: dict[str, list[_Chain]] = {
            key: [[EventFact(*each) for each in chain] for chain in chains]
            for key, chains in memory.get("begun", {}).items()
        }
        firings: list[Firing] = []
        dropped = memory.get("dropped", 0)
        for fact in events:
            key = (fact.resource or "") if self.same_resource else ""
            before: list[_Chain] = begun.pop(key, [[] for _ in self.steps[1:]])
            chains = self._with(before, fact)
            if chains[-1]:
                firings.append(Firing(fact.id, tuple(chains[-1])))
                continue
            if any(chains):
                begun[key] = chains[:-1]
            if len(begun) > MOST_REMEMBERED:
                begun, dropped = self._without_old(begun, fact.at, dropped)
        after: Memory = {"dropped": dropped} if dropped else {}
        if begun:
            after["begun"] = {key: [list(map(self._kept, chain)) for chain in each] for key, each in begun.items()}
        return after, firings

    def _with(self, before: list[_Chain], fact: EventFact) -> list[_Chain]:
        """What was begun, and the whole, after an event: at each step, the latest beginning that reached it."""
        oldest = fact.at - self._within
        chains = [chain if chain and chain[0].at >= oldest else [] for chain in before] + [[]]
        # From the last step back, so that one event is not two steps.
        for index in range(len(self.steps) - 1, -1, -1):
            if not cast("EventMatch", self.steps[index]).accepts(fact):
                continue
            if index == 0:
                chains[0] = [fact]
            elif chains[index - 1]:
                chains[index] = [*chains[index - 1], fact]
        return chains

    def _without_old(
        self, begun: dict[str, list[_Chain]], now: int, dropped: int
    ) -> tuple[dict[str, list[_Chain]], int]:
        """First what has run out goes, then what was begun by the events longest ago."""
        oldest = now - self._within
        alive = {
            key: chains for key, chains in begun.items() if any(chain and chain[0].at >= oldest for chain in chains)
        }
        extra = max(0, len(alive) - MOST_REMEMBERED)
        return dict(islice(alive.items(), extra, None)), dropped + extra

    def describe(self) -> str:
        return f"{', then '.join(map(str, self.steps))} within {self.within:g} s"
