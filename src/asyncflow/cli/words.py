"""Words of the command line to values: ids, states, moments, lengths of time, bytes.

What cannot be read is a `UsageError` that names the option and says how to write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from cyclopts import Parameter

from asyncflow._rows import microseconds
from asyncflow.cli.output import UsageError
from asyncflow.exceptions import RunNotFoundError
from asyncflow.ids import parse_id
from asyncflow.states import StateType

__all__ = ["AsJSON", "RunId", "bytes_of", "count_of", "id_of", "length_of", "moment_of", "states_of", "time_of"]

RunId = Annotated[str, Parameter(help="The id of a flow run or a task run.")]
AsJSON = Annotated[bool, Parameter(name="--json", help="One JSON document.", negative="")]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MICROSECOND = timedelta(microseconds=1)


def id_of(text: str) -> bytes:
    """The id of a run, also without its hyphens. What cannot be one is nobody's: `RunNotFoundError`."""
    try:
        return parse_id(text)
    except ValueError:
        raise RunNotFoundError(text) from None


def states_of(names: Iterable[str] | None) -> frozenset[StateType] | None:
    """`failed crashed`; None for no name."""
    if not names:
        return None
    try:
        return frozenset(StateType(name.upper()) for name in names)
    except ValueError:
        known = ", ".join(type_.value.lower() for type_ in StateType)
        raise UsageError(f"--state {' '.join(names)!r}: the states are {known}") from None


def count_of(option: str, number: int) -> int:
    """A number from 0."""
    if number < 0:
        raise UsageError(f"{option} {number}: it must be 0 or more")
    return number


def moment_of(option: str, text: str | None) -> int | None:
    """`2024-01-31`, `2024-01-31T12:00`, or so long ago as `2h`; a column of time."""
    if text is None:
        return None
    try:
        ago = _length(text)
        return microseconds(datetime.now(UTC) - ago if ago is not None else datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text!r}: write a date, a date and time, or 90s, 15m, 2h, 7d") from None


def time_of(option: str, text: str | None) -> datetime | None:
    """`2024-01-31T12:00`, local unless it names a zone; an aware time."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r}: write a date and time, such as 2024-01-31T12:00 or 2024-01-31T12:00Z"
        ) from None


def length_of(option: str, text: str | None) -> int | None:
    """`90s`, `15m`, `2h`, `30d`, `4w` in microseconds."""
    if text is None:
        return None
    try:
        length = _length(text)
    except OverflowError:
        length = None
    if length is None:
        raise UsageError(f"{option} {text!r}: write a length of time, such as 90s, 15m, 2h, 30d, 4w")
    return length // _MICROSECOND


def _length(text: str) -> timedelta | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    return None if found is None else timedelta(**{_UNITS[found[2]]: float(found[1])})


def bytes_of(option: str, text: str | None) -> int | None:
    """`1000000`, `200MB`, `1.5 GiB`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text)
    size = None if found is None else _SIZES.get(found[2].upper())
    if found is None or size is None:
        raise UsageError(f"{option} {text!r}: write a number of bytes, such as 200MB or 1.5GiB")
    return int(float(found[1]) * size)
