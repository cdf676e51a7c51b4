"""From the wall-clock times that a rule names to the moments at which they are due.

Two kinds of rules want two things of the days on which the clocks are set:

- One that names hours ("at 9", "every two hours") wants each of its times once a day: a skipped one
  when the clocks are set forward, one that is shown twice at the first showing.
- One that has something in every hour ("every five minutes") wants to go on as if nothing happened:
  it is due whenever the clocks show one of its times, at both showings, and a skipped one is
  not made up for. (It would come on top of the next hour's, which follow at once. Where clocks are
  set by half an hour, as on Lord Howe Island, the next hour's do not follow at once: there it is.)

Debian's cron draws the line by stars in the text instead, so that its "0 */2 * * *" is skipped or comes twice.

Both directions are lazy: what is due next or was due last costs the same however long nobody looked.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

from asyncflow._schedules.zones import Change, change_after, change_before, moment_of_wall, wall_of

__all__ = ["WallTimes", "ascending", "descending"]

_MICROSECOND = timedelta(microseconds=1)
_HOUR = timedelta(hours=1)
_SPAN = timedelta(days=400)
"""How far one looks when a zone's clocks are not set any more: beyond `change_after`'s reach."""
_EMPTY_SPANS = 2
"""After the last wall-clock time: the clocks may show it once more after they were set back."""


class WallTimes(Protocol):
    """The wall-clock times (naive) that a rule names."""

    @property
    def in_every_hour(self) -> bool:
        """Whether it has times in every hour of the days it is about."""
        ...

    def after(self, wall: datetime) -> Iterator[datetime]:
        """Those after a time, ascending."""
        ...

    def until(self, wall: datetime) -> Iterator[datetime]:
        """Those up to and with a time, descending."""
        ...


def ascending(times: WallTimes, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    """The moments (UTC) after a moment, strictly ascending."""
    return (_hourly_after if times.in_every_hour else _named_after)(times, zone, after)


def descending(times: WallTimes, zone: tzinfo, until: datetime) -> Iterator[datetime]:
    """The moments (UTC) up to and with a moment, strictly descending."""
    return (_hourly_until if times.in_every_hour else _named_until)(times, zone, until)


# --- rules that name hours: each of their times is one moment --------------------------------


def _named_after(times: WallTimes, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    latest = after
    for wall in times.after(wall_of(after, zone)):
        moment = moment_of_wall(wall, zone)
        if moment > latest:  # at the second showing, the times of the first lie behind
            latest = moment
            yield moment


def _named_until(times: WallTimes, zone: tzinfo, until: datetime) -> Iterator[datetime]:
    local = until.astimezone(zone)
    # At the second showing, all that the first showed lies behind, also what the clocks are yet to show again.
    ahead = (local.replace(fold=0).utcoffset() or timedelta()) - _offset(until, zone)
    earliest: datetime | None = None
    for wall in times.until(local.replace(tzinfo=None, fold=0) + ahead):
        moment = moment_of_wall(wall, zone)
        if moment <= until and (earliest is None or moment < earliest):
            earliest = moment
            yield moment


# --- rules with something in every hour: whenever the clocks show it -------------------------


def _hourly_after(times: WallTimes, zone: tzinfo, after: datetime) -> Iterator[datetime]:
    begin, offset, wall = after, _offset(after, zone), wall_of(after, zone)
    empty = 0
    while empty < _EMPTY_SPANS:
        change = change_after(begin, zone)
        end = begin + _SPAN if change is None else change.at
        empty += 1
        for each in times.after(wall):
            empty = 0
            moment = _at(each, offset)
            if moment >= end:
                break
            yield moment
        if change is not None:
            offset = change.after
        begin, wall = end, (end + offset).replace(tzinfo=None)
        if change is not None and _made_up(times, change):
            yield end
        else:
            wall -= _MICROSECOND


def _hourly_until(times: WallTimes, zone: tzinfo, until: datetime) -> Iterator[datetime]:
    empty = 0
    while empty < _EMPTY_SPANS:
        change = change_before(until, zone)
        first = until - _SPAN if change is None else change.at
        offset = _offset(until, zone)
        made_up = change is not None and _made_up(times, change)
        empty += 1
        for wall in times.until(wall_of(until, zone)):
            empty = 0
            moment = _at(wall, offset)
            if moment < first or (made_up and moment == first):
                break
            yield moment
        if made_up:
            yield first
        until = first - _MICROSECOND


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _at(wall: datetime, offset: timedelta) -> datetime:
    return (wall - offset).replace(tzinfo=UTC)


def _made_up(times: WallTimes, change: Change) -> bool:
    """Whether something is due at a change for the sake of what it skipped."""
    skipped = change.after - change.before
    if skipped <= timedelta() or skipped % _HOUR == timedelta():
        return False
    start = (change.at + change.before).replace(tzinfo=None)
    first = next(times.after(start - _MICROSECOND), None)
    return first is not None and first < start + skipped
