"""What the commands write and where: data on standard output, all the rest on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import Any, cast

from rich.console import Console

from asyncflow.exceptions import AsyncflowError

__all__ = [
    "UsageError",
    "age",
    "clock_time",
    "complain",
    "duration",
    "duration_between",
    "error_console",
    "escaped",
    "json_text",
    "one_line",
    "only_data_on_stdout",
    "printable",
    "table_console",
    "write_data",
]

_MICRO = 1_000_000
_WIDEST_TABLE = 10_000
_HARMLESS = frozenset("\t\u00a0\u2007\u202f\u3000\u200c\u200d")
"""A tab, spaces of some languages, and what joins letters and emoji: not `printable` to Python."""


class UsageError(AsyncflowError):
    """The command was given something it cannot use; its message says what instead."""


def complain(message: object) -> None:
    """One message about what went wrong, on standard error."""
    sys.stderr.write(f"asyncflow: {printable(str(message))}\n")


# --- standard output -------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """A JSON document for people and programs: indented, in Unicode, integers of any size."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_data(text: str) -> None:
    """Write a command's data to standard output, as UTF-8 whatever the locale is."""
    # Half a surrogate pair becomes its escape, which inside of JSON means just that.
    _write_all(1, text.encode("utf-8", "backslashreplace"))


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


@contextmanager
def only_data_on_stdout() -> Generator[Callable[[str], None]]:
    """Keeps standard output for what is written with the function it gives.

    Everything else goes to standard error meanwhile: prints of the user's code, and also what its
    C libraries and subprocesses write, which is why the descriptor is changed and not `sys.stdout`.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    cast("TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)  # in order with what stderr gets
    try:
        yield lambda text: _write_all(kept, text.encode("utf-8", "backslashreplace"))
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


# --- consoles --------------------------------------------------------------------------------


def error_console() -> Console:
    """Standard error as it is now, plain text taken literally."""
    return Console(file=sys.stderr, markup=False, highlight=False, emoji=False)


def table_console() -> Console:
    """Standard output for listings: as wide as they are where there is no terminal to fit into."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDEST_TABLE
    return console


# --- texts -----------------------------------------------------------------------------------


def printable(text: str) -> str:
    """`text` without what could control a terminal; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" or each in _HARMLESS else "\ufffd" for each in text)


def escaped(text: str) -> str:
    """All of `text` on one line: of what is no visible character, or changes how the rest is shown, its escape."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in _HARMLESS else each.encode("unicode_escape").decode() for each in text
    )


def one_line(text: str, limit: int = 200) -> str:
    """`text` on one line, cut to `limit` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def clock_time(column: int) -> str:
    """The local time of day of a store's time column, to the millisecond."""
    return datetime.fromtimestamp(column / _MICRO, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]


def duration(seconds: float) -> str:
    """A length of time in two figures or so: `20 ms`, `1.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 0.1:
        return f"{max(round(seconds * 1000), 1)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def duration_between(start: int, end: int) -> str:
    """The same, between two time columns."""
    return duration((end - start) / _MICRO)


def age(created: int, now: int) -> str:
    """How long ago a time column is, in one short word: `9s`, `12m`, `5h`, `3d`."""
    seconds = max(now - created, 0) // _MICRO
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
