"""Between the time that a zone's clocks show and UTC.

Clocks that are set forward skip some times, and those that are set back show some twice. Every
schedule reads them the same way, so that there is one rule to explain and to test:

- a time that is skipped stands for the moment at which the clocks were set forward (02:30 becomes
  03:00): not later, because what is due then was due at 02:30 of the time before, and several that
  are skipped become one;
- a time that is shown twice stands for the first of the two moments.

So a wall-clock time is one moment, and a later wall-clock time never an earlier moment.

`zoneinfo` tells the offset at a moment, but not when it changes; changes are found by bisection.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

from asyncflow.exceptions import MissingExtraError, ScheduleError

__all__ = ["Change", "change_after", "change_before", "moment_of_wall", "wall_of", "zone_of"]

_MICROSECOND = timedelta(microseconds=1)
_STEP = timedelta(days=7)
"""Two changes of one zone are further apart than that: the closest are those around Ramadan in Morocco."""
_REACH = 58
"""Steps: somewhat more than a year. A zone that does not change in a year is left alone."""


class Change(NamedTuple):
    """A moment at which the clocks of a zone were set."""

    at: datetime
    """The first moment of the new time (UTC)."""
    before: timedelta
    """What was ahead of UTC until then."""
    after: timedelta
    """What is ahead of UTC from then on."""


@lru_cache(maxsize=256)
def zone_of(kind: str, name: str) -> tzinfo:
    """The time zone of a name of the IANA database. Raises `ScheduleError`."""
    if name == "UTC":  # also where no database is installed
        return UTC
    # 4 ms, and most programs have no schedules.
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):  # OSError: the name of a folder, or too long
        known = available_timezones()
        if not known:
            raise MissingExtraError(f"the time zone {name!r}", "tzdata", "schedules") from None
        raise ScheduleError(kind, "timezone", name, _hint(str(name), known)) from None


def _hint(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    # People know the city; the continent is where they go wrong ("Germany/Berlin").
    city = name.rpartition("/")[2].casefold()
    near = [each for each in sorted(known) if city and each.rpartition("/")[2].casefold() == city]
    near += [each for each in get_close_matches(name, known, n=3, cutoff=0.6) if each not in near]
    meant = " or ".join(map(repr, near[:3])) or "for example 'Europe/Berlin' or 'UTC'"
    return f"a name of the IANA time zone database: {meant}"


def wall_of(moment: datetime, zone: tzinfo) -> datetime:
    """What the clocks of the zone show at a moment."""
    return moment.astimezone(zone).replace(tzinfo=None)


def moment_of_wall(wall: datetime, zone: tzinfo) -> datetime:
    """The moment (UTC) that a wall-clock time stands for: see the top of this module."""
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if wall_of(moment, zone) == wall:
        return moment
    # In the gap: read with the offset from before it, it comes after the change; with the one from after it, before.
    return _first_changed(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone).at


def change_after(moment: datetime, zone: tzinfo) -> Change | None:
    """The first time that the clocks are set after a moment; None when that is not within about a year."""
    if zone is UTC:
        return None
    low, offset = moment, _offset(moment, zone)
    for _ in range(_REACH):
        high = low + _STEP
        if _offset(high, zone) != offset:
            return _first_changed(low, high, zone)
        low = high
    return None


def change_before(moment: datetime, zone: tzinfo) -> Change | None:
    """The last time that the clocks were set at or before a moment; None when that is not within about a year."""
    if zone is UTC:
        return None
    high, offset = moment, _offset(moment, zone)
    for _ in range(_REACH):
        low = high - _STEP
        if _offset(low, zone) != offset:
            return _first_changed(low, high, zone)
        high = low
    return None


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _first_changed(low: datetime, high: datetime, zone: tzinfo) -> Change:
    """The change between two moments whose offsets differ."""
    before = _offset(low, zone)
    while high - low > _MICROSECOND:
        middle = low + (high - low) // 2
        if _offset(middle, zone) == before:
            low = middle
        else:
            high = middle
    return Change(high, before, _offset(high, zone))
