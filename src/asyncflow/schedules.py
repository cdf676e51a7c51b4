"""When a deployment starts runs by itself: by cron, in intervals, or by a recurrence rule.

Schedules are plain values, checked when they are made. What they tell is always in UTC; the wall clock of a
time zone is in the rule (see `_schedules.zones` and `_schedules.wall_slots` for what happens when clocks are set).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property
from typing import Any, ClassVar, cast

from asyncflow._schedules.cron import CronTimes
from asyncflow._schedules.fields import CatchUp, Overlap, Schedule, moment_given
from asyncflow._schedules.intervals import Steps
from asyncflow._schedules.rrule_text import RuleTimes, read_rule, wall_of_date, zone_of_rule
from asyncflow._schedules.slots import GRACE, Due, due, moment_of, next_slot, upcoming
from asyncflow._schedules.wall_slots import WallTimes, ascending, descending
from asyncflow._schedules.zones import wall_of, zone_of
from asyncflow.exceptions import OptionError, ScheduleError
from asyncflow.retries import Seconds, seconds_of

__all__ = [
    "GRACE",
    "CatchUp",
    "Cron",
    "Due",
    "Interval",
    "Overlap",
    "RRule",
    "Schedule",
    "describe",
    "due",
    "moment_of",
    "next_slot",
    "schedule_of",
    "to_data",
    "upcoming",
]

_DAY = timedelta(days=1)
_SHORTEST = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # on whatever clock
_RULES_BEGIN = datetime(2020, 1, 1)  # noqa: DTZ001
_UNITS = (("day", 86400), ("h", 3600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Cron(Schedule):
    """By a cron expression, on the wall clock of a time zone: `Cron("0 9 * * MON-FRI", timezone="Europe/Berlin")`.

    Five fields (minute, hour, day of month, month, day of week), six with the seconds first, or "@hourly",
    "@daily", "@weekly", "@monthly", "@yearly". Names (MON, JAN), L, LW and #; where both the day of month and
    the day of week are restricted, one of them is enough, unless one of them begins with a star.

    An expression that names hours has each of its times once a day: one that is skipped when clocks are set
    forward comes at that moment, one that is shown twice comes the first time. An expression with * for hours
    goes on evenly through both.
    """

    kind: ClassVar[str] = "cron"

    expression: str
    timezone: str = field(default="UTC", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        zone_of("Cron", self.timezone)
        self._times  # noqa: B018  # reads it, and raises
        self._check_fires()

    @cached_property
    def _times(self) -> CronTimes:
        return CronTimes(self.expression)

    def _ascending(self, after: datetime) -> Iterator[datetime]:
        return ascending(self._times, zone_of("Cron", self.timezone), after)

    def _descending(self, until: datetime) -> Iterator[datetime]:
        return descending(self._times, zone_of("Cron", self.timezone), until)


@dataclass(frozen=True)
class Interval(Schedule):
    """At even distances: `Interval(60)`, `Interval(timedelta(hours=6), anchor=...)`, in seconds or a timedelta.

    `anchor` is its phase, and not its beginning: any of its moments, past or future. Without one all
    processes count from 1970, so that hours begin at full hours.

    Whole days are days of the wall clock where a time zone is given: `Interval(timedelta(days=1), timezone=
    "Europe/Berlin")` is at midnight there in summer and winter. Anything else is time that passes.
    """

    kind: ClassVar[str] = "interval"

    every: Seconds
    anchor: datetime | None = field(default=None, kw_only=True)
    timezone: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            step = timedelta(seconds=seconds_of("every", self.every))
        except (OptionError, OverflowError):
            step = timedelta()
        if step < _SHORTEST:
            raise self._bad("every", self.every, "seconds from 0.001, or a timedelta of as much")
        self._set("every", step.total_seconds())
        if self.anchor is not None:
            self._set("anchor", moment_given("Interval", "anchor", self.anchor))
        if self.timezone is not None:
            zone_of("Interval", self.timezone)
        self._check_fires()

    @cached_property
    def _step(self) -> timedelta:
        return timedelta(seconds=cast("float", self.every))

    @cached_property
    def _zone(self) -> tzinfo | None:
        """The zone whose wall clock it goes by."""
        return None if self.timezone is None or self._step % _DAY else zone_of("Interval", self.timezone)

    @cached_property
    def _times(self) -> Steps:
        if self._zone is None:
            return Steps(self.anchor or _EPOCH.replace(tzinfo=UTC), self._step)
        return Steps(_EPOCH if self.anchor is None else wall_of(self.anchor, self._zone), self._step)

    def _ascending(self, after: datetime) -> Iterator[datetime]:
        return self._times.after(after) if self._zone is None else ascending(self._times, self._zone, after)

    def _descending(self, until: datetime) -> Iterator[datetime]:
        return self._times.until(until) if self._zone is None else descending(self._times, self._zone, until)


@dataclass(frozen=True)
class RRule(Schedule):
    """By a recurrence rule of RFC 5545, on the wall clock of a time zone: `RRule("FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17")`.

    Or lines with DTSTART, several RRULE, RDATE and EXDATE. What a rule leaves open (the hour, the weekday) is that
    of its DTSTART or `anchor`, without either of Wednesday, 2020-01-01 00:00; nothing comes before it.
    COUNT counts from there, and so needs one of them. Times that clocks skip or show twice are as in a `Cron`.
    """

    kind: ClassVar[str] = "rrule"

    rule: str
    anchor: datetime | None = field(default=None, kw_only=True)
    timezone: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor is not None:
            self._set("anchor", moment_given("RRule", "anchor", self.anchor))
        self._times  # noqa: B018  # reads it, and raises
        self._check_fires()

    @cached_property
    def _zone_name(self) -> str:
        return zone_of_rule(read_rule(self.rule), self.timezone)

    @cached_property
    def _times(self) -> WallTimes:
        read = read_rule(self.rule)
        zone = zone_of("RRule", self._zone_name)
        if read.start is not None and self.anchor is not None:
            raise self._bad("anchor", self.anchor.isoformat(), "none where the rule has a DTSTART")
        if read.start is None and self.anchor is None and any("COUNT" in parts for parts in read.rules):
            raise self._bad("rule", self.rule, "a DTSTART line, or `anchor`, for COUNT to count from")
        start = _RULES_BEGIN if self.anchor is None else wall_of(self.anchor, zone)
        return RuleTimes(self.rule, read, zone, start if read.start is None else wall_of_date(read.start, zone))

    def _ascending(self, after: datetime) -> Iterator[datetime]:
        return ascending(self._times, zone_of("RRule", self._zone_name), after)

    def _descending(self, until: datetime) -> Iterator[datetime]:
        return descending(self._times, zone_of("RRule", self._zone_name), until)


# --- as data, and for people -----------------------------------------------------------------

_KINDS: dict[str, type[Schedule]] = {each.kind: each for each in (Cron, Interval, RRule)}
_MOMENTS = ("start", "end", "anchor")


def to_data(schedule: Schedule) -> dict[str, Any]:
    """A schedule as a JSON object with sorted keys: equal schedules give equal text."""
    return schedule.to_data()


def schedule_of(data: Mapping[str, Any]) -> Schedule:
    """The schedule that `to_data` was given. Raises `ScheduleError` for anything else."""
    kind = data.get("kind")
    if kind not in _KINDS:
        raise ScheduleError("schedule", "kind", kind, "one of " + ", ".join(map(repr, _KINDS)))
    given = {name: value for name, value in data.items() if name != "kind"}
    try:
        given |= {name: datetime.fromisoformat(given[name]) for name in _MOMENTS if name in given}
        return _KINDS[kind](**given)
    except (TypeError, ValueError) as error:
        if isinstance(error, ScheduleError):
            raise
        raise ScheduleError("schedule", "data", dict(data), f"what to_data gives for a schedule ({error})") from None


def describe(schedule: Schedule) -> str:
    """A schedule in a few words, for a table: "cron '0 9 * * *' Europe/Berlin", "every 5 s"."""
    if isinstance(schedule, Cron):
        return f"cron {schedule.expression!r} {schedule.timezone}"
    if isinstance(schedule, Interval):
        return " ".join(filter(None, ("every", _length(cast("float", schedule.every)), schedule.timezone)))
    assert isinstance(schedule, RRule)
    return (
        f"rrule {' '.join(schedule.rule.split())!r} {schedule.timezone or read_rule(schedule.rule).timezone or 'UTC'}"
    )


def _length(seconds: float) -> str:
    for name, unit in _UNITS:
        if seconds % unit == 0:
            count = int(seconds // unit)
            return f"{count} {name}{'s' if name == 'day' and count != 1 else ''}"
    return f"{seconds:g} s"
