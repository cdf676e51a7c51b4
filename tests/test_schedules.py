"""Schedules: which moments they name.

A year of each kind in five zones is compared with a reference that shares nothing with the library: it looks
at every quarter of an hour of the year and what the zone's clocks show then. The days on which clocks are set
are written out by hand as well.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from itertools import islice, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow.exceptions import ScheduleError
from asyncflow.schedules import (
    Cron,
    Interval,
    RRule,
    Schedule,
    describe,
    moment_of,
    next_slot,
    schedule_of,
    to_data,
    upcoming,
)
from tests.conftest import RunPython

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
# Clocks that are set by half an hour; in the south, at midnight; never.
ZONES = [BERLIN, NEW_YORK, LORD_HOWE, "America/Santiago", "Asia/Kolkata"]
QUARTER = timedelta(minutes=15)
BEGIN, END = datetime(2027, 1, 2, tzinfo=UTC), datetime(2028, 1, 2, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def moments(*texts: str) -> list[datetime]:
    return [utc(text) for text in texts]


def between(schedule: Schedule, begin: datetime, end: datetime) -> list[datetime]:
    """The slots after `begin`, up to and with `end`."""
    return list(takewhile(lambda slot: slot <= end, schedule.slots_after(begin)))


# --- a year against a slow reference ---------------------------------------------------------


@cache
def shown(zone: str) -> dict[datetime, list[datetime]]:
    """For each quarter of an hour that the zone's clocks show: the moments at which they do."""
    found: dict[datetime, list[datetime]] = {}
    moment = BEGIN - timedelta(days=3)
    while moment <= END + timedelta(days=3):
        found.setdefault(moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None), []).append(moment)
        moment += QUARTER
    return found


@cache
def all_walls() -> list[datetime]:
    """Every quarter of an hour of the year and a little more, shown or not."""
    first = datetime.combine(BEGIN.date() - timedelta(days=1), time())
    return [first + index * QUARTER for index in range(367 * 96)]


def end_of_gap(zone: str, wall: datetime) -> datetime:
    while wall not in shown(zone):
        wall += QUARTER
    return shown(zone)[wall][0]


def gap_length(zone: str, wall: datetime) -> timedelta:
    first = wall
    while first - QUARTER not in shown(zone):
        first -= QUARTER
    last = wall
    while last not in shown(zone):
        last += QUARTER
    return last - first


def expected(rule: Rule, zone: str) -> list[datetime]:
    found: set[datetime] = set()
    for wall in all_walls():
        if not (rule.day(wall.date()) and wall.time() in rule.times):
            continue
        if wall not in shown(zone):
            if not rule.in_every_hour or gap_length(zone, wall) % timedelta(hours=1):
                found.add(end_of_gap(zone, wall))
        elif rule.in_every_hour:
            found.update(shown(zone)[wall])
        else:
            found.add(shown(zone)[wall][0])
    return sorted(moment for moment in found if BEGIN < moment <= END)


class Rule(NamedTuple):
    schedule: Callable[[str], Schedule]
    day: Callable[[date], bool]
    times: set[time]
    in_every_hour: bool = False


def any_day(_: date) -> bool:
    return True


def at(*texts: str) -> set[time]:
    return {time.fromisoformat(text) for text in texts}


def every(minutes: int, hours: range = range(24)) -> set[time]:
    return {time(hour, minute) for hour in hours for minute in range(0, 60, minutes)}


def is_last_friday(day: date) -> bool:
    return day.weekday() == 4 and (day + timedelta(days=7)).month != day.month


