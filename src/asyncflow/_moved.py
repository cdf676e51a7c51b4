"""Recorded runs that are moved on by somebody who does not run them."""

from __future__ import annotations

from collections.abc import Sequence

from asyncflow._rows import RunRow
from asyncflow.abc import Recordable

__all__ = ["MovedRun"]


class MovedRun(Recordable):
    """A run in one more state than it is in on record, for a store to write."""

    def __init__(self, root_id: bytes, row: RunRow) -> None:
        self.queued = False
        self.journalled = row.seq - 1
        self._root_id = root_id
        self._row = row

    @property
    def root_id(self) -> bytes:
        return self._root_id

    def rows(self) -> Sequence[RunRow]:
        return [self._row]
