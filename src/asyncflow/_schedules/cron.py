"""The wall-clock times of a cron expression.

The arithmetic is cronsim's: small, typed, without dependencies, made for a service that runs on it, and it steps
backwards as well, which catching up needs. (croniter is three times as large: years, hashed and random fields, and
several forms of each.) It is only ever given naive times: what happens
when the clocks are set is decided in `_schedules.wall_slots`, the same for every kind of schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from asyncflow.exceptions import MissingExtraError, ScheduleError

if TYPE_CHECKING:
    from cronsim import CronSim

__all__ = ["ALIASES", "CronTimes"]

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L for the last day or LW for the last weekday",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 or SUN-SAT (0 and 7 are Sunday), MON#2 for the second Monday or 5L for the last Friday",
}
_SOME_YEAR = datetime(2000, 1, 1)  # noqa: DTZ001  # a wall-clock time has no zone
_HOURS = 24


class CronTimes:
    """The times that an expression names. Raises `ScheduleError` for one that cannot be read, or names none."""

    def __init__(self, expression: str) -> None:
        self._text = _five_or_six(expression)
        probe = self._simulation(_SOME_YEAR, expression)
        if next(probe, None) is None:  # looks 50 years ahead
            raise ScheduleError("Cron", "expression", expression, "one that comes true: no day is like that")
        self.in_every_hour = len(probe.hours) == _HOURS

    def _simulation(self, wall: datetime, expression: str | None = None, *, reverse: bool = False) -> CronSim:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise MissingExtraError("a cron schedule", "cronsim", "schedules") from None
        try:
            return CronSim(self._text, wall, reverse=reverse)
        except CronSimError as error:
            raise ScheduleError("Cron", "expression", expression or self._text, _expected(str(error))) from None

    def after(self, wall: datetime) -> Iterator[datetime]:
        return self._simulation(wall)

    def until(self, wall: datetime) -> Iterator[datetime]:
        # It begins before the time that it is given; one second later, rounded down, includes that time itself.
        return self._simulation(wall.replace(microsecond=0) + timedelta(seconds=1), reverse=True)


def _five_or_six(expression: object) -> str:
    """The expression with an alias written out."""
    shape = f"5 fields, 6 with the seconds first, or one of {', '.join(ALIASES)}"
    if not isinstance(expression, str):
        raise ScheduleError("Cron", "expression", expression, shape)
    text = ALIASES.get(expression.strip().lower(), expression)
    if len(text.split()) not in (5, 6):
        raise ScheduleError("Cron", "expression", expression, shape)
    return text


def _expected(problem: str) -> str:
    """From cronsim's "Bad minute" to what would be good."""
    name = problem.rpartition(" ")[2]
    if name not in _FIELDS:
        return f"a cron expression ({problem})"
    return f"another {name} field: {_FIELDS[name]}; several with commas, ranges with -, steps with /, * for all"
