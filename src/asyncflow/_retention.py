"""Which runs are deleted, and how many at a time: decisions only, so that every case can be tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asyncflow.settings import Settings

__all__ = ["Pace", "Retention"]

_DAY = 86_400_000_000
_SLACK = 20
"""A database over its bytes shrinks to one part of so many below them, so that it is not over again at once."""
_MOST_AT_ONCE = 500
_PROBE_EVERY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of the outermost runs that have ended; None = no limit of that kind."""

    age: int | None = None
    """Microseconds since they began."""
    runs: int | None = None
    """Outermost runs, those that go on included."""
    size: int | None = None
    """Bytes of the database in use."""

    @classmethod
    def of(cls, settings: Settings) -> Retention:
        """As the settings say, where 0 is no limit."""
        return cls(
            age=max(round(settings.retention_days * _DAY), 1) if settings.retention_days else None,
            runs=settings.retention_runs or None,
            size=settings.retention_bytes or None,
        )

    def before(self, now: int) -> int | None:
        """Runs that began before this moment are to go; None when no age is too old."""
        return None if self.age is None else now - self.age

    def excess(self, size: int, count: Callable[[], int], *, shrinking: bool = False) -> int:
        """How many outermost runs are to go, the oldest first, whatever their age is.

        For the sake of the bytes that is an estimate, made as if all runs were of one size: look
        again after each batch, with `shrinking` until it gives 0. `count` gives how many there
        are; it is asked only when that matters, because counting a million takes a while.
        """
        over = self._bytes_over(size, shrinking=shrinking)
        if not over and self.runs is None:
            return 0
        number = count()
        by_count = 0 if self.runs is None else max(number - self.runs, 0)
        return max(by_count, -(-number * over // size) if over else 0)

    def _bytes_over(self, size: int, *, shrinking: bool) -> int:
        if self.size is None:
            return 0
        target = self.size - self.size // _SLACK
        return max(size - target, 0) if shrinking or size > self.size else 0


class Pace:
    """How many trees of runs one batch may take, learnt from how long the last ones took.

    A batch has a price of its own, the commit, which may be 30 ms on a slow disk however small the
    batch is; and each tree has one, by the runs in it. Only the trees' part is held to the target:
    smaller batches would make the commits more, not shorter. What a commit takes is seen at
    batches of one tree, so now and then there is such a batch.
    """

    def __init__(self, target_seconds: float = 0.010) -> None:
        self._target = target_seconds
        self._commit = 0.0
        self._affordable = 2
        self._noted = 0
        self.trees = 1
        """For the next batch."""

    def note(self, trees: int, seconds: float) -> None:
        """A batch of `trees`, 1 or more, took `seconds`."""
        self._noted += 1
        if trees == 1:
            self._commit = seconds
        else:
            self._commit = min(self._commit, seconds)
            each = (seconds - self._commit) / (trees - 1)
            affordable = _MOST_AT_ONCE if each * _MOST_AT_ONCE <= self._target else int(self._target / each)
            self._affordable = max(1, min(affordable, trees * 2, _MOST_AT_ONCE))
        if self._noted % _PROBE_EVERY:
            self.trees = self._affordable
        else:
            self.trees = 2 if self._affordable == 1 else 1