RULES = {
    "cron at nine on weekdays": Rule(
        lambda zone: Cron("0 9 * * MON-FRI", timezone=zone), lambda day: day.weekday() < 5, at("09:00")
    ),
    "cron in the night": Rule(lambda zone: Cron("30 2 * * *", timezone=zone), any_day, at("02:30")),
    "cron at midnight": Rule(lambda zone: Cron("@daily", timezone=zone), any_day, at("00:00")),
    "cron late": Rule(lambda zone: Cron("0 45 23 * * *", timezone=zone), any_day, at("23:45")),
    "cron in some hours": Rule(lambda zone: Cron("*/15 0-3 * * *", timezone=zone), any_day, every(15, range(4))),
    "cron every two hours": Rule(
        lambda zone: Cron("0 */2 * * *", timezone=zone), any_day, {time(hour) for hour in range(0, 24, 2)}
    ),
    "cron every hour": Rule(lambda zone: Cron("@hourly", timezone=zone), any_day, every(60), True),
    "cron every quarter": Rule(lambda zone: Cron("*/15 * * * *", timezone=zone), any_day, every(15), True),
    "cron after the hour": Rule(
        lambda zone: Cron("15 * * * *", timezone=zone), any_day, {time(hour, 15) for hour in range(24)}, True
    ),
    "cron of Sundays, every half hour": Rule(
        lambda zone: Cron("*/30 * * * SUN", timezone=zone), lambda day: day.weekday() == 6, every(30), True
    ),
    "cron of the 1st or a Monday": Rule(
        lambda zone: Cron("0 0 1 * 1", timezone=zone), lambda day: day.day == 1 or day.weekday() == 0, at("00:00")
    ),
    "cron of the last of the month": Rule(
        lambda zone: Cron("30 1 L * *", timezone=zone), lambda day: (day + timedelta(days=1)).day == 1, at("01:30")
    ),
    "cron of the second Tuesday": Rule(
        lambda zone: Cron("0 2 * * TUE#2", timezone=zone),
        lambda day: day.weekday() == 1 and 8 <= day.day <= 14,
        at("02:00"),
    ),
    "interval of days": Rule(lambda zone: Interval(timedelta(days=1), timezone=zone), any_day, at("00:00")),
    "interval of three days with an anchor": Rule(
        lambda zone: Interval(
            timedelta(days=3), timezone=zone, anchor=datetime(2029, 6, 1, 2, 30, tzinfo=ZoneInfo(zone))
        ),
        lambda day: (day - date(2029, 6, 1)).days % 3 == 0,
        at("02:30"),
    ),
    "rrule of a weekday": Rule(
        lambda zone: RRule("FREQ=WEEKLY;BYDAY=SU,WE;BYHOUR=2;BYMINUTE=15", timezone=zone),
        lambda day: day.weekday() in (2, 6),
        at("02:15"),
    ),
    "rrule of every other week": Rule(
        lambda zone: RRule(
            "FREQ=WEEKLY;INTERVAL=2", anchor=datetime(2021, 5, 9, 2, tzinfo=ZoneInfo(zone)), timezone=zone
        ),
        lambda day: (day - date(2021, 5, 9)).days % 14 == 0,
        at("02:00"),
    ),
    "rrule of the last Friday": Rule(
        lambda zone: RRule("FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17;BYMINUTE=0", timezone=zone), is_last_friday, at("17:00")
    ),
    "rrule of the 31st": Rule(
        lambda zone: RRule(f"DTSTART;TZID={zone}:20200131T003000\nRRULE:FREQ=MONTHLY"),
        lambda day: day.day == 31,
        at("00:30"),
    ),
    "rrule of every third day": Rule(
        lambda zone: RRule("FREQ=DAILY;INTERVAL=3;BYHOUR=0,2;BYMINUTE=0,30", timezone=zone),
        lambda day: (day - date(2020, 1, 1)).days % 3 == 0,
        at("00:00", "00:30", "02:00", "02:30"),
    ),
    "rrule by the quarter": Rule(
        lambda zone: RRule("FREQ=MINUTELY;INTERVAL=15", timezone=zone), any_day, every(15), True
    ),
    "rrule by the quarter in one hour": Rule(
        lambda zone: RRule("FREQ=MINUTELY;INTERVAL=15;BYHOUR=2", timezone=zone), any_day, every(15, range(2, 3))
    ),
    "rrule by the hour on Sundays": Rule(
        lambda zone: RRule("FREQ=HOURLY;BYDAY=SU", timezone=zone), lambda day: day.weekday() == 6, every(60), True
    ),
    "rrule every twelve hours": Rule(
        lambda zone: RRule("FREQ=HOURLY;INTERVAL=12", timezone=zone), any_day, at("00:00", "12:00")
    ),
    "rrule of the last of three": Rule(
        lambda zone: RRule("FREQ=DAILY;BYHOUR=1,2,3;BYMINUTE=0;BYSETPOS=-1", timezone=zone), any_day, at("03:00")
    ),
    "rrules with exceptions": Rule(
        lambda zone: RRule(
            "DTSTART:20200101T060000 RRULE:FREQ=YEARLY;BYMONTH=3 RRULE:FREQ=YEARLY;BYMONTH=5;BYMONTHDAY=1,2,3 "
            "RDATE:20270704T120000 EXDATE:20270502T060000,20270101T060000",
            timezone=zone,
        ),
        lambda day: (day.month, day.day) in {(3, 1), (5, 1), (5, 3)},
        at("06:00"),
    ),
}


