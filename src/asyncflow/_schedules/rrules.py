"""The wall-clock times of the recurrence rules of RFC 5545.

What a rule means is python-dateutil's to know: it is what everybody's calendars were checked against. But it
only ever walks forward from DTSTART, which for a rule by the minute is half a million steps a year. So a
rule is given to it with another start: one of the rule's own periods, shortly before the time that is asked
for. For that, what a rule takes from its start (its weekday, its hour, ...) is written into it first.

A COUNT cannot be moved; it is walked once, and is an UNTIL from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from asyncflow.exceptions import MissingExtraError, ScheduleError

if TYPE_CHECKING:
    from dateutil.rrule import rrule

__all__ = ["Recurrence"]

_MICROSECOND = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_PERIODS = {
    "YEARLY": timedelta(days=366),
    "MONTHLY": timedelta(days=31),
    "WEEKLY": timedelta(days=7),
    "DAILY": _DAY,
    "HOURLY": _HOUR,
    "MINUTELY": timedelta(minutes=1),
    "SECONDLY": _SECOND,
}
_IRREGULAR = ("YEARLY", "MONTHLY")
_DAYS = ("BYMONTH", "BYWEEKNO", "BYYEARDAY", "BYMONTHDAY", "BYDAY", "BYEASTER")
"""The parts that say which days."""
_SPANS = {**dict.fromkeys(_DAYS, _DAY), "BYHOUR": _HOUR, "BYMINUTE": _HOUR / 60}
"""How long what such a part leaves out is at least."""
_MOST_TRIED = 3000
"""Spans that are looked into before a rule is taken for one that never comes true: some days of each of 60 years."""
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_PER_WINDOW = 128
"""Periods in the first look backwards: more than a `catch_up_limit` mostly is."""
_LAST_YEAR = 9999


class Recurrence:
    """One RRULE, from `start` on, `until` included; all of them wall-clock times."""

    def __init__(self, parts: Mapping[str, str], start: datetime, until: datetime | None) -> None:
        """`parts` are checked, without UNTIL."""
        self._start = start
        self._given_until = until
        self._freq = parts["FREQ"]
        self._interval = int(parts.get("INTERVAL", "1"))
        self._count = int(parts["COUNT"]) if "COUNT" in parts else None
        self._step = _PERIODS[self._freq] * self._interval
        full = {**parts, **_taken_from(start, parts)}
        full.pop("COUNT", None)
        self._parts = full
        self._spans, self._span = _spans_of(parts, start)
        inner = (
            full
            if self._spans is None
            else {name: value for name, value in full.items() if name not in _coarser(parts)}
        )
        self._text = ";".join(f"{name}={value}" for name, value in inner.items())
        self.in_every_hour = (
            _HOUR % self._step == timedelta() and "BYHOUR" not in parts and self._count is None
            if self._step <= _HOUR
            else False
        )

    def check(self, text: str) -> None:
        """Raise `ScheduleError` when it never comes true."""
        try:
            found = self._comes_true() and next(self.after(self._start - _MICROSECOND), None) is not None
        except (ValueError, TypeError) as error:
            raise ScheduleError("RRule", "rule", text, f"a rule that makes sense ({error})") from None
        if not found:
            raise ScheduleError("RRule", "rule", text, "a rule that comes true: no moment is like that")

    def _comes_true(self) -> bool:
        if self._spans is not None:
            some = islice(self._spans.after(self._start - self._span), _MOST_TRIED)
            return self._spans._comes_true() and any(True for span in some for _ in self._within(span, None))
        # Where nothing is found dateutil walks on to the last year of all: so begin shortly before it.
        years = 200 if self._freq in _IRREGULAR else 60  # longer than leap days take to meet each weekday
        late = datetime(_LAST_YEAR - years, 1, 1)  # noqa: DTZ001  # a wall-clock time has no zone
        return any(True for _ in self._rule(max(late, self._start)))

    def after(self, wall: datetime) -> Iterator[datetime]:
        """Those after a time, ascending."""
        until = self._until
        if self._spans is None:
            yield from self._between(wall, until)
            return
        for span in self._spans.after(max(wall, self._start) - self._span):
            if until is not None and span > until:
                return
            yield from (each for each in self._within(span, until) if each > wall)

    def until(self, wall: datetime) -> Iterator[datetime]:
        """Those up to and with a time, descending."""
        last = _earlier(self._until, wall)
        if self._spans is None:
            yield from self._backwards(last, self._start)
            return
        for span in self._spans.until(last):
            yield from self._backwards(min(last, span + self._span - _SECOND), max(span, self._start))

    def _within(self, span: datetime, until: datetime | None) -> Iterator[datetime]:
        return self._between(max(span, self._start) - _MICROSECOND, _earlier(until, span + self._span - _SECOND))

    @cached_property
    def _until(self) -> datetime | None:
        if self._count is None:
            return self._given_until
        counted = Recurrence(self._parts, self._start, None)
        walls = list(islice(counted.after(self._start - _MICROSECOND), self._count))
        return walls[-1] if walls else self._start

    def _backwards(self, last: datetime, first: datetime) -> Iterator[datetime]:
        """From `last` down to `first`, both included, in windows that double."""
        size = self._step * (_PER_WINDOW if self._step < _DAY else 2)
        while last >= first:
            before = last - size if last - first > size else first - _MICROSECOND
            yield from reversed(list(self._between(before, last)))
            last = before
            size *= 2

    def _between(self, before: datetime, last: datetime | None) -> Iterator[datetime]:
        """Those after `before`, up to and with `last`."""
        for wall in self._rule(before):
            if last is not None and wall > last:
                return
            if wall > before:
                yield wall

    def _rule(self, wall: datetime) -> rrule:
        """The rule, begun in its last period but one before a time."""
        return _dateutil_rule(self._text, self._begin_before(wall))

    def _begin_before(self, wall: datetime) -> datetime:
        start = self._start
        if self._freq not in _IRREGULAR:
            return start + max(0, (wall - start) // self._step - 1) * self._step
        months = self._interval * (12 if self._freq == "YEARLY" else 1)
        passed = (wall.year - start.year) * 12 + wall.month - start.month
        periods = max(0, passed // months - 1)
        if periods == 0:
            return start
        year, month = divmod(start.year * 12 + start.month - 1 + periods * months, 12)
        # The first of a period: it has no 29th to 31st to lose.
        return datetime(year, 1 if self._freq == "YEARLY" else month + 1, 1)  # noqa: DTZ001


def _earlier(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else min(one, other)


def _coarser(parts: Mapping[str, str]) -> list[str]:
    """The parts of a rule with several times a day that leave out whole days, hours or minutes."""
    period = _PERIODS[parts["FREQ"]]
    return [name for name, unit in _SPANS.items() if name in parts and period < unit <= _DAY]


def _spans_of(parts: Mapping[str, str], start: datetime) -> tuple[Recurrence | None, timedelta]:
    """The days, hours or minutes that such a rule is about, as a rule of its own, and how long they are.

    dateutil walks through what is left out step by step: eleven months by the second, for a rule about January.
    """
    names = _coarser(parts)
    if not names:
        return None, _DAY
    span = min(_SPANS[name] for name in names)
    freq = next(freq for freq, period in _PERIODS.items() if period == span)
    begin = datetime(start.year, start.month, start.day)  # noqa: DTZ001
    begin += (start - begin) // span * span
    return Recurrence(
        {"FREQ": freq, **{name: parts[name] for name in (*names, "WKST") if name in parts}}, begin, None
    ), span


def _taken_from(start: datetime, parts: Mapping[str, str]) -> dict[str, str]:
    """What a rule leaves to its start: its day where no part names days, its time of day where no part does."""
    taken: dict[str, str] = {}
    freq = parts["FREQ"]
    if not any(name in parts for name in _DAYS if name != "BYMONTH"):
        if freq == "YEARLY":
            taken["BYMONTH"] = parts.get("BYMONTH", str(start.month))
        if freq in _IRREGULAR:
            taken["BYMONTHDAY"] = str(start.day)
        elif freq == "WEEKLY":
            taken["BYDAY"] = _WEEKDAYS[start.weekday()]
    period = _PERIODS[freq]
    times = (("BYHOUR", start.hour, _HOUR), ("BYMINUTE", start.minute, _HOUR / 60), ("BYSECOND", start.second, _SECOND))
    taken |= {name: str(value) for name, value, unit in times if name not in parts and period > unit}
    return taken


def _dateutil_rule(text: str, start: datetime) -> rrule:
    try:
        from dateutil.rrule import rrule, rrulestr
    except ImportError:
        raise MissingExtraError("an RRULE schedule", "python-dateutil", "schedules") from None
    rule = rrulestr(text, dtstart=start)
    assert isinstance(rule, rrule)  # it is a set where the text has several lines, which this one has not
    return rule
