"""What every kind of schedule has: its own parameters, bounds, and what becomes of slots that were missed."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, get_args

from asyncflow.exceptions import NotJSONError, OptionError, ScheduleError
from asyncflow.retries import Seconds, seconds_of
from asyncflow.serializers import decode, encode

__all__ = ["CatchUp", "Overlap", "Schedule", "is_slug", "moment_given", "plain_parameters"]

CatchUp = Literal["skip", "latest", "all"]
Overlap = Literal["allow", "skip"]

_MICROSECOND = timedelta(microseconds=1)
_SLUG = r"[\w.-]{1,100}"
_MOST_CAUGHT_UP = 10_000


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """When a deployment starts runs by itself: `Cron`, `Interval` or `RRule`.

    A schedule is a plain value: it reads no clock and starts nothing. Its moments are its **slots**.
    """

    kind: ClassVar[str]

    parameters: Mapping[str, Any] | None = field(default=None, hash=False)
    """Parameters of its runs, over those of the deployment: JSON, or what becomes JSON (a date, a model)."""
    slug: str | None = None
    """Its name within its deployment, part of what its runs are known by: letters, digits, "-", "_", "."."""
    start: datetime | None = None
    """No slot before this moment."""
    end: datetime | None = None
    """No slot after this moment."""
    jitter: Seconds = 0
    """Runs begin up to so many seconds after their slots, spread evenly; the slots stay what they are."""
    catch_up: CatchUp = "latest"
    """Of slots that came while nobody looked: none of those that are old ("skip"), the newest ("latest"), or "all"."""
    catch_up_limit: int = 100
    """With "all": so many at most, the newest."""
    overlap: Overlap = "allow"
    """Whether a slot makes a run while a run of this schedule is not over: "skip" is no."""
    active: bool = True

    def __post_init__(self) -> None:
        self._check_words()
        if not (self.slug is None or is_slug(self.slug)):
            raise self._bad("slug", self.slug, "1 to 100 letters, digits, '-', '_' or '.'")
        for name in ("start", "end"):
            if getattr(self, name) is not None:
                self._set(name, moment_given(type(self).__name__, name, getattr(self, name)))
        if self.start is not None and self.end is not None and self.end < self.start:
            raise self._bad("end", self.end.isoformat(), f"a moment from start={self.start.isoformat()!r} on")
        try:
            self._set("jitter", seconds_of("jitter", self.jitter))
        except OptionError as error:
            raise self._bad("jitter", error.value, error.expected) from None
        try:
            self._set("parameters", plain_parameters(self.parameters))
        except OptionError as error:
            raise self._bad("parameters", error.value, error.expected) from None

    def _check_words(self) -> None:
        for name, kind in (("catch_up", CatchUp), ("overlap", Overlap)):
            if getattr(self, name) not in get_args(kind):
                raise self._bad(name, getattr(self, name), "one of " + ", ".join(map(repr, get_args(kind))))
        limit = _any(self.catch_up_limit)
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MOST_CAUGHT_UP:
            raise self._bad("catch_up_limit", limit, f"a whole number from 1 to {_MOST_CAUGHT_UP:,}")
        if not isinstance(_any(self.active), bool):
            raise self._bad("active", self.active, "True or False")

    def _bad(self, name: str, value: object, expected: str) -> ScheduleError:
        return ScheduleError(type(self).__name__, name, value, expected)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    # --- slots -----------------------------------------------------------------------------------

    def slots_after(self, moment: datetime) -> Iterator[datetime]:
        """The slots after a moment, ascending (aware, UTC); often endless."""
        moment = moment_given(type(self).__name__, "moment", moment)
        if self.start is not None:
            moment = max(moment, self.start - _MICROSECOND)
        for slot in self._ascending(moment):
            if self.end is not None and slot > self.end:
                return
            yield slot

    def slots_until(self, moment: datetime) -> Iterator[datetime]:
        """The slots up to and with a moment, descending (aware, UTC); often endless."""
        moment = moment_given(type(self).__name__, "moment", moment)
        if self.end is not None:
            moment = min(moment, self.end)
        for slot in self._descending(moment):
            if self.start is not None and slot < self.start:
                return
            yield slot

    @abstractmethod
    def _ascending(self, after: datetime) -> Iterator[datetime]:
        """Without regard to start and end."""

    @abstractmethod
    def _descending(self, until: datetime) -> Iterator[datetime]: ...

    def _check_fires(self) -> None:
        """For the end of a subclass's checks: there must be a slot between start and end."""
        if self.end is None or next(self.slots_until(self.end), None) is not None:
            return
        since = f" from start={self.start.isoformat()!r} on" if self.start is not None else ""
        raise self._bad("end", self.end.isoformat(), f"a moment after the first slot{since}: as it is, none ever comes")

    # --- as data ---------------------------------------------------------------------------------

    def to_data(self) -> dict[str, Any]:
        """As a JSON object; `schedule_of` makes an equal schedule of it.

        Fields that have their default are left out: a field that a later version brings does not
        change what is said of the schedules that were there before.
        """
        data: dict[str, Any] = {"kind": self.kind}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                data[each.name] = _as_data(value)
        return dict(sorted(data.items()))


def _as_data(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value


def is_slug(value: object) -> bool:
    """Whether a rule may be called so within its deployment. No "@": its runs' idempotency keys are "<slug>@..."."""
    return isinstance(value, str) and re.fullmatch(_SLUG, value, re.ASCII) is not None


def plain_parameters(given: object) -> dict[str, Any] | None:
    """Parameters as they will be read back, so that a rule and what is made from its record are equal.

    Raises `OptionError` for what is not JSON.
    """
    value: Any = given
    if value is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in value):
        raise OptionError("parameters", value, "a mapping of parameters' names to values")
    try:
        plain: dict[str, Any] = decode(encode(dict(value), where="parameters"))
    except NotJSONError as error:
        raise OptionError("parameters", value, f"values that are JSON; {error.path} is not: {error.problem}") from None
    return plain


def _any(value: object) -> Any:
    """What people gave, whatever the hint says."""
    return value


def moment_given(kind: str, name: str, value: object) -> datetime:
    """A moment that somebody gave, in UTC. Raises `ScheduleError` for anything else, and for one without a zone."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        given = value.isoformat() if isinstance(value, datetime) else value
        raise ScheduleError(
            kind, name, given, "a datetime with a time zone: datetime(2027, 1, 1, 9, tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ScheduleError(kind, name, value.isoformat(), "a moment between the years 1 and 9999") from None