@cache
def reference(name: str, zone: str) -> list[datetime]:
    found = expected(RULES[name], zone)
    if name == "rrules with exceptions":
        found = sorted([*found, datetime(2027, 7, 4, 12, tzinfo=ZoneInfo(zone)).astimezone(UTC)])
    return found


EACH_RULE = pytest.mark.parametrize("name", RULES)
EACH_ZONE = pytest.mark.parametrize("zone", ZONES)


@EACH_ZONE
@EACH_RULE
def test_a_year_forward_and_backward(name: str, zone: str) -> None:
    schedule, found = RULES[name].schedule(zone), reference(name, zone)
    assert len(found) >= 3
    assert between(schedule, BEGIN, END) == found
    backward = takewhile(lambda slot: slot > BEGIN, schedule.slots_until(END))
    assert list(backward)[::-1] == found


@EACH_ZONE
@EACH_RULE
def test_from_every_moment_around_the_days_on_which_clocks_are_set(name: str, zone: str) -> None:
    """Where one begins to look makes no difference: between two showings, in the middle of a gap, a moment before."""
    schedule, found = RULES[name].schedule(zone), reference(name, zone)
    for change in changes(zone):
        moment = change - timedelta(hours=3)
        while moment < change + timedelta(hours=3):
            for start in (moment, moment - timedelta(microseconds=1), moment + timedelta(seconds=7)):
                place = bisect_right(found, start)
                after = [slot for slot in upcoming(schedule, start, 2) if slot <= END]
                assert after == found[place : place + 2]
                before = [slot for slot in islice(schedule.slots_until(start), 2) if slot > BEGIN]
                assert before == found[max(0, place - 2) : place][::-1]
            moment += QUARTER


def changes(zone: str) -> Iterator[datetime]:
    moment = BEGIN
    while moment < END:
        following = moment + QUARTER
        if moment.astimezone(ZoneInfo(zone)).utcoffset() != following.astimezone(ZoneInfo(zone)).utcoffset():
            yield following
        moment = following


def test_the_reference_knows_when_clocks_are_set() -> None:
    assert {zone: len(list(changes(zone))) for zone in ZONES} == dict(zip(ZONES, [2, 2, 2, 2, 0], strict=True))
    assert list(changes(BERLIN)) == moments("2027-03-28T01:00", "2027-10-31T01:00")
    assert list(changes(NEW_YORK)) == moments("2027-03-14T07:00", "2027-11-07T06:00")


