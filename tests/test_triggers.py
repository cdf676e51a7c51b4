"""Triggers: what they make of events, from any process, and what a deployment's parameters take from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow.exceptions import TemplateError, TriggerError
from asyncflow.triggers import (
    MOST_REMEMBERED,
    AbsenceTrigger,
    EventFact,
    EventMatch,
    EventTrigger,
    Firing,
    SequenceTrigger,
    Trigger,
    advance,
    describe_trigger,
    firing_parameters,
    next_look,
    trigger_of,
    trigger_to_data,
)

SECOND = 1_000_000
LATE = SECOND
T0 = 1_800_000_000 * SECOND


def event(second: float, name: str, resource: str | None = None, payload: Any = None) -> EventFact:
    return EventFact(f"e{second:g}-{name}", T0 + round(second * SECOND), name, resource, payload)


def firings(trigger: Trigger, events: Sequence[EventFact], until: float | None = None) -> list[list[str]]:
    """The ids of the events of each firing; one event at a time, with the memory going through JSON in between."""
    memory: dict[str, Any] = {}
    found: list[Firing] = []
    for each in events:
        memory, fired = advance(trigger, json.loads(json.dumps(memory)), [each], each.at)
        found += fired
    if until is not None:
        _, fired = advance(trigger, memory, [], T0 + round(until * SECOND))
        found += fired
    assert len({each.key for each in found}) == len(found), "a key names one firing"
    return [[fact.id for fact in each.events] for each in found]


# --- by events -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "seen"),
    [
        (EventMatch("order.paid"), ["order.paid order/7"]),
        (EventMatch("order.*"), ["order.paid order/7", "order.lost order/8", "order. None"]),
        (EventMatch("*.paid", resource="order/*"), ["order.paid order/7"]),
        (EventMatch(["bill.paid", "order.lost"]), ["bill.paid bill/1", "order.lost order/8"]),
        (EventMatch(resource=["order/7", "bill/*"]), ["order.paid order/7", "bill.paid bill/1"]),
        (EventMatch("o*r*p*d"), ["order.paid order/7"]),
        (EventMatch("order.pai?"), []),
        (EventMatch("[ob]*"), []),
        (EventMatch("*", resource="*"), ["order.paid order/7", "bill.paid bill/1", "order.lost order/8"]),
    ],
)
def test_which_events_match(match: EventMatch, seen: list[str]) -> None:
    known = [
        event(1, "order.paid", "order/7"),
        event(2, "bill.paid", "bill/1"),
        event(3, "order.lost", "order/8"),
        event(4, "order."),
        event(5, "Order.paid\n"),
    ]
    found = [f"{each.name} {each.resource}" for each in known if match.accepts(each)]
    assert sorted(found) == sorted(seen)


def test_a_pattern_of_many_stars_takes_no_longer_over_a_long_name() -> None:
    assert not EventMatch("*a" * 30 + "*x").accepts(event(1, "a" * 50_000))


@given(st.text("ab*", max_size=8).filter(bool), st.text("ab*", max_size=10))
def test_stars_are_those_of_fnmatch(pattern: str, text: str) -> None:
    assert EventMatch(pattern).accepts(event(1, text)) == fnmatchcase(text, pattern)


def test_each_event_by_itself() -> None:
    trigger = EventTrigger("order.paid")
    seen = [event(1, "order.paid"), event(1, "order.lost"), event(2, "order.paid")]
    assert firings(trigger, seen) == [["e1-order.paid"], ["e2-order.paid"]]
    memory, fired = advance(trigger, {}, seen, T0)
    assert memory == {}
    assert [each.key for each in fired] == ["e1-order.paid", "e2-order.paid"]


def test_a_threshold_within_a_window() -> None:
    trigger = EventTrigger("fail", threshold=3, within=10)
    assert firings(trigger, [event(at, "fail") for at in (0, 6, 12)]) == []
    assert firings(trigger, [event(at, "fail") for at in (0, 6, 12, 14)]) == [["e6-fail", "e12-fail", "e14-fail"]]
    assert firings(trigger, [event(at, "fail") for at in (0, 5, 10)]) == [["e0-fail", "e5-fail", "e10-fail"]], (
        "inclusive"
    )
    both = firings(trigger, [event(at, "fail") for at in (0, 1, 2, 3, 4, 5)])
    assert both == [["e0-fail", "e1-fail", "e2-fail"], ["e3-fail", "e4-fail", "e5-fail"]], "each counts once"


# --- by sequences ----------------------------------------------------------------------------


def test_steps_in_order() -> None:
    trigger = SequenceTrigger(["a", "b", "c"], within=10)
    assert firings(trigger, [event(0, "a"), event(1, "x"), event(2, "b"), event(9, "c")]) == [["e0-a", "e2-b", "e9-c"]]
    assert firings(trigger, [event(0, "b"), event(1, "a"), event(2, "c")]) == []
    assert firings(trigger, [event(0, "a"), event(2, "b"), event(11, "c")]) == [], "the whole within"


def test_the_latest_beginning_counts() -> None:
    trigger = SequenceTrigger(["a", "b"], within=10)
    assert firings(trigger, [event(0, "a"), event(8, "a"), event(15, "b")]) == [["e8-a", "e15-b"]]
    three = SequenceTrigger(["a", "b", "c"], within=10)
    seen = [event(0, "a"), event(1, "b"), event(5, "a"), event(9, "c")]
    assert firings(three, seen) == [["e0-a", "e1-b", "e9-c"]], "a later beginning does not undo what was reached"
    assert firings(three, [*seen[:3], event(6, "b"), event(14, "c")]) == [["e5-a", "e6-b", "e14-c"]]


def test_one_event_is_one_step_and_one_firing() -> None:
    assert firings(SequenceTrigger(["a", "a"], within=10), [event(at, "a") for at in (0, 1, 2)]) == [["e0-a", "e1-a"]]
    assert firings(SequenceTrigger(["a", "b"], within=10), [event(0, "a"), event(1, "b"), event(2, "b")]) == [
        ["e0-a", "e1-b"]
    ]


def test_steps_about_one_resource() -> None:
    trigger = SequenceTrigger([EventMatch("a", resource="r/*"), "b"], within=10, same_resource=True)
    assert firings(trigger, [event(0, "a", "r/1"), event(1, "b", "r/2"), event(2, "b", "r/1")]) == [["e0-a", "e2-b"]]
    apart = SequenceTrigger([EventMatch("a", resource="r/*"), "b"], within=10)
    assert firings(apart, [event(0, "a", "r/1"), event(1, "b", "r/2")]) == [["e0-a", "e1-b"]]


# --- by what did not happen ------------------------------------------------------------------


def test_what_should_have_followed() -> None:
    trigger = AbsenceTrigger(after="placed", expect="paid", within=60)
    placed, paid = event(0, "placed", "order/1"), event(30, "paid", "order/1")
    assert firings(trigger, [placed, paid], until=500) == []
    assert firings(trigger, [placed], until=60) == [], "a moment more for what is on its way to the record"
    assert firings(trigger, [placed], until=61) == [["e0-placed"]]
    assert firings(trigger, [placed, event(30, "paid", "order/2")], until=61) == [["e0-placed"]]
    assert firings(trigger, [placed, event(61, "paid", "order/1")], until=500) == [["e0-placed"]], "too late"
    assert firings(trigger, [placed, event(60, "paid", "order/1")], until=500) == [], "inclusive"


def test_resources_need_not_be_the_same() -> None:
    trigger = AbsenceTrigger(after="placed", expect="paid", within=60, same_resource=False)
    assert firings(trigger, [event(0, "placed", "order/1"), event(30, "paid", "bill/9")], until=500) == []


def test_a_wait_goes_on_from_the_first() -> None:
    trigger = AbsenceTrigger(after="placed", expect="paid", within=60)
    again = [event(0, "placed"), event(40, "placed")]
    assert firings(trigger, again, until=61) == [["e0-placed"]]
    assert firings(trigger, [*again, event(70, "placed")], until=200) == [["e0-placed"], ["e70-placed"]]


def test_silence() -> None:
    trigger = AbsenceTrigger(expect=EventMatch("beat", resource="sensor/*"), within=60)
    beats = [event(0, "beat", "sensor/1"), event(10, "beat", "sensor/2"), event(50, "beat", "sensor/1")]
    assert firings(trigger, beats, until=100) == [["e10-beat"]]
    assert firings(trigger, beats, until=500) == [["e10-beat"], ["e50-beat"]]
    assert firings(trigger, [*beats, event(200, "beat", "sensor/2")], until=1000) == [
        ["e10-beat"],
        ["e50-beat"],
        ["e200-beat"],
    ]


@pytest.mark.parametrize(
    "trigger",
    [
        AbsenceTrigger(expect="beat", within=60, same_resource=False),
        AbsenceTrigger(expect=EventMatch("beat", resource="sensor/1"), within=60),
    ],
)
def test_silence_from_the_beginning(trigger: Trigger) -> None:
    assert next_look(trigger, {}) == 0, "it begins to wait at the first look"
    memory, fired = advance(trigger, {}, [], T0)
    assert (fired, next_look(trigger, memory)) == ([], T0 + 60 * SECOND + LATE)
    memory, fired = advance(trigger, memory, [], T0 + 61 * SECOND)
    assert [each.events for each in fired] == [()]
    assert next_look(trigger, memory) is None, "once for a silence"
    memory, _ = advance(trigger, memory, [event(100, "beat", "sensor/1")], T0 + 100 * SECOND)
    _, fired = advance(trigger, memory, [], T0 + 200 * SECOND)
    assert [each.key for each in fired] == ["e100-beat"]


def test_when_to_look_again() -> None:
    trigger = AbsenceTrigger(after="placed", expect="paid", within=60)
    memory, _ = advance(trigger, {}, [event(5, "placed", "b"), event(0, "placed", "a")], T0 + 5 * SECOND)
    assert next_look(trigger, memory) == T0 + 60 * SECOND + LATE
    assert advance(trigger, memory, [], T0 + 61 * SECOND - 1)[1] == []
    assert len(advance(trigger, memory, [], T0 + 61 * SECOND)[1]) == 1
    assert next_look(trigger, {}) is None
    assert next_look(EventTrigger("a"), {}) is None


# --- any of them -----------------------------------------------------------------------------

TRIGGERS: st.SearchStrategy[Trigger] = st.sampled_from(
    [
        EventTrigger("a"),
        EventTrigger("a", threshold=3, within=5),
        EventTrigger(["a", "b"], threshold=2, within=20, parameters={"x": "{{ events[0].payload }}"}),
        SequenceTrigger(["a", "b"], within=8),
        SequenceTrigger(["a", "b", "a"], within=8, same_resource=True, parameters={"x": "{{ events[0].payload.n }}"}),
        AbsenceTrigger(after="a", expect="b", within=4),
        AbsenceTrigger(expect="a", within=3, same_resource=False),
        AbsenceTrigger(expect=EventMatch("b", resource="r1"), within=3),
    ]
)


@st.composite
def histories(draw: st.DrawFn) -> list[EventFact]:
    at, events = 0, list[EventFact]()
    for number in range(draw(st.integers(0, 30))):
        at += draw(st.integers(0, 4))
        name, resource = draw(st.sampled_from("abc")), draw(st.sampled_from(["r1", "r2", None]))
        events.append(EventFact(f"{number}", T0 + at * SECOND, name, resource, {"n": number}))
    return events


@settings(max_examples=200, deadline=None)
@given(TRIGGERS, histories(), st.lists(st.integers(0, 30), max_size=5))
def test_any_cut_of_the_events_gives_the_same(trigger: Trigger, events: list[EventFact], cuts: list[int]) -> None:
    """Whoever reads, in pieces of any size, with the memory through JSON: the same firings, under the same keys."""
    end = T0 + 1000 * SECOND

    def read(places: list[int]) -> list[tuple[str, tuple[str, ...]]]:
        memory, found = advance(trigger, {}, [], T0)
        for begin, stop in pairwise([0, *places, len(events)]):
            part = events[begin:stop]
            if part:
                memory, fired = advance(trigger, json.loads(json.dumps(memory)), part, T0)
                found += fired
        found += advance(trigger, memory, [], end)[1]
        return sorted((each.key, tuple(fact.id for fact in each.events)) for each in found)

    assert read(sorted(min(cut, len(events)) for cut in cuts)) == read([])


@settings(max_examples=200, deadline=None)
@given(histories())
def test_a_sequence_is_found_exactly_when_there_is_one(events: list[EventFact]) -> None:
    """Against all triples there are, up to the first firing."""
    trigger = SequenceTrigger(["a", "b", "a"], within=8)
    _, fired = advance(trigger, {}, events, T0)
    first = min(
        (
            third
            for third, last in enumerate(events)
            for second in range(third)
            for one in range(second)
            if (events[one].name, events[second].name, last.name) == ("a", "b", "a")
            and last.at - events[one].at <= 8 * SECOND
        ),
        default=None,
    )
    assert [each.key for each in fired[:1]] == ([] if first is None else [events[first].id])


@pytest.mark.parametrize(
    "trigger",
    [
        EventTrigger("a", threshold=MOST_REMEMBERED, within=10**9),
        SequenceTrigger(["a", "b"], within=10**6, same_resource=True),
        AbsenceTrigger(after="a", expect="b", within=10**6),
    ],
)
def test_the_memory_is_bounded_and_says_what_it_dropped(trigger: Trigger) -> None:
    memory: dict[str, Any] = {}
    for page in range(6):
        events = [event(page * 500 + index, "a", f"r/{page * 500 + index}", "x" * 1000) for index in range(500)]
        memory, _ = advance(trigger, memory, events, events[-1].at)
        assert len(json.dumps(memory)) < 150 * MOST_REMEMBERED, "and no payload that no template asks for"
    assert memory.get("dropped", 0) == (0 if isinstance(trigger, EventTrigger) else 3000 - MOST_REMEMBERED)


# --- parameters ------------------------------------------------------------------------------

PAID = event(
    0,
    "order.paid",
    "order/7",
    {"city": "Ulm", "sum": 12.5, "lines": [{"sku": "a"}, {"sku": "b"}], "odd key": 1, "none": None},
)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ event.payload.city }}", "Ulm"),
        ("{{event.payload.sum}}", 12.5),
        ("  {{ event.payload.lines }} ", [{"sku": "a"}, {"sku": "b"}]),
        ("{{ event.payload.lines[1].sku }}", "b"),
        ("{{ event.payload.lines[-2].sku }}", "a"),
        ("{{ event.payload['odd key'] }}", 1),
        ("{{ event.payload.none }}", None),
        ("{{ event.resource }} for {{ event.payload.sum }} in {{ event.payload.city }}", "order/7 for 12.5 in Ulm"),
        ("lines: {{ event.payload.lines }}", 'lines: [{"sku":"a"},{"sku":"b"}]'),
        ("{{ event.name }}", "order.paid"),
        ("{{ event.occurred }}", "2027-01-15T08:00:00+00:00"),
        ("{{ events[0].id }}", "e0-order.paid"),
        ("no template", "no template"),
        (["{{ event.payload.city }}", {"deep": "{{ event.payload.sum }}"}, 5, None], ["Ulm", {"deep": 12.5}, 5, None]),
    ],
)
def test_templates(template: Any, value: Any) -> None:
    trigger = EventTrigger("order.paid", parameters={"it": template})
    _, [firing] = advance(trigger, {}, [PAID], PAID.at)
    assert firing_parameters(trigger, firing) == {"it": value}


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    trigger = EventTrigger("a", parameters={"it": "{{ event.payload }}!"})
    _, [firing] = advance(trigger, {}, [event(0, "a", None, "{{ event.id }}")], T0)
    assert firing_parameters(trigger, firing) == {"it": "{{ event.id }}!"}


def test_events_of_a_window_keep_the_payloads_that_are_asked_for() -> None:
    trigger = EventTrigger(
        "a", threshold=2, within=10, parameters={"both": "{{ events[0].payload.n }}{{ event.payload.n }}"}
    )
    memory, _ = advance(trigger, {}, [event(0, "a", None, {"n": 1})], T0)
    _, [firing] = advance(trigger, json.loads(json.dumps(memory)), [event(1, "a", None, {"n": 2})], T0)
    assert firing_parameters(trigger, firing) == {"both": "12"}


def test_an_absence_keeps_the_event_that_it_followed() -> None:
    trigger = AbsenceTrigger(after="a", expect="b", within=10, parameters={"n": "{{ event.payload.n }}"})
    memory, _ = advance(trigger, {}, [event(0, "a", "r", {"n": 1})], T0)
    _, [firing] = advance(trigger, json.loads(json.dumps(memory)), [], T0 + 11 * SECOND)
    assert firing_parameters(trigger, firing) == {"n": 1}


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("{{ event.payload.town }}", "event.payload has no 'town'; it has 'city', 'sum'"),
        ("{{ event.payload.lines[2] }}", "event.payload.lines has 2 items, and no 2"),
        ("{{ event.payload.city.upper }}", "event.payload.city is a str, which has no 'upper'"),
        ("{{ event.payload.lines.sort }}", "event.payload.lines has 2 items, and no 'sort'"),
        ("{{ event.payload.none.x }}", "event.payload.none is null"),
        ("{{ event.payload.__class__ }}", "has no '__class__'"),
        ("{{ event.payload.items }}", "has no 'items'"),
        ("{{ events[1].name }}", "events has 1 items, and no 1"),
    ],
)
def test_what_the_event_does_not_tell(template: str, hint: str) -> None:
    trigger = EventTrigger("order.paid", parameters={"it": template})
    _, [firing] = advance(trigger, {}, [PAID], PAID.at)
    with pytest.raises(TemplateError) as caught:
        firing_parameters(trigger, firing)
    assert caught.value.parameter == "it"
    assert hint in str(caught.value)
    assert "Ulm" not in str(caught.value), "what a payload holds may be secret"


# --- what people are told --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "field", "hint"),
    [
        (lambda: EventTrigger(), "event", "'order.paid'"),
        (lambda: EventTrigger(""), "event", "'order.*'"),
        (lambda: EventTrigger([]), "event", "list"),
        (lambda: EventTrigger(5), "event", "list"),  # type: ignore[arg-type]
        (lambda: EventTrigger("a", resource=[5]), "resource", "list"),  # type: ignore[list-item]
        (lambda: EventTrigger("a", threshold=0), "threshold", "from 1"),
        (lambda: EventTrigger("a", threshold=10**6), "threshold", "1,000"),
        (lambda: EventTrigger("a", threshold=2), "within", "threshold=2"),
        (lambda: EventTrigger("a", threshold=2, within=0), "within", "above 0"),
        (lambda: EventTrigger("a", within=-1), "within", "above 0"),
        (lambda: EventTrigger("a", slug="a b"), "slug", "letters"),
        (lambda: EventTrigger("a", active=None), "active", "True or False"),  # type: ignore[arg-type]
        (lambda: EventTrigger("a", parameters={"f": print}), "parameters", "parameters.f"),
        (lambda: EventTrigger("a", parameters={"x": "{{ city }}"}), "parameters.x", "begins with event"),
        (lambda: EventTrigger("a", parameters={"x": "{{ event.city }}"}), "parameters.x", "event.payload"),
        (lambda: EventTrigger("a", parameters={"x": ["{{ event.payload"]}), "parameters.x[0]", "closed"),
        (lambda: EventTrigger("a", parameters={"x": "{{ event.payload() }}"}), "parameters.x", "begins with event"),
        (lambda: EventTrigger("a", parameters={"x": "{{ 1 + 1 }}"}), "parameters.x", "begins with event"),
        (lambda: EventTrigger("a", parameters={"x": "{{ events.payload }}"}), "parameters.x", "index"),
        (lambda: SequenceTrigger(["a"], within=5), "steps", "2 to 20"),
        (lambda: SequenceTrigger("ab", within=5), "steps", "2 to 20"),
        (lambda: SequenceTrigger(["a", 5], within=5), "steps", "'order.paid'"),  # type: ignore[list-item]
        (lambda: SequenceTrigger(["a", "b"], within=0), "within", "above 0"),
        (lambda: AbsenceTrigger(expect="", within=5), "expect", "'order.paid'"),
        (lambda: AbsenceTrigger(expect="a", after=3, within=5), "after", "'order.paid'"),  # type: ignore[arg-type]
        (lambda: AbsenceTrigger(expect="a", within=0), "within", "above 0"),
        (lambda: trigger_of({"kind": "moon"}), "kind", "'sequence'"),
        (lambda: trigger_of({"kind": "event", "event": "a", "colour": 1}), "data", "trigger_to_data"),
    ],
)
def test_what_cannot_be_is_said_at_once(make: Callable[[], object], field: str, hint: str) -> None:
    with pytest.raises(TriggerError) as caught:
        make()
    assert caught.value.field == field
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("trigger", "text"),
    [
        (EventTrigger("order.*"), "'order.*'"),
        (EventTrigger(["a", "b"], resource="r/*"), "'a' or 'b' of 'r/*'"),
        (EventTrigger(resource="r/1"), "any event of 'r/1'"),
        (EventTrigger("a", threshold=3, within=timedelta(minutes=1)), "3 of 'a' within 60 s"),
        (SequenceTrigger(["a", EventMatch("b", resource="r")], within=0.5), "'a', then 'b' of 'r' within 0.5 s"),
        (AbsenceTrigger(expect="a", within=60), "no 'a' within 60 s"),
        (AbsenceTrigger(after="a", expect="b", within=60), "no 'b' within 60 s after 'a'"),
    ],
)
def test_description_and_data(trigger: Trigger, text: str) -> None:
    assert describe_trigger(trigger) == text
    data = json.dumps(trigger_to_data(trigger))
    assert trigger_of(json.loads(data)) == trigger
    assert json.dumps(trigger_to_data(trigger_of(json.loads(data)))) == data
    assert list(json.loads(data)) == sorted(json.loads(data))


def test_all_that_a_trigger_says_comes_back_from_its_data() -> None:
    trigger = SequenceTrigger(
        ["a", "b"], within=9, same_resource=True, slug="both", active=False, parameters={"x": "{{ event.id }}"}
    )
    assert trigger_of(trigger_to_data(trigger)) == trigger
    assert trigger_to_data(trigger)["parameters"] == {"x": "{{ event.id }}"}
