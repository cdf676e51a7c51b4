"""What keeps going wrong, told once."""

from __future__ import annotations

import time
from collections.abc import Callable

from asyncflow.error_records import error_summary
from asyncflow.logs import library_logger

__all__ = ["Complaints"]

_SECONDS = 60.0
"""How long a failure that was told and has gone is not told again: on a bad disk it comes and goes many times."""


class Complaints:
    """Warnings about things that are tried again: one when a thing begins to fail, one more when it fails otherwise."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failing: dict[object, str] = {}
        self._told: dict[tuple[object, str], float] = {}
        """When; of the last minute."""

    def report(self, about: object, what: str, error: Exception) -> None:
        """`what` went wrong with `about`, and will be tried again."""
        told = error_summary(error)
        if self._failing.get(about) == told:
            return
        self._failing[about] = told
        now = self._monotonic()
        self._told = {each: at for each, at in self._told.items() if now - at < _SECONDS}
        if (about, told) not in self._told:
            self._told[about, told] = now
            library_logger().warning("%s; it is tried again, and this is said once: %s", what, told)

    def settle(self, about: object) -> None:
        """It works: the next failure is news, a minute after the same was told at the earliest."""
        if self._failing:
            self._failing.pop(about, None)
