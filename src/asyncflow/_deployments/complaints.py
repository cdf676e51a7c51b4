"""What keeps going wrong, told once."""

from __future__ import annotations

from asyncflow.error_records import error_summary
from asyncflow.logs import library_logger

__all__ = ["Complaints"]


class Complaints:
    """Warnings about things that are tried again: one when a thing begins to fail, one more when it fails otherwise."""

    def __init__(self) -> None:
        self._told: dict[object, str] = {}

    def report(self, about: object, what: str, error: Exception) -> None:
        """`what` went wrong with `about`, and will be tried again."""
        told = error_summary(error)
        if self._told.get(about) != told:
            self._told[about] = told
            library_logger().warning("%s; it is tried again, and this is said once: %s", what, told)

    def settle(self, about: object) -> None:
        """It works: the next failure is news."""
        if self._told:
            self._told.pop(about, None)