@EACH_ZONE
@pytest.mark.parametrize("minutes", [60, 15])
def test_an_interval_of_time_that_passes_knows_no_clocks(zone: str, minutes: int) -> None:
    step = timedelta(minutes=minutes)
    slots = between(Interval(step, timezone=zone), BEGIN, END)
    assert slots == [BEGIN + index * step for index in range(1, (END - BEGIN) // step + 1)]


# --- by hand ---------------------------------------------------------------------------------


def test_berlin_when_clocks_are_set_forward() -> None:
    """28 March 2027: from 02:00 to 03:00, which is 01:00 UTC."""
    begin, end = utc("2027-03-27T12:00"), utc("2027-03-28T06:30")
    assert between(Cron("30 2 * * *", timezone=BERLIN), begin, end) == moments("2027-03-28T01:00")
    assert between(Cron("0,30 2 * * *", timezone=BERLIN), begin, end) == moments("2027-03-28T01:00")
    assert between(Cron("0 3 * * *", timezone=BERLIN), begin, end) == moments("2027-03-28T01:00")
    assert between(Cron("30 1,3 * * *", timezone=BERLIN), begin, end) == moments("2027-03-28T00:30", "2027-03-28T01:30")
    night = utc("2027-03-27T23:00")
    assert between(Cron("30 * * * *", timezone=BERLIN), night, utc("2027-03-28T02:45")) == moments(
        "2027-03-27T23:30", "2027-03-28T00:30", "2027-03-28T01:30", "2027-03-28T02:30"
    )
    assert between(RRule("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", timezone=BERLIN), begin, end) == moments("2027-03-28T01:00")
    midnights = Interval(timedelta(days=1), timezone=BERLIN)
    assert upcoming(midnights, begin, 2) == moments("2027-03-27T23:00", "2027-03-28T22:00")


def test_berlin_when_clocks_are_set_back() -> None:
    """31 October 2027: from 03:00 to 02:00, which is 01:00 UTC."""
    begin, end = utc("2027-10-30T12:00"), utc("2027-10-31T06:30")
    assert between(Cron("30 2 * * *", timezone=BERLIN), begin, end) == moments("2027-10-31T00:30")
    assert between(Cron("0 3 * * *", timezone=BERLIN), begin, end) == moments("2027-10-31T02:00")
    assert between(RRule("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", timezone=BERLIN), begin, end) == moments("2027-10-31T00:30")
    night, morning = utc("2027-10-30T23:45"), utc("2027-10-31T03:00")
    hourly = moments("2027-10-31T00:00", "2027-10-31T01:00", "2027-10-31T02:00", "2027-10-31T03:00")
    assert between(Cron("0 * * * *", timezone=BERLIN), night, morning) == hourly
    assert between(RRule("FREQ=HOURLY", timezone=BERLIN), night, morning) == hourly
    midnights = Interval(timedelta(days=1), timezone=BERLIN)
    assert upcoming(midnights, begin, 2) == moments("2027-10-30T22:00", "2027-10-31T23:00")


def test_new_york_when_clocks_are_set() -> None:
    """14 March 2027 at 07:00 UTC, 7 November 2027 at 06:00 UTC."""
    two, one = Cron("15 2 * * *", timezone=NEW_YORK), Cron("15 1 * * *", timezone=NEW_YORK)
    assert upcoming(two, utc("2027-03-13T06:00"), 3) == moments(
        "2027-03-13T07:15", "2027-03-14T07:00", "2027-03-15T06:15"
    )
    assert upcoming(one, utc("2027-11-06T04:00"), 3) == moments(
        "2027-11-06T05:15", "2027-11-07T05:15", "2027-11-08T06:15"
    )
    minutes = Cron("* * * * *", timezone=NEW_YORK)
    for change in moments("2027-03-14T07:00", "2027-11-07T06:00"):
        begin = change - timedelta(hours=2)
        assert between(minutes, begin, change + timedelta(hours=2)) == [
            begin + timedelta(minutes=index) for index in range(1, 241)
        ]


def test_lord_howe_sets_clocks_by_half_an_hour() -> None:
    """3 October 2027, 02:00 to 02:30 (15:30 UTC the day before); 4 April 2027, 02:00 to 01:30 (15:00 UTC)."""
    begin = utc("2027-10-02T14:45")
    assert upcoming(Cron("15 2 * * *", timezone=LORD_HOWE), begin, 1) == moments("2027-10-02T15:30")
    assert upcoming(Cron("15 * * * *", timezone=LORD_HOWE), begin, 2) == moments("2027-10-02T15:30", "2027-10-02T16:15")
    assert upcoming(Cron("45 1 * * *", timezone=LORD_HOWE), utc("2027-04-03T14:00"), 2) == moments(
        "2027-04-03T14:45", "2027-04-04T15:15"
    )


def test_a_day_that_did_not_exist() -> None:
    """Samoa went from 29 to 31 December 2011."""
    noon = Cron("0 12 30 12 *", timezone="Pacific/Apia")
    assert next_slot(noon, utc("2011-12-01T00:00")) == utc("2011-12-30T10:00")


def test_leap_days() -> None:
    found = moments("2028-02-29T12:00", "2032-02-29T12:00", "2036-02-29T12:00")
    assert upcoming(Cron("0 12 29 2 *"), utc("2027-01-01"), 3) == found
    assert upcoming(RRule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYHOUR=12"), utc("2027-01-01"), 3) == found
    assert upcoming(RRule("DTSTART:20240229T120000 RRULE:FREQ=YEARLY"), utc("2027-01-01"), 3) == found
    assert upcoming(Cron("0 12 L 2 *"), utc("2027-01-01"), 2) == moments("2027-02-28T12:00", "2028-02-29T12:00")
    assert next(Cron("0 12 29 2 *").slots_until(utc("2101-01-01"))) == utc("2096-02-29T12:00"), (
        "1900 and 2100 have none"
    )


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("@yearly", "2028-01-01T00:00"),
        ("@annually", "2028-01-01T00:00"),
        ("@monthly", "2027-06-01T00:00"),
        ("@weekly", "2027-05-16T00:00"),
        ("@midnight", "2027-05-13T00:00"),
        ("@HOURLY", "2027-05-12T11:00"),
        ("0 0 * JAN,aug mon", "2027-08-02T00:00"),
        ("0 0 * * 7", "2027-05-16T00:00"),
        ("0 0 LW * *", "2027-05-31T00:00"),
        ("0 0 * * 5L", "2027-05-28T00:00"),
        ("15-45/15 8 * * *", "2027-05-13T08:15"),
        ("*/20 * * * * *", "2027-05-12T10:30:20"),
        ("0 0 */2 * 1", "2027-05-17T00:00"),  # a star in the day of the month: both must fit
        ("  5   4 * * *  ", "2027-05-13T04:05"),
    ],
)
def test_cron_expressions(expression: str, found: str) -> None:
    assert next_slot(Cron(expression), utc("2027-05-12T10:30")) == utc(found)  # a Wednesday


def test_an_interval_counts_from_its_anchor() -> None:
    anchor = utc("2027-05-12T10:07:30")
    assert upcoming(Interval(3600, anchor=anchor), anchor, 2) == moments("2027-05-12T11:07:30", "2027-05-12T12:07:30")
    assert next(Interval(3600, anchor=anchor).slots_until(utc("2027-05-10T00:00"))) == utc("2027-05-09T23:07:30")
    assert upcoming(Interval(0.0005 * 3), utc("1970-01-01"), 2) == moments(
        "1970-01-01T00:00:00.0015", "1970-01-01T00:00:00.003"
    )
    # A day and a half is time that passes, in every zone.
    uneven = Interval(timedelta(hours=36), anchor=utc("2027-03-27T00:00"), timezone=BERLIN)
    assert upcoming(uneven, utc("2027-03-27T00:00"), 1) == moments("2027-03-28T12:00")


def test_a_rule_that_ends() -> None:
    three = "DTSTART;TZID=Europe/Berlin:20270327T023000 RRULE:FREQ=DAILY;COUNT=3"
    found = moments("2027-03-27T01:30", "2027-03-28T01:00", "2027-03-29T00:30")
    assert upcoming(RRule(three), utc("2020-01-01"), 9) == found
    assert list(RRule(three).slots_until(utc("2099-01-01"))) == found[::-1]
    until = "DTSTART;TZID=Europe/Berlin:20270327T023000 RRULE:FREQ=DAILY;UNTIL=20270329T003000Z"
    assert upcoming(RRule(until), utc("2020-01-01"), 9) == found
    anchored = RRule("FREQ=DAILY;COUNT=3", anchor=found[0], timezone=BERLIN)
    assert upcoming(anchored, utc("2020-01-01"), 9) == found
    counted = RRule("FREQ=MINUTELY;COUNT=100;BYDAY=MO", anchor=utc("2027-05-12T00:00"))
    assert len(list(counted.slots_until(utc("2099-01-01")))) == 100


def test_start_and_end_are_included() -> None:
    inside = Cron("0 * * * *", start=utc("2027-05-12T10:00"), end=utc("2027-05-12T12:00"))
    found = moments("2027-05-12T10:00", "2027-05-12T11:00", "2027-05-12T12:00")
    assert upcoming(inside, utc("2020-01-01"), 9) == found
    assert list(inside.slots_until(utc("2030-01-01"))) == found[::-1]
    assert next_slot(inside, found[-1]) is None


def test_any_zone_may_be_asked_in() -> None:
    schedule = Cron("0 9 * * *", timezone=BERLIN)
    tokyo = datetime(2027, 5, 12, 10, tzinfo=ZoneInfo("Asia/Tokyo"))
    slot = next_slot(schedule, tokyo)
    assert slot == utc("2027-05-12T07:00")
    assert slot is not None
    assert slot.tzinfo is UTC


# --- any schedule ----------------------------------------------------------------------------

NUMBERS = st.integers(0, 59)


@st.composite
def crons(draw: st.DrawFn) -> Cron:
    minute = draw(st.one_of(st.just("*"), NUMBERS.map(str), st.integers(1, 40).map("*/{}".format)))
    hour = draw(st.one_of(st.just("*"), st.integers(0, 23).map(str), st.integers(1, 12).map("*/{}".format)))
    day = draw(st.sampled_from(["*", "1", "L", "*/3", "28-31"]))
    weekday = draw(st.sampled_from(["*", "MON-FRI", "0", "5L"]))
    seconds = draw(st.sampled_from(["", "0 ", "*/7 "]))
    return Cron(f"{seconds}{minute} {hour} {day} * {weekday}", timezone=draw(st.sampled_from(ZONES)))


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    every = draw(
        st.one_of(
            st.integers(1, 10_000_000).map(lambda number: timedelta(milliseconds=number)),
            st.integers(1, 40).map(lambda number: timedelta(days=number)),
        )
    )
    anchor = draw(st.none() | MOMENTS)
    return Interval(every, anchor=anchor, timezone=draw(st.none() | st.sampled_from(ZONES)))


@st.composite
def rrules(draw: st.DrawFn) -> RRule:
    parts = [
        f"FREQ={draw(st.sampled_from(['YEARLY', 'MONTHLY', 'WEEKLY', 'DAILY', 'HOURLY', 'MINUTELY', 'SECONDLY']))}"
    ]
    parts.append(f"INTERVAL={draw(st.sampled_from([1, 1, 2, 3, 5, 25]))}")
    parts += draw(st.sampled_from([[], ["BYDAY=MO,SU"], ["BYMONTH=3,4,10"], ["BYMONTHDAY=1,15,-1"]]))
    parts += draw(st.sampled_from([[], ["BYHOUR=2,3,4"]]))
    return RRule(";".join(parts), timezone=draw(st.sampled_from(ZONES)))


MOMENTS = st.integers(0, 3 * 365 * 86400 * 10**6).map(lambda number: utc("2026-01-01") + timedelta(microseconds=number))
SCHEDULES: st.SearchStrategy[Schedule] = st.one_of(crons(), intervals(), rrules())


@settings(max_examples=150, deadline=None)
@given(SCHEDULES, MOMENTS)
def test_slots_ascend_and_are_the_same_backward(schedule: Schedule, moment: datetime) -> None:
    slots = upcoming(schedule, moment, 6)
    assert all(slot.tzinfo is UTC for slot in slots)
    assert [moment, *slots] == sorted({moment, *slots})
    backward = list(islice(schedule.slots_until(slots[-1]), 6))
    assert backward == slots[::-1]
    for slot in slots:
        assert next(schedule.slots_until(slot)) == slot, "up to and with"
        assert next_slot(schedule, slot - timedelta(microseconds=1)) == slot


@settings(max_examples=100, deadline=None)
@given(
    SCHEDULES,
    st.fixed_dictionaries(
        {},
        optional={
            "parameters": st.dictionaries(
                st.text(), st.none() | st.integers(-9, 9) | st.text() | st.lists(st.booleans())
            ),
            "slug": st.text("abc-_.", min_size=1),
            "start": MOMENTS,
            "jitter": st.floats(0, 1e6),
            "catch_up": st.sampled_from(["skip", "latest", "all"]),
            "catch_up_limit": st.integers(1, 10_000),
            "overlap": st.sampled_from(["allow", "skip"]),
            "active": st.booleans(),
        },
    ),
)
def test_there_and_back_as_data(schedule: Schedule, more: dict[str, object]) -> None:
    import json

    whole = schedule_of({**to_data(schedule), **to_data(schedule_of({**to_data(schedule), **as_json(more)}))})
    text = json.dumps(to_data(whole))
    again = schedule_of(json.loads(text))
    assert again == whole
    assert json.dumps(to_data(again)) == text
    assert list(to_data(whole)) == sorted(to_data(whole))
    assert all(getattr(whole, name) == value for name, value in more.items())


def as_json(fields: dict[str, object]) -> dict[str, object]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}


