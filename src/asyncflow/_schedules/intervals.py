"""The moments of an interval: a phase and a step, counted and never walked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

__all__ = ["Steps"]


class Steps:
    """`anchor + k * step` for each whole k, in whatever time the anchor is: UTC or a zone's wall clock."""

    in_every_hour = False

    def __init__(self, anchor: datetime, step: timedelta) -> None:
        self._anchor = anchor
        self._step = step

    def after(self, wall: datetime) -> Iterator[datetime]:
        """Those after a time, ascending."""
        each = self._anchor + ((wall - self._anchor) // self._step + 1) * self._step
        while True:
            yield each
            each += self._step

    def until(self, wall: datetime) -> Iterator[datetime]:
        """Those up to and with a time, descending."""
        each = self._anchor + ((wall - self._anchor) // self._step) * self._step
        while True:
            yield each
            each -= self._step
