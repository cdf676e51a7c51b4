"""The text of recurrence rules: one RRULE, or lines with DTSTART, RRULE, RDATE and EXDATE.

Parts are checked here, because python-dateutil takes some that make no sense and then never returns
(INTERVAL=0, an hour 25).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, tzinfo
from heapq import merge
from typing import NamedTuple

from asyncflow._schedules.rrules import Recurrence
from asyncflow._schedules.zones import wall_of, zone_of
from asyncflow.exceptions import ScheduleError

__all__ = ["RuleText", "RuleTimes", "read_rule", "wall_of_date", "zone_of_rule"]

MOST_COUNTED = 100_000
"""A COUNT is walked through once: a third of a second for as many."""
_FREQUENCIES = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY")
_WEEKDAY = "(?:MO|TU|WE|TH|FR|SA|SU)"
_RANGES = {  # lowest, highest, and whether they may also be counted from the end, with a minus
    "BYSECOND": (0, 59, False),
    "BYMINUTE": (0, 59, False),
    "BYHOUR": (0, 23, False),
    "BYMONTH": (1, 12, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYSETPOS": (1, 366, True),
    "BYEASTER": (0, 366, True),
}
_NAMES = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY", *_RANGES)
_LINE = r"(?i)(DTSTART|RRULE|RDATE|EXDATE)((?:;[^:]*)?):(.*)"
_DATE = r"(?a)(\d{8})(?:T(\d{6})(Z?))?"


class RuleText(NamedTuple):
    """What a text says."""

    timezone: str | None
    """The TZID of its DTSTART."""
    start: str | None
    rules: list[dict[str, str]]
    more: list[str]
    """Dates of RDATE."""
    but: list[str]
    """Dates of EXDATE."""


def read_rule(text: object) -> RuleText:
    """Take a text apart. Raises `ScheduleError` about the first thing that cannot be right."""
    shape = "a rule such as 'FREQ=WEEKLY;BYDAY=MO,FR;BYHOUR=9', or lines of DTSTART:, RRULE:, RDATE: and EXDATE:"
    if not isinstance(text, str) or not text.split():
        raise ScheduleError("RRule", "rule", text, shape)
    found = RuleText(None, None, [], [], [])
    for line in text.split():
        match = re.fullmatch(_LINE, line)
        if match is None and ":" in line:
            raise ScheduleError("RRule", "rule", line, shape)
        name, options, value = ("RRULE", "", line) if match is None else (match[1].upper(), match[2], match[3])
        if name == "RRULE":
            found.rules.append(_checked(text, value.upper()))
            continue
        timezone = _timezone(line, options)
        found = _with_dates(found, name, timezone, line, value.upper())
    if not found.rules and not found.more:
        raise ScheduleError("RRule", "rule", text, shape)
    return found


def _timezone(line: str, options: str) -> str | None:
    zones = [option[5:] for option in options.split(";") if option.upper().startswith("TZID=")]
    if len(zones) > 1:
        raise ScheduleError("RRule", "rule", line, "one TZID")
    return zones[0] if zones else None


def _with_dates(found: RuleText, name: str, timezone: str | None, line: str, value: str) -> RuleText:
    dates = value.split(",")
    if bad := [each for each in dates if re.fullmatch(_DATE, each) is None]:
        raise ScheduleError("RRule", "rule", line, f"a date such as 20271231T090000 where {bad[0]!r} stands")
    if timezone is not None and found.timezone not in (None, timezone):
        raise ScheduleError("RRule", "rule", line, f"the time zone {found.timezone!r} of the lines before")
    found = found._replace(timezone=timezone or found.timezone)
    if name == "DTSTART":
        if len(dates) != 1 or found.start is not None:
            raise ScheduleError("RRule", "rule", line, "one DTSTART with one date")
        return found._replace(start=dates[0])
    (found.more if name == "RDATE" else found.but).extend(dates)
    return found


def _checked(text: str, rule: str) -> dict[str, str]:
    """The parts of one RRULE."""
    parts: dict[str, str] = {}
    for each in filter(None, rule.split(";")):
        name, _, value = each.partition("=")
        name = "BYDAY" if name == "BYWEEKDAY" else name
        if name not in _NAMES or name in parts:
            raise ScheduleError("RRule", "rule", text, f"each of {', '.join(_NAMES)} at most once, and not {each!r}")
        if (problem := _problem(name, value)) is not None:
            raise ScheduleError("RRule", "rule", text, f"{name} to be {problem}, and not {value!r}")
        parts[name] = value
    if "FREQ" not in parts:
        raise ScheduleError("RRule", "rule", text, f"FREQ=, one of {', '.join(_FREQUENCIES)}")
    if "COUNT" in parts and "UNTIL" in parts:
        raise ScheduleError("RRule", "rule", text, "COUNT or UNTIL, not both")
    return parts


def _problem(name: str, value: str) -> str | None:
    """What a part should have been; None when it is that."""
    if name in _RANGES:
        low, high, negative = _RANGES[name]
        values = value.split(",")
        ok = all(re.fullmatch(r"[+-]?\d{1,3}", each, re.ASCII) for each in values) and all(
            low <= (abs(int(each)) if negative else int(each)) <= high for each in values
        )
        return None if ok else f"of {low} to {high}{', or counted from the end with a minus' if negative else ''}"
    if name in ("INTERVAL", "COUNT"):
        most = MOST_COUNTED if name == "COUNT" else 1_000_000
        ok = re.fullmatch(r"\d{1,7}", value, re.ASCII) is not None and 1 <= int(value) <= most
        return None if ok else f"a number from 1 to {most:,}"
    patterns = {
        "FREQ": ("|".join(_FREQUENCIES), f"one of {', '.join(_FREQUENCIES)}"),
        "UNTIL": (_DATE, "a date such as 20271231T235959Z"),
        "WKST": (_WEEKDAY, "one of MO, TU, WE, TH, FR, SA, SU"),
        "BYDAY": (rf"[+-]?\d{{0,2}}{_WEEKDAY}(?:,[+-]?\d{{0,2}}{_WEEKDAY})*", "weekdays such as MO,WE or 1MO or -1FR"),
    }
    pattern, expected = patterns[name]
    return None if re.fullmatch(pattern, value, re.ASCII) else expected


# --- what it names ---------------------------------------------------------------------------


class RuleTimes:
    """The wall-clock times of a whole text: of any of its rules and RDATEs, without its EXDATEs."""

    def __init__(self, text: str, read: RuleText, zone: tzinfo, start: datetime) -> None:
        """`start` is a wall-clock time. Raises `ScheduleError`."""
        start = start.replace(microsecond=0, fold=0)  # rules have whole seconds
        self._rules: list[Recurrence] = []
        for parts in read.rules:
            until = wall_of_date(parts["UNTIL"], zone) if "UNTIL" in parts else None
            rule = Recurrence({name: value for name, value in parts.items() if name != "UNTIL"}, start, until)
            rule.check(text)
            self._rules.append(rule)
        self._more = sorted(wall_of_date(each, zone) for each in read.more)
        self._but = {wall_of_date(each, zone) for each in read.but}
        self.in_every_hour = bool(self._rules) and all(rule.in_every_hour for rule in self._rules)

    def after(self, wall: datetime) -> Iterator[datetime]:
        """Those after a time, ascending."""
        more = iter([each for each in self._more if each > wall])
        return self._without(merge(*(rule.after(wall) for rule in self._rules), more))

    def until(self, wall: datetime) -> Iterator[datetime]:
        """Those up to and with a time, descending."""
        more = iter([each for each in reversed(self._more) if each <= wall])
        return self._without(merge(*(rule.until(wall) for rule in self._rules), more, reverse=True))

    def _without(self, walls: Iterable[datetime]) -> Iterator[datetime]:
        latest: datetime | None = None
        for wall in walls:
            if wall != latest and wall not in self._but:
                yield wall
            latest = wall


def wall_of_date(text: str, zone: tzinfo) -> datetime:
    """A date of a rule as a wall-clock time of its zone."""
    match = re.fullmatch(_DATE, text)
    assert match is not None  # `read_rule` has looked
    day, time, is_utc = match.groups()
    try:
        wall = datetime.strptime(day + (time or "000000"), "%Y%m%d%H%M%S")  # noqa: DTZ007  # a wall-clock time has no zone
    except ValueError:
        raise ScheduleError("RRule", "rule", text, "a date that exists, such as 20271231T090000") from None
    return wall_of(wall.replace(tzinfo=UTC), zone) if is_utc else wall


def zone_of_rule(read: RuleText, timezone: str | None) -> str:
    """The name of the zone that a rule's wall clock is in."""
    name = timezone or read.timezone or "UTC"
    if read.timezone not in (None, name):
        raise ScheduleError("RRule", "timezone", timezone, f"the TZID of the rule, {read.timezone!r}")
    zone_of("RRule", name)
    return name