@given(st.binary(max_size=20), MOMENTS, st.floats(1e-6, 86400))
def test_jitter_is_within_its_span(seed: bytes, slot: datetime, jitter: float) -> None:
    moment = moment_of(Interval(60, jitter=jitter), slot, seed)
    assert timedelta() <= moment - slot < timedelta(seconds=jitter) + timedelta(microseconds=1)


def test_jitter_is_the_same_everywhere_and_spread() -> None:
    schedule = Interval(60, jitter=30)
    slots = upcoming(schedule, utc("2027-05-12T10:00"), 300)
    assert moment_of(schedule, slots[0], b"one") == utc("2027-05-12T10:01:26.641368")
    offsets = sorted((moment_of(schedule, slot, b"one") - slot).total_seconds() for slot in slots)
    assert offsets[30] < 6
    assert 10 < offsets[150] < 20
    assert offsets[270] > 24
    assert moment_of(Interval(60), slots[0], b"one") == slots[0]


# --- what people are told --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Cron("0 9 * * *", timezone=BERLIN), "cron '0 9 * * *' Europe/Berlin"),
        (Cron("@daily"), "cron '@daily' UTC"),
        (Interval(5), "every 5 s"),
        (Interval(0.25), "every 0.25 s"),
        (Interval(90), "every 90 s"),
        (Interval(7200), "every 2 h"),
        (Interval(timedelta(days=1), timezone=BERLIN), "every 1 day Europe/Berlin"),
        (Interval(timedelta(days=7)), "every 7 days"),
        (RRule("FREQ=DAILY", timezone=BERLIN), "rrule 'FREQ=DAILY' Europe/Berlin"),
        (
            RRule("DTSTART;TZID=Europe/Berlin:20270101T090000\nRRULE:FREQ=DAILY"),
            "rrule 'DTSTART;TZID=Europe/Berlin:20270101T090000 RRULE:FREQ=DAILY' Europe/Berlin",
        ),
    ],
)
def test_description(schedule: Schedule, text: str) -> None:
    assert describe(schedule) == text


