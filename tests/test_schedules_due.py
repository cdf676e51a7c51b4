"""What is due: every slot once, whatever clocks and interruptions do, and quickly after any length of time."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow.exceptions import ScheduleError
from asyncflow.schedules import GRACE, CatchUp, Cron, Interval, RRule, Schedule, due, upcoming
from tests.test_schedules import MOMENTS, NAIVE, SCHEDULES, utc

MINUTES = Cron("* * * * *")
NOON = utc("2027-05-12T12:00")
MINUTE = timedelta(minutes=1)


def test_nothing_is_due_before_the_first_slot() -> None:
    assert due(MINUTES, NOON, NOON + MINUTE / 2) == due(MINUTES, NOON, NOON)
    assert due(MINUTES, NOON, NOON).slots == []
    assert due(MINUTES, NOON, NOON + MINUTE / 2).decided == NOON, "what is decided moves with slots only"


def test_a_slot_is_due_at_its_moment_and_once() -> None:
    found = due(MINUTES, NOON, NOON + MINUTE)
    assert (found.slots, found.decided) == ([NOON + MINUTE], NOON + MINUTE)
    assert due(MINUTES, found.decided, NOON + MINUTE).slots == []


def test_latest_is_the_newest_that_was_missed() -> None:
    found = due(MINUTES, NOON, NOON + 90 * MINUTE)
    assert (found.slots, found.decided) == ([NOON + 90 * MINUTE], NOON + 90 * MINUTE)


def test_all_is_every_one_in_order_up_to_the_limit() -> None:
    found = due(replace(MINUTES, catch_up="all"), NOON, NOON + 90 * MINUTE)
    assert found.slots == [NOON + index * MINUTE for index in range(1, 91)]
    limited = due(replace(MINUTES, catch_up="all", catch_up_limit=3), NOON, NOON + 90 * MINUTE)
    assert limited.slots == [NOON + index * MINUTE for index in (88, 89, 90)]
    assert limited.decided == NOON + 90 * MINUTE


def test_skip_makes_nothing_of_what_is_old() -> None:
    hourly = Cron("0 * * * *", catch_up="skip")
    late = due(hourly, NOON, NOON + 3 * 60 * MINUTE + GRACE)
    assert late.slots == [NOON + 3 * 60 * MINUTE], "as old as may be"
    too_late = due(hourly, NOON, NOON + 3 * 60 * MINUTE + GRACE + timedelta(microseconds=1))
    assert too_late.slots == []
    assert too_late.decided == NOON + 3 * 60 * MINUTE, "and not looked at again"


def test_a_clock_that_was_set_back_finds_everything_decided() -> None:
    found = due(MINUTES, NOON, NOON - timedelta(hours=1))
    assert (found.slots, found.decided) == ([], NOON)


def test_start_and_end_bound_what_is_due() -> None:
    inside = Cron("0 * * * *", catch_up="all", start=NOON + 60 * MINUTE, end=NOON + 120 * MINUTE)
    found = due(inside, NOON - 600 * MINUTE, NOON + 600 * MINUTE)
    assert found.slots == [NOON + 60 * MINUTE, NOON + 120 * MINUTE]
    assert due(inside, found.decided, NOON + 900 * MINUTE).slots == []


def test_moments_without_a_zone_are_refused() -> None:
    with pytest.raises(ScheduleError, match="decided"):
        due(MINUTES, NAIVE, NOON)
    with pytest.raises(ScheduleError, match="now"):
        due(MINUTES, NOON, NAIVE)


# --- properties ------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SCHEDULES, MOMENTS, st.integers(0, 12), st.integers(0, 12))
def test_in_two_looks_or_in_one(schedule: Schedule, begin: datetime, first: int, second: int) -> None:
    every = replace(schedule, catch_up="all", catch_up_limit=10_000)
    slots = [begin, *upcoming(every, begin, 24)]
    middle, end = slots[first], slots[first + second]
    one = due(every, begin, middle)
    two = due(every, one.decided, end)
    assert one.slots + two.slots == due(every, begin, end).slots == slots[1 : first + second + 1]


LOOKS = st.lists(
    st.one_of(
        st.floats(0, 200).map(lambda seconds: timedelta(seconds=seconds)),
        st.sampled_from([timedelta(hours=1), timedelta(hours=-1), timedelta(days=1), timedelta(days=-1)]),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [
            Cron("* * * * *", timezone="Europe/Berlin"),
            Cron("30 2 * * *", timezone="Europe/Berlin"),
            Interval(7),
            RRule("FREQ=MINUTELY;INTERVAL=5", timezone="America/New_York"),
        ]
    ),
    st.sampled_from(["skip", "latest", "all"]),
    st.sampled_from([utc("2027-03-28T00:30"), utc("2027-10-31T00:30"), utc("2027-11-07T05:30"), NOON]),
    LOOKS,
)
def test_no_slot_twice_whatever_the_clock_does(
    schedule: Schedule, catch_up: CatchUp, begin: datetime, steps: list[timedelta]
) -> None:
    schedule = replace(schedule, catch_up=catch_up)
    fired: list[datetime] = []
    decided = now = begin
    for step in steps:
        now += step
        found = due(schedule, decided, now)
        assert found.decided >= decided
        assert all(decided < slot <= now for slot in found.slots)
        fired += found.slots
        decided = found.decided
    assert all(one < two for one, two in pairwise(fired))


@pytest.mark.parametrize("change", [utc("2027-03-28T01:00"), utc("2027-10-31T01:00")])
@pytest.mark.parametrize("schedule", [MINUTES, RRule("FREQ=MINUTELY", timezone="Europe/Berlin"), Interval(60)])
def test_a_day_with_looks_every_ten_seconds_fires_each_minute_once(schedule: Schedule, change: datetime) -> None:
    decided = now = change - timedelta(hours=3)
    fired: list[datetime] = []
    for _ in range(6 * 60 * 6):
        now += timedelta(seconds=10)
        found = due(schedule, decided, now)
        decided = found.decided
        fired += found.slots
    assert fired == [change - timedelta(hours=3) + index * MINUTE for index in range(1, 361)]


# --- quickly ---------------------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", ["latest", "all", "skip"])
@pytest.mark.parametrize(
    "schedule",
    [
        Cron("* * * * *", timezone="Europe/Berlin"),
        Cron("* * * * * *", timezone="Europe/Berlin"),
        Cron("0 0 29 2 *"),
        Interval(1),
        Interval(0.001),
        RRule("FREQ=MINUTELY", timezone="Europe/Berlin"),
        RRule("FREQ=SECONDLY"),
        RRule("FREQ=MINUTELY;BYDAY=MO"),
        RRule("FREQ=SECONDLY;BYMONTH=1;BYHOUR=3"),
        RRule("FREQ=MINUTELY;INTERVAL=90", anchor=datetime(1990, 1, 1, tzinfo=UTC)),
        RRule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29"),
    ],
    ids=str,
)
def test_after_a_year_nobody_walks_the_year(schedule: Schedule, catch_up: CatchUp) -> None:
    schedule = replace(schedule, catch_up=catch_up)
    spent: list[float] = []
    for _ in range(3):
        began = time.thread_time()  # of this thread alone: other work on the machine does not count
        found = due(schedule, NOON - timedelta(days=365), NOON)
        spent.append(time.thread_time() - began)
        assert len(found.slots) <= 100
    assert min(spent) < (0.2 if catch_up == "all" else 0.05)


def test_a_count_of_a_hundred_thousand_is_walked_once() -> None:
    schedule = RRule("FREQ=MINUTELY;COUNT=100000", anchor=utc("2027-01-01"))
    last = utc("2027-01-01") + 99_999 * MINUTE
    assert due(schedule, utc("2027-01-01"), utc("2030-01-01")).slots == [last]
    began = time.thread_time()
    due(schedule, utc("2027-01-01"), utc("2030-01-01"))
    assert time.thread_time() - began < 0.05