NINE = "0 9 * * *"
NAIVE = utc("2027-01-01").replace(tzinfo=None)


@pytest.mark.parametrize(
    ("make", "field", "hint"),
    [
        (lambda: Cron("61 * * * *"), "expression", "minute field: 0-59"),
        (lambda: Cron("* 24 * * *"), "expression", "hour field: 0-23"),
        (lambda: Cron("* * 0 * *"), "expression", "day-of-month field"),
        (lambda: Cron("* * * FOO *"), "expression", "month field: 1-12 or JAN-DEC"),
        (lambda: Cron("* * * * 8"), "expression", "day-of-week field"),
        (lambda: Cron("70 * * * * *"), "expression", "second field: 0-59"),
        (lambda: Cron("0 0 31 2 *"), "expression", "day-of-month"),
        (lambda: Cron("0 9 * *"), "expression", "5 fields"),
        (lambda: Cron("@reboot"), "expression", "@hourly"),
        (lambda: Cron(5), "expression", "5 fields"),  # type: ignore[arg-type]
        (lambda: Cron(NINE, timezone="Berlin"), "timezone", "'Europe/Berlin'"),
        (lambda: Cron(NINE, timezone="America/New York"), "timezone", "'America/New_York'"),
        (lambda: Cron(NINE, timezone="../etc/passwd"), "timezone", "IANA"),
        (lambda: Cron(NINE, timezone=""), "timezone", "IANA"),
        (lambda: Cron(NINE, start=NAIVE), "start", "with a time zone"),
        (lambda: Cron(NINE, start=utc("2027-01-02"), end=utc("2027-01-01")), "end", "2027-01-02"),
        (lambda: Cron(NINE, start=utc("2027-01-02"), end=utc("2027-01-02T08:00")), "end", "none ever comes"),
        (lambda: Cron(NINE, jitter=-1), "jitter", "seconds"),
        (lambda: Cron(NINE, catch_up="some"), "catch_up", "'skip', 'latest', 'all'"),  # type: ignore[arg-type]
        (lambda: Cron(NINE, overlap="no"), "overlap", "'allow', 'skip'"),  # type: ignore[arg-type]
        (lambda: Cron(NINE, catch_up_limit=0), "catch_up_limit", "from 1"),
        (lambda: Cron(NINE, slug="a@b"), "slug", "letters"),
        (lambda: Cron(NINE, active=1), "active", "True or False"),  # type: ignore[arg-type]
        (lambda: Cron(NINE, parameters={"f": print}), "parameters", "parameters.f"),
        (lambda: Cron(NINE, parameters=[1]), "parameters", "mapping"),  # type: ignore[arg-type]
        (lambda: Interval(0), "every", "0.001"),
        (lambda: Interval(-5), "every", "0.001"),
        (lambda: Interval(0.0001), "every", "0.001"),
        (lambda: Interval(float("nan")), "every", "0.001"),
        (lambda: Interval(1e300), "every", "0.001"),
        (lambda: Interval(5, anchor=NAIVE), "anchor", "with a time zone"),
        (lambda: RRule(""), "rule", "FREQ=WEEKLY"),
        (lambda: RRule("FREQ=FORTNIGHTLY"), "rule", "YEARLY"),
        (lambda: RRule("INTERVAL=2"), "rule", "FREQ="),
        (lambda: RRule("FREQ=DAILY;BYHOUR=25"), "rule", "BYHOUR"),
        (lambda: RRule("FREQ=DAILY;INTERVAL=0"), "rule", "INTERVAL"),
        (lambda: RRule("FREQ=DAILY;BYDAY=XX"), "rule", "BYDAY"),
        (lambda: RRule("FREQ=DAILY;FREQ=DAILY"), "rule", "at most once"),
        (lambda: RRule("FREQ=DAILY;COUNT=3"), "rule", "DTSTART"),
        (lambda: RRule("FREQ=DAILY;COUNT=3;UNTIL=20280101"), "rule", "COUNT or UNTIL"),
        (lambda: RRule("FREQ=DAILY;UNTIL=20101231"), "rule", "comes true"),
        (lambda: RRule("FREQ=DAILY;UNTIL=20271340"), "rule", "exists"),
        (lambda: RRule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"), "rule", "comes true"),
        (lambda: RRule("FREQ=MINUTELY;BYMONTH=2;BYMONTHDAY=30"), "rule", "comes true"),
        (lambda: RRule("FREQ=HOURLY;INTERVAL=168;BYDAY=MO"), "rule", "comes true"),
        (lambda: RRule("FREQ=HOURLY;INTERVAL=24;BYHOUR=5"), "rule", "makes sense"),
        (lambda: RRule("EXRULE:FREQ=DAILY"), "rule", "EXDATE"),
        (lambda: RRule("DTSTART:nonsense RRULE:FREQ=DAILY"), "rule", "'NONSENSE'"),
        (lambda: RRule("DTSTART:20270101 RRULE:FREQ=DAILY", anchor=utc("2027-01-01")), "anchor", "DTSTART"),
        (lambda: RRule("DTSTART;TZID=Asia/Tokyo:20270101 RRULE:FREQ=DAILY", timezone=BERLIN), "timezone", "Asia/Tokyo"),
        (lambda: RRule("FREQ=DAILY", timezone="Nowhere/At_All"), "timezone", "IANA"),
        (lambda: schedule_of({"kind": "moon"}), "kind", "'cron'"),
        (lambda: schedule_of({"kind": "cron", "expression": NINE, "colour": 1}), "data", "to_data"),
        (lambda: schedule_of({"kind": "cron", "expression": NINE, "start": "soon"}), "data", "to_data"),
        (lambda: next_slot(Cron(NINE), NAIVE), "moment", "with a time zone"),
    ],
)
def test_what_cannot_be_is_said_at_once(make: Callable[[], object], field: str, hint: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        make()
    assert caught.value.field == field
    assert hint in str(caught.value)


def test_parameters_are_as_they_will_be_read_back() -> None:
    schedule = Cron(NINE, parameters={"day": date(2027, 1, 1)})
    assert schedule.parameters == {"day": "2027-01-01"}


# --- the extra -------------------------------------------------------------------------------


def test_without_the_extra_the_pip_line_is_shown(run_python: RunPython) -> None:
    done = run_python("""
import sys
sys.modules["cronsim"] = sys.modules["dateutil"] = sys.modules["dateutil.rrule"] = None
from asyncflow.exceptions import MissingExtraError
from asyncflow.schedules import Cron, Interval, RRule
Interval(5)
for make in (lambda: Cron("@daily"), lambda: RRule("FREQ=DAILY")):
    try:
        make()
    except MissingExtraError as error:
        print(error)
""")
    assert done.stdout.splitlines() == [
        'a cron schedule needs cronsim, which is not installed: pip install "asyncflow[schedules]"',
        'an RRULE schedule needs python-dateutil, which is not installed: pip install "asyncflow[schedules]"',
    ]


def test_without_time_zones_the_pip_line_is_shown(run_python: RunPython) -> None:
    done = run_python("""
import sys, zoneinfo
sys.modules["tzdata"] = None
zoneinfo.reset_tzpath(())
from asyncflow.exceptions import MissingExtraError
from asyncflow.schedules import Cron
Cron("@daily")
try:
    Cron("@daily", timezone="Europe/Berlin")
except MissingExtraError as error:
    print(error)
""")
    assert done.stdout.strip() == (
        "the time zone 'Europe/Berlin' needs tzdata, which is not installed: pip install \"asyncflow[schedules]\""
    )


def test_nothing_heavy_is_imported_before_it_is_used(run_python: RunPython) -> None:
    done = run_python("""
import sys
import asyncflow.schedules, asyncflow.triggers
asyncflow.schedules.Interval(5)
print(*sorted({"cronsim", "dateutil", "zoneinfo", "pydantic", "hashlib", "difflib"} & set(sys.modules)))
""")
    assert done.stdout.strip() == ""
